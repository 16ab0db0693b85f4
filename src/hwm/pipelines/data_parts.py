"""What a recipe expects of its data, part by part, before any video is opened.

`data` or `annotations` of a recipe -> for `train` and `val` a `Part`: each expected take or video with its path, or the
reason why there is none, and the counts of the intersection.
"""

from pathlib import Path
from typing import NamedTuple

from hwm.config import AdaptDataConfig, AnnotationConfig, ClipDataConfig
from hwm.data.annotations import TRAIN, VAL, parse_annotations
from hwm.data.clips import name_videos
from hwm.data.exclusions import Exclusion


class Expected(NamedTuple):
    """One take or video that the recipe leads to; exactly one of path and reason is set."""

    item: str
    path: Path | None
    reason: str | None
    chosen_as: str
    annotated_duration_sec: float | None = None


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
    return {
        "train takes": _annotated_part(TRAIN, config.train, config),
        "val takes": _annotated_part(VAL, config.val, config),
    }


def named_parts(data: ClipDataConfig) -> dict[str, Part]:
    """The videos that `data.train` and `data.val` name; `hwm adapt` needs none to validate on.

    Raises:
        DataError: a source is missing, empty or malformed.
    """
    parts = {}
    for part, sources in (("train", data.train), ("val", data.val)):
        if part == "val" and not sources and isinstance(data, AdaptDataConfig):
            continue
        named = name_videos(sources, data.glob)
        items = tuple(Expected(str(path), path, None, f"named by data.{part}") for path in named.paths)
        counts = {"named": named.expected, "on disk": sum(path.exists() for path in named.paths)}
        parts[f"{part} videos"] = Part(items, named.excluded, named.expected, counts)
    return parts


def _annotated_part(split: str, file: Path, config: AnnotationConfig) -> Part:
    annotation = parse_annotations(file, config, split)
    items = tuple(
        Expected(f"{file.name}#{key}", where.path, where.reason, where.chosen_as, where.annotated_duration_sec)
        for key, where in annotation.videos.items()
    )
    on_disk = sum(item.path is not None for item in items)
    counts = {"annotated": len(items)} | dict(annotation.counts) | {"on disk": on_disk}
    return Part(items, (), len(items), counts)
