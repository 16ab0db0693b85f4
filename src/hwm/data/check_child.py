"""The child process of `hwm.data.checking`: `python -m hwm.data.check_child`.

In: one path a line, as JSON, on the standard input. Out: `{"ready": true}` once, then one JSON object a path, either
{"facts": {...}} (the fields of `hwm.data.manifest.VideoFacts`) or {"reason": ..., "detail": ...}. A process of its own,
because a decoder that hangs or crashes inside C code can only be ended from outside; one for many videos, because its
start costs more than a check.
"""

import json
import sys
from pathlib import Path
from typing import Any

from hwm.data.content import content_sha256
from hwm.data.decoding import FrameCursor
from hwm.data.frame_count import count_frames
from hwm.data.video import probe_video
from hwm.errors import DataError


def facts_of(path: Path) -> dict[str, Any]:
    """Probe a video, decode its first, middle and last frame, count its frames and hash its bytes.

    The last frame is the last one that the container promises; a file whose frames end before it is refused.

    Raises:
        DataError: as `probe_video`; also if one of the three frames cannot be decoded.
    """
    info = probe_video(path)
    with FrameCursor(path) as cursor:
        last_sec, end_sec = cursor.last_frame_span()
        for name, time_sec in (("first", 0.0), ("middle", end_sec / 2), ("last", last_sec)):
            try:
                cursor.frame_at(min(time_sec, last_sec))
            except DataError as error:
                raise DataError(
                    f"cannot read video {path}: its {name} frame cannot be decoded", found=error.problem
                ) from error
    counts = count_frames(path)
    try:
        digest = content_sha256(path)
    except OSError as error:
        raise DataError(f"cannot read video {path}: {error.strerror or error}") from error
    return {
        "sha256": digest,
        "duration_sec": info.duration_sec,
        "container_duration_sec": counts.container_duration_sec,
        "fps": info.fps,
        "frames": counts.shown,
        "frames_promised": counts.promised,
        "frames_hidden": counts.hidden,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "num_streams": info.num_streams,
    }


def answer(path: Path) -> dict[str, Any]:
    """The answer for one video; the reason does not name the path, so that reasons can be counted."""
    try:
        return {"facts": facts_of(path)}
    except DataError as error:
        reason = error.problem
        for start in (f"cannot read video {path}: ", f"cannot decode video {path}: "):
            reason = reason.removeprefix(start)
        return {"reason": reason, "detail": error.found}


def main() -> None:
    """Answer for every path that is asked, until the standard input ends."""
    _say({"ready": True})
    for line in sys.stdin:
        _say(answer(Path(json.loads(line))))


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
