"""From a take of Ego-Exo4D (or of a plain folder of videos) to the one video file of the wanted view.

In: `takes.json` or nothing, a dataset root, a view and a resolution. Out: a path, or the reason why there is none.
There is never a fallback to another view: the wrong view would train without complaint. A plain folder holds one view,
whatever the recipe calls it. Formats as in the Ego-Exo4D documentation.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from hwm.config import AnnotationConfig
from hwm.data.clips import VIDEO_SUFFIXES
from hwm.data.files import as_one_reads_it, read_json
from hwm.data.video_folder import Located
from hwm.errors import DataError

ALIGNED = "frame_aligned_videos/"
DOWNSCALED = "frame_aligned_videos/downscaled/448/"
PSEUDO_CAMERAS = frozenset({"collage", "best_exo"})
"""Entries of `frame_aligned_videos` that are not cameras."""


class Take(NamedTuple):
    """What the annotation and `takes.json` say about a take."""

    uid: str | None
    name: str | None
    entry: dict[str, Any] | None
    """Its row of `takes.json`, if that file is used."""


class TakeIndex:
    """Finds a take's video.

    Args:
        config: root folder, `takes.json` (or none), view and resolution.

    Raises:
        DataError: a folder or file is missing or malformed, or the settings contradict the layout.
    """

    def __init__(self, config: AnnotationConfig) -> None:
        self._config = config
        if not config.videos.is_dir():
            raise DataError(
                f"the folder of videos {config.videos} does not exist",
                expected="a dataset root with takes/, or a folder with videos named after the takes",
                fix="set annotations.videos",
            )
        self._by_uid: dict[str, dict[str, Any]] = {}
        self._by_name: dict[str, list[dict[str, Any]]] = {}
        self._plain: dict[str, list[Path]] | None = None
        if config.takes is not None:
            self._index_takes(config.takes)
        elif not (config.videos / "takes").is_dir():
            if config.resolution != "full":
                raise DataError(
                    f"annotations.resolution is {config.resolution}, but {config.videos} is a plain folder",
                    expected="a dataset root that holds takes/<take>/frame_aligned_videos/downscaled/448",
                    fix="set annotations.resolution=full",
                )
            self._plain = {}
            for path in sorted(config.videos.iterdir()):
                if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
                    self._plain.setdefault(as_one_reads_it(path.stem), []).append(path)

    def take(self, key: str, uid: str | None, name: str | None) -> Take | None:
        """The take that an annotation means; None if `takes.json` is used and does not have it.

        Args:
            key: what the annotation files it under: the uid, or the name in hand-written files.
            uid: its `take_uid`, if given.
            name: its `take_name`, if given.
        """
        if self._config.takes is None:
            return Take(uid or key, name or key, None)
        entry = self._by_uid.get(uid or key)
        if entry is None and uid is None:
            named = self._by_name.get(name or key, [])
            if len(named) > 1:
                uids = " and ".join(str(row.get("take_uid")) for row in named)
                raise DataError(f"two takes of {self._config.takes} are called {name or key!r}: {uids}")
            entry = named[0] if named else None
        if entry is None:
            return None
        return Take(_text(entry.get("take_uid")), _text(entry.get("take_name")) or name, entry)

    def locate(self, take: Take) -> Located:
        """The video of the configured view.

        Raises:
            DataError: two files fit equally well; the message names both.
        """
        if any(name is not None and PurePosixPath(name).name != name for name in (take.uid, take.name)):
            return Located(None, "the take's name is not a file name")
        if take.entry is not None and take.entry.get("is_dropped") is True:
            return Located(None, "the take is dropped in takes.json")
        if take.entry is not None:
            located = self._from_entry(take, take.entry)
        elif self._plain is not None:
            names = dict.fromkeys(as_one_reads_it(name) for name in (take.name, take.uid) if name is not None)
            found = [path for name in names for path in self._plain.get(name, [])]
            located = self._only(take, found, "no video named after the take", "named after the take")
        else:
            located = self._from_layout(take)
        if located.path is not None and not located.path.exists():
            return located._replace(path=None, reason="the video file is not on disk")
        return located

    def _index_takes(self, path: Path) -> None:
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} has the wrong shape", expected="a list of takes", found=type(rows).__name__)
        for row in rows:
            uid, name = _text(row.get("take_uid")), _text(row.get("take_name"))
            if uid is not None and uid in self._by_uid:
                raise DataError(f"{path} has the take {uid} twice")
            if uid is not None:
                self._by_uid[uid] = row
            if name is not None:
                self._by_name.setdefault(name, []).append(row)

    def _from_entry(self, take: Take, entry: dict[str, Any]) -> Located:
        view = self._config.view
        videos = entry.get("frame_aligned_videos")
        cameras = videos if isinstance(videos, dict) else {}
        found, chosen = [], []
        for camera, streams in cameras.items():
            if camera in PSEUDO_CAMERAS or not isinstance(streams, dict) or (view != "ego" and camera != view):
                continue
            # An Aria has an "rgb" stream beside its tracking cameras; other cameras have one stream, called "0".
            names = ["rgb"] if view == "ego" or "rgb" in streams else list(streams)
            streams_of_view = {name: streams[name] for name in names if isinstance(streams.get(name), dict)}
            found += [stream.get("relative_path") for stream in streams_of_view.values()]
            chosen += [f"{name} stream of {camera} in takes.json" for name in streams_of_view]
        relative = [path for path in found if isinstance(path, str) and path]
        root = _text(entry.get("root_dir")) or (f"takes/{take.name}" if take.name else None)
        if root is None:
            return Located(None, "the take has neither a root_dir nor a name in takes.json")
        if any(_leaves(path) for path in (root, *relative)):
            return Located(None, "a path in takes.json leaves the dataset's folder")
        if self._config.resolution == "448":
            if any(ALIGNED not in path for path in relative):
                return Located(None, f"its path in takes.json has no {ALIGNED}, so its 448 copy cannot be found")
            relative = [path.replace(ALIGNED, DOWNSCALED) for path in relative]
        paths = [self._config.videos / root / path for path in relative]
        return self._only(take, paths, f"takes.json has no video of the view {view}", "; ".join(chosen))

    def _from_layout(self, take: Take) -> Located:
        folder = self._config.videos / "takes" / (take.name or "")
        if take.name is None or not folder.is_dir():
            return Located(None, "the take is not on disk")
        aligned = folder / (DOWNSCALED if self._config.resolution == "448" else ALIGNED)
        view = self._config.view
        pattern = "*_214-1.mp4" if view == "ego" else f"{view}.mp4"
        found = sorted(aligned.glob(pattern)) if view == "ego" else [aligned / pattern]
        none = f"the take has no video of the view {view}"
        return self._only(take, [path for path in found if path.exists()], none, f"the take's {pattern}")

    def _only(self, take: Take, paths: Iterable[Path], none: str, chosen_as: str) -> Located:
        found = list(dict.fromkeys(paths))
        if len(found) > 1:
            raise DataError(
                f"the take {take.name or take.uid} has more than one video of the view {self._config.view}",
                expected="one",
                found=" and ".join(str(path) for path in found),
                fix="name the camera in annotations.view, or take one of the two away",
            )
        return Located(found[0], None, chosen_as) if found else Located(None, none)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _leaves(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts
