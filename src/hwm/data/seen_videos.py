"""Which videos a world model was trained on, so that none of their takes is scored as new.

    train_videos.json      schema, and of each training video its path, a fingerprint of its bytes, and whether only an
                           earlier part of the run was trained on it

A take is known again by its name (another view of it, or the same at another size), and a file by its fingerprint
(under another name). Both are needed: stage 1 reads lists of files, stage 2 annotations of takes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from hwm.data.content import content_sha256
from hwm.data.files import as_one_reads_it
from hwm.data.segments import Segment
from hwm.data.takes import ALIGNED
from hwm.errors import DataError, naming

FILE = "train_videos.json"
SCHEMA = 1
_ENDS_BYTES = 65_536
_NUM_THREADS = 8


class SeenVideos(NamedTuple):
    """Training videos by what they are known again by; values are their paths."""

    by_name: Mapping[str, str]
    by_fingerprint: Mapping[str, str]

    def takes_among(self, segments: Iterable[Segment]) -> dict[str, str]:
        """Take → training video, for each take of the segments that was trained on.

        Raises:
            DataError: a video of the segments cannot be read.
        """
        takes = {segment.video.path: segment.take for segment in segments}
        found = {}
        for (path, take), fingerprint in zip(takes.items(), fingerprints(list(takes)), strict=True):
            names = (as_one_reads_it(take), take_name(path))
            named = next((self.by_name[name] for name in names if name in self.by_name), None)
            video = named or self.by_fingerprint.get(fingerprint)
            if video is not None:
                found[take] = video
        return found


def take_name(path: Path) -> str:
    """The take that a video shows: the folder above `frame_aligned_videos`, or else the file's own name."""
    aligned = ALIGNED.rstrip("/")
    if aligned in path.parts[1:]:
        return as_one_reads_it(path.parts[path.parts.index(aligned, 1) - 1])
    return as_one_reads_it(path.stem)


def fingerprints(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file's size and of its first and last 64 KiB: copies have the same, and no file is read whole.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(_fingerprint, paths))


def told_copies(train: Iterable[Path], val: Iterable[Path]) -> str | None:
    """A warning that names validation videos with the bytes of a training video, under another name; None without any.

    Only files whose size is that of one of the other part are read, and of these the ends.

    Raises:
        DataError: a file cannot be read.
    """
    of_size: dict[int, tuple[list[Path], list[Path]]] = {}
    for part, paths in enumerate((train, val)):
        for path in dict.fromkeys(paths):
            of_size.setdefault(_size(path), ([], []))[part].append(path)
    alike = [both for both in of_size.values() if all(both)]
    known = [path for both in alike for path in both[0]]
    asked = [path for both in alike for path in both[1]]
    marks = dict(zip(fingerprints(known), known, strict=True))
    copies = [(path, marks[mark]) for path, mark in zip(asked, fingerprints(asked), strict=True) if mark in marks]
    if not copies:
        return None
    shown = ", ".join(f"{path} (of {of})" for path, of in copies[:3]) + ", …" * (len(copies) > 3)
    return f"copies of training videos are among those of validation, whose scores they flatter: {len(copies)}: {shown}"


def write_seen(
    folder: Path, videos: Sequence[Path], *, go_on: bool, warn: Callable[[str], None]
) -> dict[str, str | int]:
    """Write `train_videos.json` into a run folder.

    Args:
        folder: of the run.
        videos: what it trains on from now on.
        go_on: keep the videos of its earlier part.
        warn: called where they are not those that it was at last trained on, with what differs.

    Returns:
        What `run.json` says of it: the number of videos and the file's sha256.

    Raises:
        DataError: a video cannot be read, or the file of the earlier part is damaged.
    """
    last, before = _read(folder / FILE) if go_on and (folder / FILE).exists() else _Known({}, {})
    now = dict(zip(map(str, videos), fingerprints(videos), strict=True))
    if last and (changes := _changes(last, now)):
        warn(
            f"the training videos are not those of the run's earlier part: {'; '.join(changes)}. Clips and their order "
            "differ from here on, so the run is no longer what one started now would be"
        )
    rows = [{"path": path, "fingerprint": fingerprint} for path, fingerprint in now.items()]
    left = {path: fingerprint for path, fingerprint in (last | before).items() if path not in now}
    rows += [{"path": path, "fingerprint": fingerprint, "earlier": True} for path, fingerprint in left.items()]
    aside = folder / f"{FILE}.tmp"
    with naming(folder / FILE):
        aside.write_text(json.dumps({"schema_version": SCHEMA, "videos": rows}, indent=1) + "\n", encoding="utf-8")
        aside.replace(folder / FILE)
    return {"count": len(rows), "sha256": content_sha256(folder / FILE)}


def read_seen(folder: Path, recorded: Mapping[str, object] | None) -> SeenVideos | None:
    """The training videos of a stage-1 run; None where the run is older than this record.

    Args:
        folder: of the run.
        recorded: what its `run.json` says of the file.

    Raises:
        DataError: the file is missing, damaged, or not the one that the run wrote.
    """
    if recorded is None:
        return None
    path = folder / FILE
    last, before = _read(path)
    known = last | before
    if content_sha256(path) != recorded.get("sha256"):
        raise _damaged(path, "other content than run.json says")
    return SeenVideos(
        {take_name(Path(video)): video for video in known}, {mark: video for video, mark in known.items()}
    )


def _changes(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two sets of videos, path → fingerprint; files that were only moved do not."""
    moved = {earlier[path] for path in earlier.keys() - now.keys()} & set(now.values())
    changes = {
        "added": [path for path in now if path not in earlier and now[path] not in moved],
        "gone": [path for path in earlier if path not in now and earlier[path] not in moved],
        "changed": [path for path in now if now[path] != earlier.get(path, now[path])],
    }
    told = [
        f"{len(paths)} {what} ({', '.join(paths[:3])}{', …' * (len(paths) > 3)})"
        for what, paths in changes.items()
        if paths
    ]
    orders = [dict.fromkeys(part.values()) for part in (earlier, now)]
    if not told and list(orders[0]) != list(orders[1]):
        told = ["they stand in another order"]
    return told


class _Known(NamedTuple):
    """Training videos of a run, path → fingerprint."""

    last: dict[str, str]
    before: dict[str, str]
    """Those that only parts before the last one had."""


def _read(path: Path) -> _Known:
    try:
        tree = json.loads(path.read_bytes())
        if tree["schema_version"] != SCHEMA:
            raise ValueError(f"schema {tree['schema_version']}")
        known = _Known({}, {})
        for row in tree["videos"]:
            known[bool(row.get("earlier", False))][str(row["path"])] = str(row["fingerprint"])
        return known
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} cannot be used, so nobody can say which videos the world model was trained on",
        expected=f"the file that stage 1 wrote (schema {SCHEMA})",
        found=found,
        fix="put it back, or train stage 1 again",
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", fix="hwm data check CONFIG") from error


def _fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            ends = file.read(_ENDS_BYTES)
            file.seek(max(0, size - _ENDS_BYTES))
            ends += file.read(_ENDS_BYTES)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", fix="hwm data check CONFIG") from error
    return hashlib.sha256(f"{size}\n".encode() + ends).hexdigest()
