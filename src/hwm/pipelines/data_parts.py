"""What a recipe expects of its data, part by part, before any video is opened.

`data` or `annotations` of a recipe -> for `train` and `val` a `Part`: each expected take or video with its path, or the
reason why there is none, and the counts of the intersection. A reader of another annotation format comes in by
`locate`: the takes it names, and where each one's video is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnnotationConfig, ClipDataConfig
from hwm.data.clips import name_videos
from hwm.data.exclusions import Exclusion
from hwm.data.keystep import LocatedTake, locate_takes
from hwm.data.takes import read_json


class Expected(NamedTuple):
    """One take or video that the recipe leads to; exactly one of path and reason is set."""

    item: str
    path: Path | None
    reason: str | None
    chosen_as: str
    annotated_duration_sec: float | None = None
    is_of_another_split: bool = False
    """`splits.json` beside the annotations files it under another part."""


class Part(NamedTuple):
    """`train` or `val`; expected = len(items) + len(excluded)."""

    items: tuple[Expected, ...]
    excluded: tuple[Exclusion, ...]
    expected: int
    counts: dict[str, int]


def annotated_parts(config: AnnotationConfig) -> dict[str, Part]:
    """The takes of both annotation files: annotated, in the metadata, on disk.

    Raises:
        DataError: a file is missing or malformed, or two videos fit one take.
    """
    splits = _splits(config.train.parent / "splits.json")
    return {
        "train takes": _annotated_part("train", config.train, config, splits),
        "val takes": _annotated_part("val", config.val, config, splits),
    }


def named_parts(data: ClipDataConfig) -> dict[str, Part]:
    """The videos that `data.train` and `data.val` name.

    Raises:
        DataError: a source is missing, empty or malformed.
    """
    parts = {}
    for part, sources in (("train", data.train), ("val", data.val)):
        named = name_videos(sources, data.glob)
        items = tuple(Expected(str(path), path, None, f"named by data.{part}") for path in named.paths)
        counts = {"named": named.expected, "on disk": sum(path.exists() for path in named.paths)}
        parts[f"{part} videos"] = Part(items, named.excluded, named.expected, counts)
    return parts


def locate(annotation: Path, config: AnnotationConfig) -> dict[str, LocatedTake]:
    """The takes of one annotation file and where the video of each is, by the reader of the file's format.

    Raises:
        DataError: the file is malformed, or two videos fit one take.
    """
    return locate_takes(annotation, config)


def _annotated_part(part: str, annotation: Path, config: AnnotationConfig, splits: Mapping[str, str] | None) -> Part:
    takes = locate(annotation, config)
    items = tuple(_expected(part, f"{annotation.name}#{key}", found, splits) for key, found in takes.items())
    counts = {"annotated": len(takes)}
    if config.takes is not None:
        counts["in takes.json"] = sum(found.take is not None for found in takes.values())
    if splits is not None:
        uids = [found.take.uid for found in takes.values() if found.take is not None]
        counts["in splits.json"] = sum(splits.get(uid or "") == part for uid in uids)
    counts["on disk"] = sum(found.located.path is not None for found in takes.values())
    return Part(items, (), len(items), counts)


def _expected(part: str, item: str, found: LocatedTake, splits: Mapping[str, str] | None) -> Expected:
    take, (path, reason, chosen_as) = found
    entry: dict[str, Any] = (take.entry if take is not None else None) or {}
    said = entry.get("duration_sec")
    seconds = float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None
    listed = splits.get((take.uid or "") if take is not None else "") if splits is not None else None
    return Expected(item, path, reason, chosen_as, seconds, listed is not None and listed != part)


def _splits(path: Path) -> dict[str, str] | None:
    """Part of each take; None where there is no such file beside the annotations."""
    if not path.is_file():
        return None
    document = read_json(path)
    listed = document.get("take_uid_to_split") if isinstance(document, dict) else None
    if not isinstance(listed, dict):
        return None
    return {uid: part for uid, part in listed.items() if isinstance(part, str)}
