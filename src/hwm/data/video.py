"""Videos in and out: frames by timestamp, cut and scaled as they are decoded; probing and writing.

In: a path, times in seconds after the first frame, one crop box in upright source pixels, one or more output sizes.
Out: a `Clip`, uint8 arrays [F, Y, X, R] (channels last), one for each size, all of the same crop. Rotation metadata is
applied; samples are taken to be square. The encoder and Gazelle see the same box through two sizes of one `read`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from hwm.data.decoding import TIME_TOLERANCE_SEC, FrameCursor, TimedFrame
from hwm.data.encoding import write_video as write_video
from hwm.errors import DataError

GRID_CHUNK_STEPS = 32
"""Grid steps in one chunk of `read_grid`: bounds memory, long enough for a batch of the encoder."""


class VideoInfo(NamedTuple):
    """What is known of a video without decoding it whole."""

    path: Path
    duration_sec: float
    """From the first frame's start to the last frame's end."""
    width: int
    """Columns of the upright picture."""
    height: int
    """Rows of the upright picture."""
    fps: float
    """Average frames a second."""
    codec: str
    rotation: int
    """Counter-clockwise degrees that were applied to make the stored picture upright: 0, 90, 180 or 270."""
    num_streams: int
    """Video streams in the file; the one with the most pixels is read."""


class CropBox(NamedTuple):
    """A rectangle in upright source pixels; may be fractional. Pixel i covers i to i + 1."""

    top: float
    left: float
    height: float
    width: float


class Clip(NamedTuple):
    """Frames of one video."""

    times_sec: np.ndarray
    """[F] float64: when each frame is really shown, seconds after the first frame of the video."""
    views: tuple[np.ndarray, ...]
    """One uint8 array [F, Y, X, R] for each requested size, all of the same crop."""


class VideoReader:
    """Random and sequential access to the frames of one video, by time.

    Time 0 is the first frame. The frame at time t is the last one that starts at or before t + 1e-6 s. Requests that
    go forward in time decode on; others seek to the key frame before. Open it inside the process that uses it.

    Args:
        path: the video file.
        num_threads: decoder threads.

    Raises:
        DataError: the file cannot be read as a video; the message names it and gives the reason.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        self.path = Path(path)
        self._cursor = FrameCursor(self.path, num_threads)
        self._num_threads = num_threads
        self._to_rgb = VideoReformatter()  # kept: a frame's own one is made anew for each frame, with its tables

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the reader cannot be used afterwards."""
        self._cursor.close()

    @cached_property
    def info(self) -> VideoInfo:
        """The same as `probe_video(path)`."""
        return probe_video(self.path)

    @property
    def num_seeks(self) -> int:
        """Seeks done so far."""
        return self._cursor.num_seeks

    def read(self, times_sec: Sequence[float], sizes: Sequence[tuple[int, int]], box: CropBox | None = None) -> Clip:
        """Frames at given times, cropped and scaled.

        Args:
            times_sec: F times in any order, repeats allowed.
            sizes: (rows, columns) of each view.
            box: the crop in upright source pixels; None takes the whole picture. Scaling is bilinear and antialiased;
                at the crop's edge the filter uses the pixels just outside, as if the whole picture had been scaled.

        Returns:
            The frames in the order of `times_sec`; each view is uint8 [F, rows, columns, 3].

        Raises:
            DataError: a time before 0 or after the last frame's end, a box outside the picture, damaged data.
        """
        return self.read_crops(times_sec, sizes, (box,))[0]

    def read_crops(
        self, times_sec: Sequence[float], sizes: Sequence[tuple[int, int]], boxes: Sequence[CropBox | None]
    ) -> tuple[Clip, ...]:
        """`read` for several crops of the same frames, which are decoded once; one clip a box."""
        crops = [self._checked_box(box) for box in boxes]
        num_frames = len(times_sec)
        found_sec = np.zeros(num_frames, dtype=np.float64)
        views = [
            tuple(np.empty((num_frames, rows, columns, 3), dtype=np.uint8) for rows, columns in sizes) for _ in crops
        ]
        source: int | None = None  # the slot that already holds the frame of the previous time
        order = sorted(range(num_frames), key=lambda index: times_sec[index])
        self._cursor.expect([times_sec[slot] for slot in order])
        for slot in order:
            timed = self._cursor.frame_at(times_sec[slot])
            found_sec[slot] = timed.time_sec
            if source is not None and found_sec[source] == timed.time_sec:
                for view in (view for of_crop in views for view in of_crop):
                    view[slot] = view[source]
            else:
                picture = _Picture(self._upright(timed))
                for crop, of_crop in zip(crops, views, strict=True):
                    for view in of_crop:
                        picture.scale_into(view[slot], crop)
            source = slot
        return tuple(Clip(found_sec, of_crop) for of_crop in views)

    def read_grid(
        self,
        fps: float,
        sizes: Sequence[tuple[int, int]],
        box: CropBox | None = None,
        offsets: Sequence[float] = (0.0,),
    ) -> Iterator[Clip]:
        """The whole video once, from the start, on the time grid i / fps.

        Args:
            fps: grid steps a second.
            sizes: (rows, columns) of each view.
            box: the crop in upright source pixels; None takes the whole picture.
            offsets: seconds (≤ 0) added to a grid time to get each frame of its step; times before 0 become 0.

        Yields:
            Chunks of up to 32 steps; F = steps · len(offsets), the frames of a step side by side.
        """
        return (clips[0] for clips in self.read_grid_crops(fps, sizes, (box,), offsets))

    def read_grid_crops(
        self,
        fps: float,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[CropBox | None],
        offsets: Sequence[float] = (0.0,),
    ) -> Iterator[tuple[Clip, ...]]:
        """`read_grid` for several crops of the same frames, which are decoded once; one clip a box in each chunk."""
        if any(offset > 0 for offset in offsets):
            raise DataError(f"read_grid was asked for offsets {tuple(offsets)}", expected="none after its grid time")
        num_steps = num_grid_steps(self.info.duration_sec, fps)
        for first in range(0, num_steps, GRID_CHUNK_STEPS):
            steps = range(first, min(first + GRID_CHUNK_STEPS, num_steps))
            yield self.read_crops([max(0.0, step / fps + offset) for step in steps for offset in offsets], sizes, boxes)

    def _upright(self, timed: TimedFrame) -> np.ndarray:
        frame = timed.frame
        if (frame.height, frame.width) != self._cursor.stored_size:
            raise DataError(
                f"the picture size of {self.path} changes at {timed.time_sec:.3f} s",
                expected=f"{self._cursor.stored_size} (rows, columns) throughout",
                found=f"{(frame.height, frame.width)}",
                fix="encode the video again with one size",
            )
        pixels = self._to_rgb.reformat(frame, format="rgb24", threads=self._num_threads).to_ndarray()
        return np.rot90(pixels, self._cursor.quarter_turns) if self._cursor.quarter_turns else pixels

    def _checked_box(self, box: CropBox | None) -> tuple[float, float, float, float]:
        """PIL's (left, top, right, bottom)."""
        height, width = self._cursor.height, self._cursor.width
        if box is None:
            return (0.0, 0.0, float(width), float(height))
        slack = 1e-3  # boxes are computed in floats; a thousandth of a pixel outside is rounding
        right, bottom = box.left + box.width, box.top + box.height
        inside = box.top >= -slack and box.left >= -slack and right <= width + slack and bottom <= height + slack
        if not (inside and box.height > 0 and box.width > 0):
            raise DataError(
                f"the crop box lies outside the picture of {self.path}",
                expected=f"a box inside {height} rows × {width} columns",
                found=str(box),
            )
        return (max(0.0, box.left), max(0.0, box.top), min(float(width), right), min(float(height), bottom))


