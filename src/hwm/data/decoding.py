"""One open video stream and the walk over its frames by presentation time.

In: a path and times in seconds after the first frame. Out: decoded `av.VideoFrame`s, their times, the upright size.
Frames are found by their timestamps alone: counting with an average rate picks wrong frames in videos of variable
frame rate and in files whose container promises more frames than it holds. Used by `hwm.data.video`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import av.container
import av.error
import av.video.stream
from av.stream import Disposition

from hwm.data.skipping import FrameWalk
from hwm.errors import DataError

TIME_TOLERANCE_SEC = 1e-6
"""A frame that starts this little after the requested time counts as started: it absorbs the rounding of floats."""

SEEK_GAP_SEC = 3.0
"""Without an index, decoding forward over a shorter gap than this is taken to be cheaper than a seek."""

NOT_THERE = "the file does not exist"
"""Why a video that is missing cannot be read."""

_FAR_AHEAD_SEC = 10 * 24 * 3600
"""Later than the end of any video: seeking there lands on the last key frame, whatever the container claims."""


class TimedFrame(NamedTuple):
    """A decoded frame and when it is shown, in seconds after the first frame."""

    time_sec: float
    frame: av.VideoFrame


def require_regular_file(path: Path) -> None:
    """Refuse what is missing, unreadable, empty or not a regular file (a FIFO would block the reader for ever).

    Raises:
        DataError: with the reason in one line.
    """
    try:
        if not path.is_file():
            reason = "not a regular file" if path.exists() else NOT_THERE
            raise DataError(f"cannot read video {path}: {reason}")
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"cannot read video {path}: the file is empty (0 bytes)")
    except OSError as error:
        raise DataError(f"cannot read video {path}: {error.strerror or error}") from error


def one_line(error: Exception) -> str:
    """FFmpeg's message without PyAV's number, file name and log tail."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


