"""Ego-Exo4D key-step annotations, official, benchmark or hand-written, joined with the videos on disk.

In: `keystep_train.json` / `keystep_val.json` ({"annotations": {take: {"segments": [...]}}, "vocabulary": {...}}), or
a flat {"segments": [...]} as in `keystep_benchmark/`. Out: a `SegmentTable`. Every field is optional in practice: what
cannot be used becomes an `Exclusion` with its reason, and expected = used + excluded is checked. Repeated segments are
kept (the annotators wrote them, upstream scores them) and counted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnnotationConfig
from hwm.data.exclusions import Exclusion, check_coverage, summarise
from hwm.data.manifest import known_videos
from hwm.data.segments import ClassTable, Segment, SegmentTable
from hwm.data.takes import Located, Take, TakeIndex, read_json
from hwm.data.video import VideoInfo
from hwm.errors import DataError


class _Row(NamedTuple):
    """One segment as the file has it."""

    item: str
    take_key: str
    fields: dict[str, Any]


class _AnnotatedTake(NamedTuple):
    """One take as the file has it."""

    uid: str | None
    name: str | None
    scenario: str


class _Parsed(NamedTuple):
    rows: list[_Row]
    takes: dict[str, _AnnotatedTake]
    vocabulary: dict[str, Any]
    broken: list[Exclusion]
    """Entries that hold no readable segments; each counts as one expected item."""


class LocatedTake(NamedTuple):
    """One annotated take and where its video is."""

    take: Take | None
    """None where `takes.json` does not have it."""
    located: Located


class _FoundVideo(NamedTuple):
    """A take joined with its video; exactly one of `video` and `reason` is set."""

    take: Take | None
    video: VideoInfo | None
    reason: str | None


def locate_takes(annotation: Path, config: AnnotationConfig) -> dict[str, LocatedTake]:
    """Where the video of each annotated take is; no video is opened.

    Args:
        annotation: the JSON file.
        config: where the videos are and which view is wanted; see `hwm.data.takes`.

    Returns:
        By the key that the annotation files the take under, in the file's order.

    Raises:
        DataError: the JSON is malformed, or two videos fit one take.
    """
    return _locate(_parse(annotation), TakeIndex(config))


def read_keystep(annotation: Path, config: AnnotationConfig, classes: ClassTable | None) -> SegmentTable:
    """Read one annotation file.

    Args:
        annotation: the JSON file.
        config: where the videos are and which view is wanted; see `hwm.data.takes`.
        classes: the training file's table, for validation; None builds the table from the usable segments of this file.

    Returns:
        The usable segments in the file's order, the class table, and an exclusion for each annotated segment that is
        not used (and for each take entry without a list of segments). `expected` counts both.

    Raises:
        DataError: the JSON is malformed, two videos fit one take, or no segment is left.
    """
    parsed = _parse(annotation)
    index = TakeIndex(config)
    videos = _find_videos(parsed, index, config.manifest)
    excluded = list(parsed.broken)
    usable: list[_Row] = []
    for row in parsed.rows:
        reason = _fault(row.fields) or _video_fault(row.fields, videos[row.take_key])
        if reason is None and classes is not None and row.fields["step_unique_id"] not in classes:
            reason = "class not in training"
        if reason is None:
            usable.append(row)
        else:
            excluded.append(Exclusion(row.item, reason))
    expected = len(parsed.rows) + len(parsed.broken)
    if not usable:
        causes = "; ".join(f"{count} × {reason}" for reason, count in summarise(excluded).items())
        raise DataError(
            f"no usable segment in {annotation} with the videos of {config.videos}",
            expected="at least one segment with start_time, end_time, step_unique_id and a readable video",
            found=causes or "no segments at all",
            fix="check annotations.videos, annotations.takes, annotations.view and annotations.resolution",
        )
    table = classes if classes is not None else _class_table(usable, parsed.vocabulary)
    previous = _previous_labels(parsed.rows, table)
    segments = tuple(_segment(row, parsed, videos[row.take_key], table, previous[row.item]) for row in usable)
    check_coverage(f"the reader of {annotation}", expected, len(segments), len(excluded))
    counts = {
        "takes annotated": len(parsed.takes),
        "takes with a readable video": sum(found.video is not None for found in videos.values()),
        "repeated segments kept": _count_repeats(usable),
    }
    if config.takes is not None:
        counts["takes in takes.json"] = sum(found.take is not None for found in videos.values())
    return SegmentTable(segments, table, tuple(excluded), expected, counts)


def _parse(annotation: Path) -> _Parsed:
    document = read_json(annotation)
    shape = '{"annotations": {"<take_uid or name>": {"segments": [...]}}} or {"segments": [{"take_name": ..., ...}]}'
    if not isinstance(document, dict):
        raise DataError(f"{annotation} has the wrong shape", expected=shape, found=type(document).__name__)
    vocabulary = document.get("vocabulary")
    parsed = _Parsed([], {}, vocabulary if isinstance(vocabulary, dict) else {}, [])
    annotations, flat = document.get("annotations"), document.get("segments")
    if isinstance(annotations, dict):
        for key, entry in annotations.items():
            _add_take(parsed, annotation.name, key, entry)
    elif isinstance(annotations, list):
        for number, entry in enumerate(annotations):
            key = _key(entry) if isinstance(entry, dict) else None
            _add_take(parsed, annotation.name, key or f"annotations[{number}]", entry)
    elif isinstance(flat, list):
        _add_flat(parsed, annotation.name, flat)
    else:
        raise DataError(f"{annotation} has the wrong shape", expected=shape, found=f"keys {sorted(document)[:10]}")
    return parsed


def _add_take(parsed: _Parsed, file: str, key: str, entry: object) -> None:
    segments = entry.get("segments") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(segments, list) or key in parsed.takes:
        reason = "the take is annotated twice" if key in parsed.takes else "the take has no list of segments"
        parsed.broken.append(Exclusion(f"{file}#{key}", reason))
        return
    parsed.takes[key] = _annotated_take(entry)
    for number, fields in enumerate(segments):
        _add_row(parsed, f"{file}#{key}[{number}]", key, fields)


def _add_flat(parsed: _Parsed, file: str, segments: list[Any]) -> None:
    for number, fields in enumerate(segments):
        item = f"{file}#segments[{number}]"
        key = _key(fields) if isinstance(fields, dict) else ""
        if key is None:
            parsed.broken.append(Exclusion(item, "the segment names no take"))
            continue
        if _add_row(parsed, item, key, fields):
            parsed.takes.setdefault(key, _annotated_take(fields))


def _add_row(parsed: _Parsed, item: str, key: str, fields: object) -> bool:
    if not isinstance(fields, dict):
        parsed.broken.append(Exclusion(item, "the segment is not an object"))
        return False
    parsed.rows.append(_Row(item, key, fields))
    return True


def _key(fields: dict[str, Any]) -> str | None:
    return next((str(fields[name]) for name in ("take_uid", "take_name") if fields.get(name)), None)


def _annotated_take(entry: dict[str, Any]) -> _AnnotatedTake:
    uid, name, scenario = (entry.get(key) for key in ("take_uid", "take_name", "scenario"))
    return _AnnotatedTake(str(uid) if uid else None, str(name) if name else None, str(scenario or ""))


def _locate(parsed: _Parsed, index: TakeIndex) -> dict[str, LocatedTake]:
    found: dict[str, LocatedTake] = {}
    for key, annotated in parsed.takes.items():
        take = index.take(key, annotated.uid, annotated.name)
        nowhere = Located(None, "the take is not in takes.json")
        found[key] = LocatedTake(take, nowhere if take is None else index.locate(take))
    return found


def _find_videos(parsed: _Parsed, index: TakeIndex, manifest: Path | None) -> dict[str, _FoundVideo]:
    """The video of each annotated take, located first (cheap) and then probed, each file once."""
    takes = _locate(parsed, index)
    videos = {key: _FoundVideo(found.take, None, found.located.reason) for key, found in takes.items()}
    paths = {key: found.located.path for key, found in takes.items() if found.located.path is not None}
    for key, known in zip(paths, known_videos(list(paths.values()), manifest), strict=True):
        if isinstance(known, str):
            videos[key] = videos[key]._replace(reason=f"unreadable video: {known}")
        else:
            videos[key] = videos[key]._replace(video=known)
    return videos


def _fault(fields: dict[str, Any]) -> str | None:
    """What is wrong with a segment by itself."""
    for name in ("start_time", "end_time", "step_unique_id"):
        if fields.get(name) is None:
            return f"no {name}"
    start, end, class_id = fields["start_time"], fields["end_time"], fields["step_unique_id"]
    for name, value in (("start_time", start), ("end_time", end)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} is not a number"
    if isinstance(class_id, bool) or not isinstance(class_id, int):
        return "step_unique_id is not an integer"
    if start < 0:
        return "start_time is negative"
    if end <= start:
        return "end_time is not after start_time"
    return None


def _video_fault(fields: dict[str, Any], found: _FoundVideo) -> str | None:
    if found.video is None:
        return found.reason
    return "starts after the end of the video" if fields["start_time"] >= found.video.duration_sec else None


def _class_table(rows: Sequence[_Row], vocabulary: dict[str, Any]) -> ClassTable:
    """Ids of the usable segments, ascending; names from the vocabulary, else from the first segment that has one."""
    names: dict[int, str] = {}
    for row in rows:
        class_id = row.fields["step_unique_id"]
        name = vocabulary.get(str(class_id)) or row.fields.get("step_name")
        if name and class_id not in names:
            names[class_id] = str(name)
    ids = sorted({row.fields["step_unique_id"] for row in rows})
    return ClassTable(tuple(ids), tuple(names.get(class_id, f"step {class_id}") for class_id in ids))


def _previous_labels(rows: Sequence[_Row], classes: ClassTable) -> dict[str, int | None]:
    """For each row, the label of the last segment of its take that starts strictly before it.

    Strictly, because a repeated segment must not be told its own label. Segments that are excluded for another reason
    still count as what happened before.
    """
    timed: dict[str, list[_Row]] = {}
    for row in rows:
        start = row.fields.get("start_time")
        if isinstance(start, int | float) and math.isfinite(start):
            timed.setdefault(row.take_key, []).append(row)
    previous: dict[str, int | None] = {row.item: None for row in rows}
    for take_rows in timed.values():
        ordered = sorted(take_rows, key=lambda row: row.fields["start_time"])  # stable: the file's order among equals
        before: _Row | None = None  # the last row of an earlier start
        for number, row in enumerate(ordered):
            if number and ordered[number - 1].fields["start_time"] < row.fields["start_time"]:
                before = ordered[number - 1]
            class_id = before.fields.get("step_unique_id") if before is not None else None
            if isinstance(class_id, int) and class_id in classes:
                previous[row.item] = classes.index(class_id)
    return previous


def _segment(row: _Row, parsed: _Parsed, found: _FoundVideo, classes: ClassTable, previous: int | None) -> Segment:
    assert found.video is not None
    assert found.take is not None
    entry = found.take.entry or {}
    participant = entry.get("participant_uid")
    scenario = parsed.takes[row.take_key].scenario or str(entry.get("task_name") or "")
    return Segment(
        video=found.video,
        start_sec=float(row.fields["start_time"]),
        end_sec=float(row.fields["end_time"]),
        label=classes.index(row.fields["step_unique_id"]),
        previous_label=previous,
        take=found.take.name or found.take.uid or row.take_key,
        participant=None if participant is None else str(participant),
        scenario=scenario,
        row=row.item,
    )


def _count_repeats(rows: Sequence[_Row]) -> int:
    keys = Counter(
        (row.take_key, row.fields["start_time"], row.fields["end_time"], row.fields["step_unique_id"]) for row in rows
    )
    return sum(count - 1 for count in keys.values())
