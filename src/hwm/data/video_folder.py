"""Videos found by the name of their file, at any depth below one folder.

In: a folder, a name such as `P01_01` or a `clip_uid`. Out: the path of `<name>.mp4` (any video suffix, any case), or
the reason why there is none. Where a data set puts its files differs between releases and downloaders
(`P01/videos/P01_01.MP4`, `v2/full_scale/<uid>.mp4`, `clips/<uid>.mp4`); the name of the file does not.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hwm.data.clips import VIDEO_SUFFIXES
from hwm.data.files import as_one_reads_it
from hwm.errors import DataError


class Located(NamedTuple):
    """Where a video is; exactly one of path and reason is set."""

    path: Path | None
    reason: str | None
    chosen_as: str = ""
    """Why this file, in a few words."""
    annotated_duration_sec: float | None = None
    """How long the metadata say it is."""


class VideoFolder:
    """All videos below a folder, by the name of the file without its suffix.

    Args:
        root: the folder; it is walked once, links to folders are followed, each folder once.

    Raises:
        DataError: the folder does not exist.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise DataError(
                f"the folder of videos {root} does not exist",
                expected="a folder that holds the videos, at any depth",
                fix="set annotations.videos",
            )
        self._paths: dict[str, list[Path]] = {}
        for path in sorted(_videos_below(root)):
            self._paths.setdefault(as_one_reads_it(path.stem), []).append(path)

    def locate(self, name: str) -> Located:
        """The one video of this name.

        Raises:
            DataError: two files have the name; the message gives both.
        """
        found = self._paths.get(as_one_reads_it(name), [])
        if len(found) > 1:
            raise DataError(
                f"there is more than one video called {name}",
                expected="one",
                found=" and ".join(str(path) for path in found[:3]),
                fix="point annotations.videos to the folder of one of them, or take the others away",
            )
        return Located(found[0], None, "named after it") if found else Located(None, "the video file is not on disk")


def _videos_below(root: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would be walked for ever
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(folder, file)
