"""Writing a video file from frames; public as `hwm.data.video.write_video`.

In: uint8 frames [Y, X, R], a rate or a time for each. Out: a file, the same bytes for the same input.
"""

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import cast

import av
import av.error
import numpy as np
from av.video.stream import VideoStream

from hwm.data.decoding import one_line
from hwm.errors import DataError

VARIABLE_RATE_TICK = Fraction(1, 90000)
"""Seconds that given frame times are rounded to."""


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    times_sec: Iterable[float] | None = None,
    rotation: int = 0,
    **opts: str | int | float,
) -> None:
    """Write frames to a video file; the same input gives the same bytes. Written aside, then renamed.

    Args:
        path: the file; its suffix chooses the container (`.mp4`, `.mkv`, `.webm`).
        frames: uint8 arrays [Y, X, R], all of one size (even sides unless `pix_fmt` is not subsampled).
        fps: frames a second.
        codec: an FFmpeg encoder, e.g. `libx264`, `libx265`, `libvpx-vp9`, `libsvtav1`.
        pix_fmt: FFmpeg's pixel format.
        times_sec: a time for each frame instead of i / fps (variable frame rate), rounded to 1/90000 s.
        rotation: counter-clockwise degrees a player is told to turn the stored picture by.
        opts: encoder options, e.g. `crf=18`, `g=12`, `bf=2`, `preset="veryfast"`.

    Raises:
        DataError: no frames, frames of different sizes, or the encoder refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = iter(frames)
    first = next(pictures, None)
    if first is None:
        raise DataError(f"cannot write video {path}: there are no frames")
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    rate = Fraction(fps).limit_denominator(1001)
    time_base = 1 / rate if times_sec is None else VARIABLE_RATE_TICK
    clock = iter(times_sec) if times_sec is not None else None
    try:
        with av.open(str(aside), "w", options=_container_options(path)) as container:
            stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=_encoder_options(codec, opts)))
            stream.height, stream.width = first.shape[:2]
            stream.pix_fmt = pix_fmt
            stream.codec_context.time_base = time_base
            if rotation:
                stream.set_display_rotation(rotation)
            for index, pixels in enumerate(chain([first], pictures)):
                if pixels.shape != (stream.height, stream.width, 3):
                    raise DataError(f"frame {index} of {path} has shape {pixels.shape}, the first one another")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.time_base = time_base
                frame.pts = index if clock is None else round(next(clock) / time_base)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        aside.replace(path)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(f"cannot write video {path}: {one_line(error)}") from error
    finally:
        aside.unlink(missing_ok=True)


def _encoder_options(codec: str, opts: Mapping[str, str | int | float]) -> dict[str, str]:
    # One encoder thread: with more, the bytes would depend on the number of cores.
    options = {"threads": "1"} | {name: str(value) for name, value in opts.items()}
    if codec == "libx264":
        # Without it, x264's vector code gives other bytes on another CPU, and even for another place in memory.
        given = options.get("x264-params")
        options["x264-params"] = "cpu-independent=1" + (f":{given}" if given else "")
    return options


def _container_options(path: Path) -> dict[str, str]:
    options = {"fflags": "+bitexact"}
    if path.suffix.lower() in (".mp4", ".m4v", ".mov"):
        options["movflags"] = "+faststart"  # the index at the front: a cut copy is noticed at once
    return options
