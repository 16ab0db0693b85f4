"""How many frames a video holds, beside how many its container promises.

In: a path. Out: `FrameCount`, by a walk over all packets of the stream that is read; nothing is decoded.
"""

from pathlib import Path
from typing import NamedTuple

import av
import av.error

from hwm.data.decoding import main_stream, one_line
from hwm.errors import DataError


class FrameCount(NamedTuple):
    """Frames of a stream, and what the container's header says; None where it says nothing."""

    shown: int
    hidden: int
    """Cut by an edit list: stored, never shown."""
    promised: int | None
    container_duration_sec: float | None
    """Of the whole file, sound included."""


def count_frames(path: Path) -> FrameCount:
    """Count the frames of a video.

    Raises:
        DataError: no video stream, or the file is cut off before its end.
    """
    shown = hidden = 0
    try:
        with av.open(str(path), container_options={"protocol_whitelist": "file"}) as container:
            stream = main_stream(container)
            if stream is None:
                raise DataError(f"cannot read video {path}: it has no video stream")
            for packet in container.demux(stream):
                if packet.size > 0:
                    hidden += packet.is_discard
                    shown += not packet.is_discard
            duration = container.duration
            seconds = None if duration is None else duration / av.time_base
            return FrameCount(shown, hidden, stream.frames or None, seconds)
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"cannot read video {path}: it is cut off before its end ({one_line(error)})", fix="fetch the file again"
        ) from error
