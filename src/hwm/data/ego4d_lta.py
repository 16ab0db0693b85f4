"""Ego4D long-term action anticipation (forecasting of hands and objects), joined with the clips on disk.

In: `fho_lta_train.json` / `fho_lta_val.json` ({"clips": [...]}, one annotated action each) and, if given, the taxonomy.
Out: a `SegmentTable` of the tasks `verb` and `noun` (of the next Z actions) and `action` (of the next one; its id is
verb · 1000 + noun). Actions are grouped by `clip_uid` and ordered by `action_idx`; seconds are relative to the clip,
whose video is `<clip_uid>.mp4`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwm.config import AnnotationConfig
from hwm.data.epic_kitchens import ACTION_STRIDE, TASKS, action_id
from hwm.data.exclusions import Exclusion
from hwm.data.files import read_json
from hwm.data.rows import Annotation, Row, fault_of, finite, integer
from hwm.data.segments import ClassId
from hwm.data.video_folder import VideoFolder
from hwm.errors import DataError

_START, _END = "action_clip_start_sec", "action_clip_end_sec"
_LABELS = ("verb_label", "noun_label")
_Names = dict[ClassId, str]


def read_ego4d_lta(annotation: Path, config: AnnotationConfig, split: str) -> Annotation:
    """Read one annotation file; arguments and errors as `hwm.data.annotations.parse_annotations`."""
    del split  # these annotations do not say which they are
    document = read_json(annotation)
    entries = document.get("clips") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{annotation} has the wrong shape", expected='{"clips": [{"clip_uid": ..., ...}]}')
    actions = [entry for entry in entries if isinstance(entry, dict)]
    if actions and not any(_is_labelled(action) for action in actions):
        raise DataError(
            f"{annotation} has no labels",
            expected="verb_label and noun_label",
            found="the test split, whose labels are not public",
            fix="train on fho_lta_train.json and score on fho_lta_val.json",
        )
    names = None if config.taxonomy is None else _read_taxonomy(config.taxonomy)
    folder = VideoFolder(config.videos)
    rows: list[Row] = []
    broken: list[Exclusion] = []
    for index, entry in enumerate(entries):
        item = f"{annotation.name}#clips[{index}]"
        if not isinstance(entry, dict):
            broken.append(Exclusion(item, "the action is not an object"))
        elif not isinstance(entry.get("clip_uid"), str):
            broken.append(Exclusion(item, "the action names no clip"))
        else:
            rows.append(_row(item, entry, names, config.taxonomy))
    length = config.sequence_length
    return Annotation(
        file=annotation,
        tasks=TASKS,
        rows=rows,
        broken=broken,
        videos={row.video: folder.locate(row.video) for row in rows},
        needs=f"clip_uid, action_idx, {_START}, {_END}, {', '.join(_LABELS)}",
        class_names=() if names is None else (*names, {}),
        num_positions=(length, length, 1),
    )


def _is_labelled(action: Mapping[str, Any]) -> bool:
    """Other programs write the test split with -1 for labels."""
    return any((integer(action.get(name)) or 0) >= 0 for name in _LABELS if action.get(name) is not None)


def _row(item: str, fields: Mapping[str, Any], names: tuple[_Names, _Names] | None, taxonomy: Path | None) -> Row:
    words = (str(fields.get("verb") or ""), str(fields.get("noun") or ""))
    ids = tuple(integer(fields.get(name)) for name in _LABELS)
    fault = fault_of(fields, _START, _END, _LABELS)
    order = integer(fields.get("action_idx"))
    if order is None:
        fault = "no action_idx" if fields.get("action_idx") is None else "action_idx is not an integer"
    verb, noun = ids
    if fault is None and noun is not None and noun >= ACTION_STRIDE:
        fault = f"noun_label is not below {ACTION_STRIDE}"
    if names is not None and fault is None:
        fault = _taxonomy_fault(item, ids, words, names, taxonomy)
    return Row(
        item=item,
        video=fields["clip_uid"],
        fault=fault,
        start_sec=finite(fields.get(_START)) or 0.0,
        end_sec=finite(fields.get(_END)) or 0.0,
        order=order,
        ids=(verb, noun, action_id(verb, noun)),
        names=(*words, " ".join(words) if all(words) else ""),
        take=str(fields.get("video_uid") or fields["clip_uid"]),
        participant=None,
        scenario="",
    )


def _taxonomy_fault(
    item: str, ids: Sequence[int | None], words: Sequence[str], names: Sequence[_Names], taxonomy: Path | None
) -> str | None:
    """A label outside the taxonomy is a fault of the row; another word for it means a taxonomy of another release."""
    for name, class_id, word, known in zip(_LABELS, ids, words, names, strict=True):
        if class_id not in known:
            return f"{name} is not in the taxonomy"
        if word and known[class_id] != word:
            raise DataError(
                f"{taxonomy} is not the taxonomy of these annotations",
                expected=f"{name} {class_id} of {item} to be {word!r}",
                found=repr(known[class_id]),
                fix="use fho_lta_taxonomy.json of the same Ego4D release (v1 and v2 number their classes differently)",
            )
    return None


def _read_taxonomy(path: Path) -> tuple[_Names, _Names]:
    document = read_json(path)
    lists = [document.get(key) if isinstance(document, dict) else None for key in ("verbs", "nouns")]
    verbs, nouns = ([str(word) for word in words] if isinstance(words, list) else None for words in lists)
    if verbs is None or nouns is None:
        raise DataError(f"{path} has the wrong shape", expected='{"verbs": [...], "nouns": [...]}')
    return dict(enumerate(verbs)), dict(enumerate(nouns))
