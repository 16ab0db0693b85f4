"""Ego4D Goal-Step annotations, joined with the videos on disk.

In: `goalstep_train.json` / `goalstep_val.json` ({"videos": [{"video_uid", "segments": [{..., "segments": [...]}]}]}).
Out: a `SegmentTable` of one task, `step`: the steps, or the sub-steps nested in them. The class is `step_category`.
Steps that go on with an interrupted one (`is_continued`) and those whose relevance is `unsure` are kept and counted.
Videos are found by `<video_uid>.mp4` at any depth, as in `v2/full_scale/<video_uid>.mp4`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import AnnotationConfig
from hwm.data.exclusions import Exclusion
from hwm.data.files import read_json
from hwm.data.keystep import STEP
from hwm.data.rows import Annotation, Row, fault_of, finite
from hwm.data.video_folder import Located, VideoFolder
from hwm.errors import DataError


class _Parsed(NamedTuple):
    rows: list[Row]
    broken: list[Exclusion]
    videos: dict[str, Located]
    counts: Counter[str]


def read_goalstep(annotation: Path, config: AnnotationConfig, split: str) -> Annotation:
    """Read one annotation file; arguments and errors as `hwm.data.annotations.parse_annotations`."""
    del split  # these annotations do not say which they are
    document = read_json(annotation)
    entries = document.get("videos") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise DataError(
            f"{annotation} has the wrong shape", expected='{"videos": [{"video_uid": ..., "segments": [...]}]}'
        )
    if entries and all(isinstance(entry, dict) and "step_segments" in entry for entry in entries):
        raise DataError(
            f"{annotation} has no labels",
            expected="videos with `segments`",
            found="the test split, whose labels are not public",
            fix="train on goalstep_train.json and score on goalstep_val.json",
        )
    folder = VideoFolder(config.videos)
    parsed = _Parsed([], [], {}, Counter())
    for index, entry in enumerate(entries):
        _add_video(parsed, annotation.name, index, entry, folder, config.level)
    return Annotation(
        file=annotation,
        tasks=(STEP,),
        rows=parsed.rows,
        broken=parsed.broken,
        videos=parsed.videos,
        needs="start_time, end_time, step_category",
        counts=parsed.counts,
    )


def _add_video(parsed: _Parsed, file: str, index: int, entry: object, folder: VideoFolder, level: str) -> None:
    uid = entry.get("video_uid") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(uid, str) or not uid:
        parsed.broken.append(Exclusion(f"{file}#videos[{index}]", "the entry names no video"))
        return
    steps = entry.get("segments")
    if not isinstance(steps, list) or uid in parsed.videos:
        reason = "the video is annotated twice" if uid in parsed.videos else "the video has no list of segments"
        parsed.broken.append(Exclusion(f"{file}#{uid}", reason))
        return
    parsed.videos[uid] = folder.locate(uid)
    goal = str(entry.get("goal_category") or "")
    for number, step in enumerate(steps):
        item = f"{file}#{uid}[{number}]"
        if level == "step":
            _add_segment(parsed, item, uid, goal, step)
            continue
        inner = step.get("segments") if isinstance(step, dict) else None
        if isinstance(inner, list) and inner:
            for place, substep in enumerate(inner):
                _add_segment(parsed, f"{item}[{place}]", uid, goal, substep)
        elif isinstance(step, dict) and not inner:
            parsed.counts["steps without sub-steps"] += 1
        else:
            parsed.broken.append(Exclusion(item, "the step has no list of sub-steps"))


def _add_segment(parsed: _Parsed, item: str, uid: str, goal: str, fields: object) -> None:
    if not isinstance(fields, dict):
        parsed.broken.append(Exclusion(item, "the segment is not an object"))
        return
    # Optional in practice: one released step lacks all three, and `unsure` is not in the documentation.
    parsed.counts["annotated as continued"] += fields.get("is_continued") is True
    parsed.counts["annotated as unsure"] += fields.get("is_relevant") == "unsure"
    parsed.counts["annotated without is_continued"] += "is_continued" not in fields
    start = finite(fields.get("start_time"))
    category = fields.get("step_category")
    parsed.rows.append(
        Row(
            item=item,
            video=uid,
            fault=fault_of(fields, "start_time", "end_time", ()) or _category_fault(fields),
            start_sec=start or 0.0,
            end_sec=finite(fields.get("end_time")) or 0.0,
            order=start,
            ids=(category if isinstance(category, str) and category else None,),
            names=(category if isinstance(category, str) else "",),
            take=uid,
            participant=None,
            scenario=goal,
        )
    )


def _category_fault(fields: Mapping[str, Any]) -> str | None:
    category = fields.get("step_category")
    if category is None or category == "":
        return "no step_category"
    return None if isinstance(category, str) else "step_category is not text"