class FrameCursor:
    """A position in one video stream that moves forward by decoding and elsewhere by seeking.

    Of several video streams the one with the most pixels is taken (first of equals; cover pictures are ignored).

    Args:
        path: the video file.
        num_threads: decoder threads. Slice threads only: frame threads can deadlock when a decode ends early.

    Raises:
        DataError: unreadable file, no video stream, no frame, a rotation that is not a multiple of 90 degrees.
    """

    def __init__(self, path: Path, num_threads: int = 1) -> None:
        self.path = path
        self._num_threads = num_threads
        require_regular_file(path)
        self._container: av.container.InputContainer | None = None
        self._walk: FrameWalk | None = None
        self.num_seeks = 0
        try:
            self._open()
            first = self._next
            assert first is not None
            self.quarter_turns = self._quarter_turns(first)
        except DataError:
            self.close()
            raise
        swapped = self.quarter_turns % 2 == 1
        self.stored_size = (first.height, first.width)
        self.height, self.width = (first.width, first.height) if swapped else (first.height, first.width)

    def __enter__(self) -> "FrameCursor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the cursor cannot be used afterwards."""
        self._current = self._next = None
        self._walk = None
        if self._container is not None:
            self._container.close()
            self._container = None

    def frame_at(self, time_sec: float) -> TimedFrame:
        """The frame on screen at a time: the last one that starts at or before `time_sec` + 1e-6 s.

        Raises:
            DataError: the time is negative or more than a frame after the last frame, or the data are damaged.
        """
        if not (math.isfinite(time_sec) and time_sec >= -TIME_TOLERANCE_SEC):
            raise DataError(f"a frame of {self.path} was asked for at {time_sec} s", expected="a time of at least 0 s")
        target = self._ticks(time_sec)
        if self._should_seek(target):
            self._seek(target)
        while self._next is not None and _pts(self._next) <= target:
            self._current, self._next = self._next, self._decode_next()
        frame = self._current
        assert frame is not None
        found_sec = self._seconds(frame)
        if self._next is None:
            end_sec = found_sec + self._frame_duration_sec(frame)
            if time_sec > end_sec + TIME_TOLERANCE_SEC:
                raise DataError(
                    f"{self.path} has no frame at {time_sec:.3f} s",
                    expected=f"a time of at most {end_sec:.3f} s, where the last frame that can be decoded ends",
                )
        if frame.is_corrupt:
            raise DataError(f"the frame at {found_sec:.3f} s of {self.path} is damaged", fix="fetch the file again")
        return TimedFrame(found_sec, frame)

    def expect(self, times_sec: Sequence[float]) -> None:
        """The times that `frame_at` is asked for next, ascending: pictures between them may be left undecoded.

        Raises:
            DataError: the file was closed.
        """
        if self._walk is None:
            raise DataError(f"{self.path} was closed", fix="read its frames within the `with` block that opened it")
        self._walk.expect([self._ticks(time) for time in times_sec if math.isfinite(time)])

    def last_frame_span(self) -> tuple[float, float]:
        """Start and end (seconds) of the last frame, from the packets behind the last key frame (not decoded).

        The container's own duration is not used: it may count sound, or frames that are not there. Moves the cursor.

        Raises:
            DataError: the end of the file is missing.
        """
        container, stream = self._container, self._stream
        assert container is not None
        try:
            container.seek(self._first_pts + int(_FAR_AHEAD_SEC / self._tick_sec), stream=stream, backward=True)
            last = self._last_packet(from_key_frame=True)
        except av.error.FFmpegError:
            last = None
        if last is None:  # no index to seek by: walk over all packets
            self._open()
            last = self._last_packet(from_key_frame=False)
        self._open()
        if last is None:
            raise DataError(f"cannot read video {self.path}: no frames have timestamps")
        start, end = last
        return (start - self._first_pts) * self._tick_sec, (end - self._first_pts) * self._tick_sec

    @property
    def fps(self) -> float:
        """Average frames a second as the container has it; 0 where it says nothing."""
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    @property
    def codec(self) -> str:
        """FFmpeg's short name of the codec."""
        return self._stream.codec_context.codec.canonical_name

    @property
    def num_streams(self) -> int:
        """Video streams in the file, cover pictures not counted."""
        assert self._container is not None
        return len(_video_streams(self._container))

    def _open(self) -> None:
        if self._container is not None:
            self._container.close()
        try:
            # Only local files: a hostile play list inside a video file must not reach the network.
            self._container = av.open(str(self.path), container_options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"cannot read video {self.path}: {one_line(error)}",
                fix="fetch or encode the file again: a cut download lacks its index",
            ) from error
        stream = main_stream(self._container)
        if stream is None:
            raise DataError(f"cannot read video {self.path}: it has no video stream")
        self._stream = stream
        self._stream.thread_type = "SLICE"
        self._stream.codec_context.thread_count = self._num_threads
        self._start_decoding()
        first = self._decode_next()
        if first is None:
            raise DataError(f"cannot read video {self.path}: it holds no frame that can be decoded")
        self._current, self._next = None, first
        self._first_pts = _pts(first)
        assert first.time_base is not None
        self._time_base: Fraction = first.time_base
        self._tick_sec = float(self._time_base)

    def _start_decoding(self) -> None:
        assert self._container is not None
        expected = () if self._walk is None else self._walk.expected
        self._walk = FrameWalk(self._container, self._stream)
        self._walk.expect(expected)

    def _decode_next(self) -> av.VideoFrame | None:
        """The next frame in presentation order, None at the end."""
        assert self._walk is not None
        try:
            frame = self._walk.next_frame()
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"cannot decode video {self.path}: {one_line(error)}", fix="fetch or encode the file again"
            ) from error
        if frame is not None and frame.pts is None:
            raise DataError(f"cannot read video {self.path}: a frame has no timestamp", fix="remux it, e.g. to mp4")
        return frame

    def _should_seek(self, target: int) -> bool:
        reached = self._current if self._current is not None else self._next
        assert reached is not None
        position = _pts(reached)
        if target < position:
            return True
        entries = self._stream.index_entries
        if len(entries) > 0:
            # The index holds decoding times; those are at most the presentation times, so this errs towards a seek
            # that lands where the cursor is, which costs time and never changes the frame that is found.
            index = entries.search_timestamp(target, backward=True, any_frame=False)
            return index >= 0 and entries[index].timestamp > position + SEEK_GAP_SEC / 10 / self._tick_sec
        return (target - position) * self._tick_sec > SEEK_GAP_SEC

    def _seek(self, target: int) -> None:
        """Stand on a clean key frame at or before `target` (ticks), with `_next` set to it."""
        assert self._container is not None
        self.num_seeks += 1
        back_sec = 0.0
        while True:
            offset = target - int(back_sec / self._tick_sec)
            if offset <= self._first_pts:
                break
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                break  # a format that cannot seek: decode from the start
            self._start_decoding()
            key = self._first_key_frame()
            if key is not None and _pts(key) <= target:
                self._current, self._next = None, key
                return
            # Containers seek by decoding time, and the pictures shown before an open group's key frame need the
            # group before it: go further back until the key frame itself is shown at or before the target.
            back_sec = max(1.0, 2 * back_sec)
        self._open()

    def _first_key_frame(self) -> av.VideoFrame | None:
        frame = self._decode_next()
        while frame is not None and not frame.key_frame:
            frame = self._decode_next()
        return frame

    def _last_packet(self, from_key_frame: bool) -> tuple[int, int] | None:
        """Start and end (ticks) of the packet shown last, of those from here to the end of the file.

        None if there is none, or, with `from_key_frame`, if the first is no key frame: a container without an index
        seeks to anywhere, and the frame shown last need not be stored last.
        """
        assert self._container is not None
        last: tuple[int, int] | None = None
        default = int(1 / (self.fps or 1.0) / self._tick_sec)
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0 or packet.pts is None or packet.is_discard:
                    continue
                if last is None and from_key_frame and not packet.is_keyframe:
                    return None
                if packet.is_corrupt:
                    raise DataError(f"cannot read video {self.path}: it is cut off before its end")
                if last is None or packet.pts > last[0]:
                    last = (packet.pts, packet.pts + (packet.duration or default))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"cannot read video {self.path}: it is cut off before its end ({one_line(error)})",
                fix="fetch the file again",
            ) from error
        return last

    def _ticks(self, time_sec: float) -> int:
        """The latest time stamp that counts as started."""
        return self._first_pts + math.floor((max(time_sec, 0.0) + TIME_TOLERANCE_SEC) / self._tick_sec)

    def _seconds(self, frame: av.VideoFrame) -> float:
        return float((_pts(frame) - self._first_pts) * self._time_base)

    def _frame_duration_sec(self, frame: av.VideoFrame) -> float:
        if frame.duration:
            return frame.duration * self._tick_sec
        return 1 / self.fps if self.fps else 0.0

    def _quarter_turns(self, frame: av.VideoFrame) -> int:
        """Counter-clockwise quarter turns that make the stored picture upright, 0..3."""
        if frame.rotation % 90:
            raise DataError(
                f"cannot read video {self.path}: it is marked as rotated by {frame.rotation} degrees",
                expected="a multiple of 90 degrees",
            )
        return frame.rotation // 90 % 4


def _pts(frame: av.VideoFrame) -> int:
    assert frame.pts is not None
    return frame.pts


def main_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The video stream with the most pixels (first of equals; cover pictures do not count); None without one."""
    streams = _video_streams(container)
    return max(streams, key=lambda s: s.codec_context.width * s.codec_context.height) if streams else None


def _video_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    attached = Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & attached]