class _Picture:
    """One upright picture [Y, X, R], handed to Pillow only where something is to be scaled."""

    def __init__(self, pixels_YXR: np.ndarray) -> None:
        self._pixels_YXR = pixels_YXR

    @cached_property
    def _image(self) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._pixels_YXR))

    def scale_into(self, view_YXR: np.ndarray, crop: tuple[float, float, float, float]) -> None:
        """Fill a view with a crop (left, top, right, bottom); one of whole pixels and the view's size is copied."""
        rows, columns = view_YXR.shape[:2]
        left, top = int(crop[0]), int(crop[1])
        if crop == (left, top, left + columns, top + rows):
            view_YXR[:] = self._pixels_YXR[top : top + rows, left : left + columns]
        else:
            view_YXR[:] = np.asarray(self._image.resize((columns, rows), Image.Resampling.BILINEAR, box=crop))


def num_grid_steps(duration_sec: float, fps: float) -> int:
    """How many grid times i / fps (i = 0, 1, …) fall on a frame of a video this long; at least 1."""
    return max(1, math.ceil((duration_sec - TIME_TOLERANCE_SEC) * fps - 1e-9))


def probe_video(path: Path) -> VideoInfo:
    """Size, length and kind of a video: decodes its first frame and reads the timestamps near its end.

    Raises:
        DataError: missing, unreadable, truncated, no video stream, or no frame; the reason is in the first line.
    """
    path = Path(path)
    with FrameCursor(path) as cursor:
        _, duration_sec = cursor.last_frame_span()
        return VideoInfo(
            path=path,
            duration_sec=duration_sec,
            width=cursor.width,
            height=cursor.height,
            fps=cursor.fps,
            codec=cursor.codec,
            rotation=90 * cursor.quarter_turns,
            num_streams=cursor.num_streams,
        )
