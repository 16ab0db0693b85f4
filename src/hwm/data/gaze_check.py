"""What a take's measured gaze is worth: rows, rate, points outside the picture, gaps.

In: the gaze file of a video, in Ego-Exo4D's layout or where a recipe says. Out: `GazeFacts`, or the reason why the file
cannot be read.
"""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwm.config import GazeFilesConfig
from hwm.data.gaze_ego4d import is_ego4d, read_gaze_ego4d
from hwm.data.gaze_files import ALIGNED_FOLDER, PREFERRED
from hwm.data.gaze_tracks import MAX_AGE_SEC, SAMPLE_PERIOD_SEC, read_gaze_2d, read_rows
from hwm.errors import DataError


class GazeFacts(BaseModel):
    """A gaze file in numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    period_error_ms: float | None
    """|median time between rows − 100 ms|; null for fewer than two rows, and for Ego4D's files, one row a frame."""
    share_without_point: float
    """Rows whose cells are empty or too uncertain, or whose point lies outside the picture; 0..1."""
    gaps: int
    """Pauses longer than 0.15 s, over which no gaze is known."""
    longest_gap_sec: float
    """0 where there is none."""


NONE = "there is none"
"""What is said of a gaze file that is not there."""


def gaze_file_of(video: Path) -> Path | None:
    """The gaze file of a video's take that a run would read, there or not; None outside `frame_aligned_videos`."""
    parents = [folder for folder in video.parents if folder.name == ALIGNED_FOLDER]
    if not parents:
        return None
    files = [parents[0].parent / "eye_gaze" / name for name in PREFERRED]
    return next((file for file in files if file.is_file()), files[-1])


def check_gaze(path: Path, config: GazeFilesConfig) -> GazeFacts | str:
    """Read one gaze file.

    Args:
        path: the file, there or not.
        config: how Ego4D's files are to be read.

    Returns:
        Its facts, or why it cannot be used (without the path, so that reasons can be counted).
    """
    if not path.exists():
        return NONE
    try:
        of_ego4d = is_ego4d(read_rows(path)[0])
        least = config.ego4d_min_confidence
        track = read_gaze_ego4d(path, config.ego4d_y or "down", least) if of_ego4d else read_gaze_2d(path)
    except DataError as error:
        return error.problem.replace(f"gaze file {path}", "").strip(" ,:")
    periods = np.diff(track.times_sec)
    long = periods[periods > MAX_AGE_SEC]
    is_timed = len(periods) > 0 and not of_ego4d
    return GazeFacts(
        rows=len(track.valid),
        period_error_ms=round(abs(float(np.median(periods)) - SAMPLE_PERIOD_SEC) * 1e3, 3) if is_timed else None,
        share_without_point=round(float(np.mean(~track.valid)), 6) if len(track.valid) else 1.0,
        gaps=len(long),
        longest_gap_sec=round(float(long.max()), 3) if len(long) else 0.0,
    )
