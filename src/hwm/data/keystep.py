"""Ego-Exo4D key-step annotations, official, benchmark or hand-written, joined with the videos on disk.

In: `keystep_train.json` / `keystep_val.json` ({"annotations": {take: {"segments": [...]}}, "vocabulary": {...}}), or
a flat {"segments": [...]} as in `keystep_benchmark/`. Out: a `SegmentTable` of one task, `step`. Every field is
optional in practice: what cannot be used becomes an `Exclusion` with its reason. Repeated segments are kept (the
annotators wrote them, upstream scores them) and counted. Classes are the `step_unique_id`s, or the benchmark's 278.
"""

from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnnotationConfig
from hwm.data.exclusions import Exclusion
from hwm.data.files import read_csv, read_json
from hwm.data.rows import Annotation, Row, fault_of, finite, integer, integer_in
from hwm.data.segments import ClassId
from hwm.data.takes import Take, TakeIndex
from hwm.data.video_folder import Located
from hwm.errors import DataError

STEP = "step"


class _FileRow(NamedTuple):
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
    rows: list[_FileRow]
    takes: dict[str, _AnnotatedTake]
    vocabulary: dict[str, Any]
    broken: list[Exclusion]
    """Entries that hold no readable segments; each counts as one expected item."""


class _Benchmark(NamedTuple):
    """`label_mapping.csv`: the classes of the benchmark."""

    label_of_step: dict[int, int]
    names: dict[ClassId, str]


def read_keystep(annotation: Path, config: AnnotationConfig, split: str) -> Annotation:
    """Read one annotation file; arguments and errors as `hwm.data.annotations.parse_annotations`.

    Which view and which classes are wanted is told by `config`; see `hwm.data.takes`.
    """
    parsed = _parse(annotation)
    takes = _takes(parsed, TakeIndex(config))
    split_of = None if config.splits is None else _split_of_take(config.splits)
    videos = {key: _located(found, split_of, split) for key, found in takes.items()}
    benchmark = None if config.label_mapping is None else _read_mapping(config.label_mapping)
    rows = [_row(row, parsed, takes[row.take_key].take, benchmark) for row in parsed.rows]
    names: dict[ClassId, str] = {}
    for key, name in parsed.vocabulary.items():
        step = integer_in(key)
        if step is not None and name:
            names[step] = str(name)
    counts: dict[str, int] = {}
    if config.takes is not None:
        counts["takes in takes.json"] = sum(found.take is not None for found in takes.values())
    if split_of is not None:
        counts["takes in splits.json"] = sum(found.uid in split_of for found in takes.values())
    return Annotation(
        file=annotation,
        tasks=(STEP,),
        rows=rows,
        broken=parsed.broken,
        videos=videos,
        needs="start_time, end_time, step_unique_id",
        class_names=(names if benchmark is None else benchmark.names,),
        counts=counts,
    )


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
    parsed.rows.append(_FileRow(item, key, fields))
    return True


def _key(fields: dict[str, Any]) -> str | None:
    return next((str(fields[name]) for name in ("take_uid", "take_name") if fields.get(name)), None)


def _annotated_take(entry: dict[str, Any]) -> _AnnotatedTake:
    uid, name, scenario = (entry.get(key) for key in ("take_uid", "take_name", "scenario"))
    return _AnnotatedTake(str(uid) if uid else None, str(name) if name else None, str(scenario or ""))


class _FoundTake(NamedTuple):
    """A take joined with `takes.json` and the disk."""

    uid: str
    take: Take | None
    located: Located


def _takes(parsed: _Parsed, index: TakeIndex) -> dict[str, _FoundTake]:
    found: dict[str, _FoundTake] = {}
    for key, annotated in parsed.takes.items():
        take = index.take(key, annotated.uid, annotated.name)
        located = Located(None, "the take is not in takes.json") if take is None else index.locate(take)
        said = finite((take.entry or {}).get("duration_sec")) if take is not None else None
        located = located._replace(annotated_duration_sec=said)
        found[key] = _FoundTake((take.uid if take else None) or annotated.uid or key, take, located)
    return found


def _located(found: _FoundTake, split_of: dict[str, str] | None, split: str) -> Located:
    """The take's video, unless `splits.json` says that the take belongs elsewhere."""
    if split_of is not None:
        if found.uid not in split_of:
            return Located(None, "the take is not in splits.json")
        if split_of[found.uid] != split:
            return Located(None, f"splits.json has the take in {split_of[found.uid]}, not in {split}")
    return found.located


def _split_of_take(path: Path) -> dict[str, str]:
    """Take uid → `train`, `val` or `test`."""
    document = read_json(path)
    found = document.get("take_uid_to_split") if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(value in ("train", "val", "test") for value in found.values()):
        raise DataError(
            f"{path} has the wrong shape", expected='{"take_uid_to_split": {"<take_uid>": "train", "val" or "test"}}'
        )
    return found


def _read_mapping(path: Path) -> _Benchmark:
    """`label_mapping.csv`: label_id, step_unique_id, step_name.

    Raises:
        DataError: a column is missing, a value is not a whole number, or an id stands there twice.
    """
    benchmark = _Benchmark({}, {})
    for number, row in enumerate(read_csv(path, ("label_id", "step_unique_id", "step_name")), start=1):
        label, step = integer_in(row["label_id"]), integer_in(row["step_unique_id"])
        if label is None or step is None:
            raise DataError(f"row {number} of {path} has no label_id or no step_unique_id", found=str(row)[:200])
        if step in benchmark.label_of_step or label in benchmark.names:
            raise DataError(f"row {number} of {path} repeats an id", found=f"label_id {label}, step_unique_id {step}")
        benchmark.label_of_step[step] = label
        benchmark.names[label] = row["step_name"] or f"{STEP} {label}"
    return benchmark


def _class_of(fields: dict[str, Any], benchmark: _Benchmark | None) -> tuple[ClassId | None, str | None]:
    """The class id of a segment and what is wrong with it; one of the two is None.

    In the benchmark a segment may have both ids (its own files) or `step_unique_id` alone (the full files).
    """
    if benchmark is None:
        return integer(fields.get("step_unique_id")), None
    step, label = integer(fields.get("step_unique_id")), integer(fields.get("label_id"))
    mapped = benchmark.label_of_step.get(step) if step is not None else label
    if mapped is None:
        return None, "not one of the classes of label_mapping.csv"
    if label is not None and label != mapped:
        return None, "label_id contradicts label_mapping.csv"
    return (mapped, None) if mapped in benchmark.names else (None, "label_id is not in label_mapping.csv")


def _row(row: _FileRow, parsed: _Parsed, take: Take | None, benchmark: _Benchmark | None) -> Row:
    has_label_alone = row.fields.get("step_unique_id") is None and row.fields.get("label_id") is not None
    id_field = "label_id" if benchmark is not None and has_label_alone else "step_unique_id"
    class_id, class_fault = _class_of(row.fields, benchmark)
    entry = (take.entry if take is not None else None) or {}
    participant = entry.get("participant_uid")
    start, end = finite(row.fields.get("start_time")), finite(row.fields.get("end_time"))
    return Row(
        item=row.item,
        video=row.take_key,
        fault=fault_of(row.fields, "start_time", "end_time", (id_field,)) or class_fault,
        start_sec=start or 0.0,
        end_sec=end or 0.0,
        order=start,
        ids=(class_id,),
        names=(str(row.fields.get("step_name") or ""),),
        take=(take.name or take.uid if take is not None else None) or row.take_key,
        participant=None if participant is None else str(participant),
        scenario=parsed.takes[row.take_key].scenario or str(entry.get("task_name") or ""),
    )
