"""Measured eye gaze of Ego4D: a CSV that is faster than the video, in shares of the picture, with a confidence.

In: columns `world_index` (frame of the 30 fps canonical video), `confidence` (0..1), `norm_pos_x`, `norm_pos_y` (0..1).
Out: a `GazeTrack` with one sample a video frame. Which way y runs is not documented, so the caller must say.
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np

from hwm.data.gaze_tracks import GazeTrack, read_cell, read_rows
from hwm.errors import DataError

VIDEO_FPS = 30.0
"""Ego4D's canonical videos have this constant rate; `world_index` counts their frames."""

COLUMNS = ("world_index", "confidence", "norm_pos_x", "norm_pos_y")
"""The columns that are filled in; timestamps are there by name only."""


def is_ego4d(header: list[str]) -> bool:
    """Whether a gaze file with these columns is Ego4D's."""
    return {"norm_pos_x", "norm_pos_y"} <= set(header)


def read_gaze_ego4d(path: Path, y_axis: Literal["down", "up"], min_confidence: float) -> GazeTrack:
    """Read Ego4D's gaze file.

    Several rows belong to one frame and their place within it is unknown: the last confident one stands for the frame
    and counts as known at the frame's *end*, (world_index + 1) / 30 s, so that none is ever known too early.

    Args:
        path: the CSV.
        y_axis: `down` where `norm_pos_y` is 0 at the top of the picture, `up` where it is 0 at the bottom.
        min_confidence: less certain rows, and rows without a confidence, are invalid.

    Raises:
        DataError: missing file or column, a cell that is not a number, no or a negative world_index, or a world_index
            below the one before; with file and line.
    """
    path = Path(path)
    header, rows = read_rows(path)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"gaze file {path}, line 1: columns are missing", expected=", ".join(COLUMNS), found=", ".join(header)
        )
    places = [header.index(name) for name in COLUMNS]
    points: dict[int, tuple[float, float] | None] = {}
    last = 0
    for line, row in rows:
        frame, confidence, x, y = (read_cell(path, line, row, place) for place in places)
        if frame is None or frame < last:
            raise DataError(
                f"gaze file {path}, line {line}: world_index is wrong",
                expected=f"the number of a video frame, {last} or more",
                found="none" if frame is None else f"{frame:g}",
            )
        last = math.floor(frame)
        points.setdefault(last, None)
        if x is not None and y is not None and confidence is not None and confidence >= min_confidence:
            points[last] = (x, y if y_axis == "down" else 1 - y)
    known = [point if point is not None else (math.nan, math.nan) for point in points.values()]
    xy = np.array(known, dtype=np.float64).reshape(-1, 2)
    valid = np.all((xy >= 0) & (xy < 1), axis=1)
    times = (np.array(list(points), dtype=np.float64) + 1) / VIDEO_FPS
    return GazeTrack(times, np.where(valid[:, None], xy, 0.0), valid)
