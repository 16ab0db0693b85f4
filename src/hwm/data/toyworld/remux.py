"""Copies of a video that differ in one thing: where it begins, which frames it holds, at what rate or turn.

In: a video that is whole. Out: another file. `cut_from` and `shifted` copy packets, so every picture stays the same bit
for bit; the others encode the decoded frames again at a quality that leaves each frame nearest to its original.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from hwm.data.encoding import write_video
from hwm.errors import DataError

_QUALITY = {"crf": 6, "g": 24, "preset": "veryfast"}


def key_times_sec(source: Path) -> list[float]:
    """Times of the key frames, seconds after the first frame."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        first = min(packet.pts for packet in packets if packet.pts is not None)
        keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
        return [float((pts - first) * _base(stream)) for pts in keys]


def cut_from(source: Path, target: Path, start_sec: float) -> None:
    """Copy the video from the key frame at `start_sec` on; that frame then stands at time 0."""
    _copy_packets(source, target, lambda pts, base: pts - round(start_sec / base))


def shifted(source: Path, target: Path, late_sec: float) -> None:
    """Copy the video with all its timestamps later: its stream does not start at 0."""
    _copy_packets(source, target, lambda pts, base: pts + round(late_sec / base))


def _copy_packets(source: Path, target: Path, move: Callable[[int, Fraction], int]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for packet in reader.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            pts, dts = move(packet.pts, _base(stream)), move(packet.dts, _base(stream))
            if pts < 0:
                continue
            packet.pts, packet.dts, packet.stream = pts, dts, copy
            writer.mux(packet)


def resampled(source: Path, target: Path, fps: Fraction) -> None:
    """Another constant rate: the frame at i / fps is the one that the source shows at that time."""
    times, frames = decode(source)
    count = int((times[-1] + times[1]) * fps)
    shown = np.searchsorted(times, np.arange(count) / float(fps) + 1e-6, side="right") - 1
    write_video(target, (frames[index] for index in shown), float(fps), bf=0, **_QUALITY)


def with_dropped_frames(source: Path, target: Path, kept: np.ndarray) -> None:
    """A variable rate: only some frames are there, each at its own time; `kept` is [F] bool, the first is True."""
    times, frames = decode(source)
    rate = 1 / float(times[1])
    write_video(
        target, (frames[index] for index in np.flatnonzero(kept)), rate, times_sec=times[kept], bf=0, **_QUALITY
    )


def turned(source: Path, target: Path, rotation: int) -> None:
    """The picture lies on its side and the file tells to turn it back, `rotation` degrees counter-clockwise."""
    times, frames = decode(source)
    lying = (np.rot90(frame, -rotation // 90) for frame in frames)
    write_video(target, lying, 1 / float(times[1]), rotation=rotation, bf=0, **_QUALITY)


def side_by_side(sources: tuple[Path, Path], target: Path) -> None:
    """A collage of two views of one height."""
    (times, left), (_, right) = (decode(source) for source in sources)
    pairs: Iterator[np.ndarray] = (np.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    write_video(target, pairs, 1 / float(times[1]), crf=24, g=24, bf=0, preset="veryfast")


def decode(source: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Times [F] and frames [Y, X, R] of a whole video, decoded in one go."""
    with av.open(str(source)) as container:
        frames = list(container.decode(video=0))
    if len(frames) < 2 or any(frame.pts is None for frame in frames):
        raise DataError(f"cannot copy video {source}: it has no two frames with timestamps")
    seconds = [float((frame.pts or 0) * (frame.time_base or 0)) for frame in frames]
    return np.array(seconds) - seconds[0], [frame.to_ndarray(format="rgb24") for frame in frames]


def _base(stream: VideoStream) -> Fraction:
    if stream.time_base is None:
        raise DataError("a video stream has no time base")
    return stream.time_base
