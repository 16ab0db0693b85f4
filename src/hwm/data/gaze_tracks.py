"""Measured eye gaze in the ego frame: Ego-Exo4D's `personalized_eye_gaze_2d.csv` and `general_eye_gaze_2d.csv`.

In: a CSV at 10 Hz with `frame_num` (or `frame_number`), `tracking_timestamp_us`, and `x`, `y` in pixels of the upright
1408 × 1408 frame (or `x_norm`, `y_norm`). Out: a `GazeTrack`, times [S], points [S, 2] in 0..1, validity [S]. Cells may
be empty and points may lie outside the picture: both are kept as invalid samples. Not for exo views. Ego4D's file is
read by `gaze_ego4d`.
"""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.errors import DataError

ARIA_FRAME_SIDE_PX = 1408
"""Side of the upright Aria frame in whose pixels `x` and `y` are given, whatever the size of the video file."""

SAMPLE_PERIOD_SEC = 0.1
"""Row n belongs to 0.1 · frame_num seconds after the first video frame."""

MAX_AGE_SEC = 0.15
"""A sample stands until the next one is due; half a period more absorbs jitter of the tracker's clock."""

_TOLERANCE_SEC = 1e-6


class GazeTrack(NamedTuple):
    """Where a person looked, S samples in ascending time."""

    times_sec: np.ndarray
    """[S] float64, seconds after the first frame of the video."""
    xy: np.ndarray
    """[S, 2] float64: 0..1 from left to right and top to bottom of the upright frame; 0 where there is no point."""
    valid: np.ndarray
    """[S] bool: there is a point and it lies in the picture."""

    def at(self, times_sec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gaze known at given times: the last sample at or before each, if it is at most 0.15 s old.

        Never a later sample, however near: a step that is shown at time t must not know where the eyes went after t.

        Args:
            times_sec: [F] seconds after the first frame.

        Returns:
            Points [F, 2] and validity [F]; invalid points are 0.
        """
        asked = np.asarray(times_sec, dtype=np.float64)
        index = np.searchsorted(self.times_sec, asked + _TOLERANCE_SEC, side="right") - 1
        held = np.maximum(index, 0)
        if not len(self.times_sec):
            return np.zeros((*asked.shape, 2)), np.zeros(asked.shape, dtype=bool)
        fresh = (index >= 0) & (asked - self.times_sec[held] <= MAX_AGE_SEC)
        valid = fresh & self.valid[held]
        return np.where(valid[..., None], self.xy[held], 0.0), valid


class _Columns(NamedTuple):
    """Positions of the columns in a row; None where the file has none."""

    frame: int | None
    timestamp: int | None
    x: int
    y: int
    side_px: float
    """What x and y are divided by."""


class _Sample(NamedTuple):
    line: int
    frame: float | None
    timestamp_us: float | None
    x: float | None
    y: float | None


def read_gaze_2d(path: Path, frame_side_px: float = ARIA_FRAME_SIDE_PX) -> GazeTrack:
    """Read a 2-D gaze file.

    Times follow `tracking_timestamp_us`, whose zero (the device's own clock) is moved so that the first row stands at
    0.1 · its frame number; rows without a timestamp stand at 0.1 · frame number.

    Args:
        path: the CSV.
        frame_side_px: side of the frame that `x` and `y` are pixels of.

    Raises:
        DataError: missing file or column, a cell that is not a number, times that do not ascend, or samples that are
            not 0.1 s apart; with file and line.
    """
    path = Path(path)
    header, rows = read_rows(path)
    columns = _columns(path, header, frame_side_px)
    samples = [_sample(path, line, row, columns) for line, row in rows]
    times = _times(path, samples)
    xy = np.zeros((len(samples), 2))
    valid = np.zeros(len(samples), dtype=bool)
    for row, sample in enumerate(samples):
        if sample.x is not None and sample.y is not None:
            xy[row] = sample.x / columns.side_px, sample.y / columns.side_px
            valid[row] = bool(((xy[row] >= 0) & (xy[row] < 1)).all())
    return GazeTrack(times, xy, valid)


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The column names of a gaze file, and its rows with their line numbers; blank lines are left out.

    Raises:
        DataError: missing, empty, or not text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read gaze file {path}: {error}") from error
    if not lines:
        raise DataError(f"gaze file {path} is empty", expected="a header line")
    rows: list[tuple[int, list[str]]] = []
    for line, text in enumerate(lines, start=1):
        try:
            rows += [(line, row) for row in csv.reader([text]) if text.strip()]
        except csv.Error as error:
            raise DataError(f"gaze file {path}, line {line}: not a line of a CSV: {error}") from error
    has_header = bool(rows) and rows[0][0] == 1
    return [name.strip() for name in rows[0][1]] if has_header else [], rows[has_header:]


def read_cell(path: Path, line: int, row: list[str], place: int | None) -> float | None:
    """A finite number; None for an empty cell, `nan`, or a column or cell that is not there.

    Raises:
        DataError: not a number; with file and line.
    """
    text = row[place].strip() if place is not None and place < len(row) else ""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise DataError(
            f"gaze file {path}, line {line}: not a number", expected="a number or an empty cell", found=repr(text)
        ) from error
    return value if math.isfinite(value) else None


def _columns(path: Path, names: list[str], frame_side_px: float) -> _Columns:
    place = {name: number for number, name in reversed(list(enumerate(names)))}
    frame = place.get("frame_num", place.get("frame_number"))
    timestamp = place.get("tracking_timestamp_us")
    for x, y, side_px in (("x", "y", frame_side_px), ("x_norm", "y_norm", 1.0)):
        if x in place and y in place and (frame is not None or timestamp is not None):
            return _Columns(frame, timestamp, place[x], place[y], side_px)
    raise DataError(
        f"gaze file {path}, line 1: columns are missing",
        expected="frame_num (or frame_number) or tracking_timestamp_us, and x, y (or x_norm, y_norm)",
        found=", ".join(names),
    )


def _sample(path: Path, line: int, row: list[str], columns: _Columns) -> _Sample:
    places = (columns.frame, columns.timestamp, columns.x, columns.y)
    return _Sample(line, *(read_cell(path, line, row, place) for place in places))


def _times(path: Path, samples: list[_Sample]) -> np.ndarray:
    """[S] seconds after the first video frame, strictly ascending."""
    timed = [sample for sample in samples if sample.timestamp_us is not None]
    origin_us = 0.0
    if timed:
        assert timed[0].timestamp_us is not None
        origin_us = timed[0].timestamp_us - (timed[0].frame or 0.0) * SAMPLE_PERIOD_SEC * 1e6
    times = np.zeros(len(samples))
    for row, sample in enumerate(samples):
        if sample.timestamp_us is not None:
            times[row] = (sample.timestamp_us - origin_us) / 1e6
        elif sample.frame is not None:
            times[row] = sample.frame * SAMPLE_PERIOD_SEC
        else:
            raise DataError(f"gaze file {path}, line {sample.line}: neither a frame number nor a timestamp")
        if row and times[row] <= times[row - 1]:
            raise DataError(f"gaze file {path}, line {sample.line}: times do not ascend")
    _check_period(path, samples, times)
    return times


def _check_period(path: Path, samples: list[_Sample], times: np.ndarray) -> None:
    """Frame numbers count tenths of a second; another rate would shift all gaze against the video."""
    frames = np.array([math.nan if sample.frame is None else sample.frame for sample in samples])
    periods = np.diff(times) / np.diff(frames)
    if np.isnan(frames).all():
        periods = np.diff(times)
    periods = periods[np.isfinite(periods)]
    if len(periods) and abs(np.median(periods) - SAMPLE_PERIOD_SEC) > 0.2 * SAMPLE_PERIOD_SEC:
        raise DataError(
            f"gaze file {path} is not sampled at 10 Hz",
            expected=f"{SAMPLE_PERIOD_SEC:g} s from one frame number (or row) to the next",
            found=f"{np.median(periods):.3f} s (median)",
        )
