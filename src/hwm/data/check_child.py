"""The child process of `hwm.data.video.check_video`: `python -m hwm.data.check_child VIDEO`.

In: one path. Out: one JSON object on the standard output, either {"info": [VideoInfo without its path]} or
{"error": {problem, expected, found, fix}}. A process of its own, because a decoder that hangs or crashes inside C code
can only be ended from outside.
"""

import json
import sys
from pathlib import Path

from hwm.data.decoding import FrameCursor
from hwm.data.video import VideoInfo, probe_video
from hwm.errors import DataError


def check_first_and_last(path: Path) -> VideoInfo:
    """Probe a video (which decodes its first frame), then decode the last frame that its container promises.

    Raises:
        DataError: as `probe_video`; also if the frames that can be decoded end before the promised ones.
    """
    info = probe_video(path)
    with FrameCursor(path) as cursor:
        start_sec, _ = cursor.last_frame_span()
        cursor.frame_at(start_sec)
    return info


def main(path: Path) -> None:
    """Write the answer for one video to the standard output."""
    try:
        answer = {"info": check_first_and_last(path)[1:]}
    except DataError as error:
        names = ("problem", "expected", "found", "fix")
        answer = {"error": {name: getattr(error, name) for name in names}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
