"""EPIC-KITCHENS-100 action annotations, joined with the videos on disk.

In: `EPIC_100_train.csv` / `EPIC_100_validation.csv`, one action a line. Out: a `SegmentTable` of the tasks `verb`,
`noun` and `action` (id = verb · 1000 + noun). Times are the timestamps, never the frame numbers: those count 60 frames
a second in many videos that run at 59.94 and in some that run at 29.97, and drift by seconds. Videos are found by
`<video_id>.mp4` (or .MP4) at any depth, as in `P01/videos/P01_01.MP4`.
"""

import re
from pathlib import Path
from typing import NamedTuple

from hwm.config import AnnotationConfig
from hwm.data.files import read_csv
from hwm.data.rows import Annotation, Row, fault_of, integer, integer_in
from hwm.data.video_folder import VideoFolder
from hwm.errors import DataError

TASKS = ("verb", "noun", "action")
ACTION_STRIDE = 1000
"""Action id = verb · 1000 + noun; there are fewer than 1000 nouns."""
UNSEEN, TAIL = "unseen", "tail"

_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")
_LABELS = ("verb_class", "noun_class")
_TIMESTAMP = re.compile(r"(\d{1,4}):([0-5]?\d):([0-5]?\d(?:\.\d{1,9})?)", re.ASCII)


class _Subsets(NamedTuple):
    """What the subsets are made of; None where the file is not given."""

    participants: frozenset[str] | None
    verbs: frozenset[str] | None
    nouns: frozenset[str] | None

    @property
    def names(self) -> tuple[str, ...]:
        return (UNSEEN,) * (self.participants is not None) + (TAIL,) * (self.verbs is not None)

    def of(self, participant: str, verb: int | None, noun: int | None) -> tuple[tuple[str, ...], ...]:
        """The subsets of a row, for verb, noun and action; a tail action has a tail verb or a tail noun."""
        is_unseen = self.participants is not None and participant in self.participants
        tail_verb = self.verbs is not None and str(verb) in self.verbs
        tail_noun = self.nouns is not None and str(noun) in self.nouns
        unseen = (UNSEEN,) * is_unseen
        return tuple(unseen + (TAIL,) * is_tail for is_tail in (tail_verb, tail_noun, tail_verb or tail_noun))


def read_epic_kitchens(annotation: Path, config: AnnotationConfig, split: str) -> Annotation:
    """Read one annotation file; arguments and errors as `hwm.data.annotations.parse_annotations`."""
    del split  # these annotations do not say which they are
    lines = read_csv(annotation, _COLUMNS)
    if lines and not set(_LABELS) <= set(lines[0]):
        raise DataError(
            f"{annotation} has no labels",
            expected=f"the columns {' and '.join(_LABELS)}",
            found="the test split, whose labels are not public" if "verb" not in lines[0] else ", ".join(lines[0]),
            fix="train on EPIC_100_train.csv and score on EPIC_100_validation.csv",
        )
    folder = VideoFolder(config.videos)
    subsets = _read_subsets(config)
    rows = [_row(annotation.name, index, line, subsets) for index, line in enumerate(lines, start=1)]
    videos = {row.video: folder.locate(row.video) for row in rows}
    return Annotation(
        file=annotation,
        tasks=TASKS,
        rows=rows,
        broken=(),
        videos=videos,
        needs="video_id, start_timestamp, stop_timestamp, verb_class, noun_class",
        subsets=subsets.names,
    )


def seconds_of(timestamp: str) -> float | None:
    """Seconds of `HH:MM:SS.ss`; None for anything else."""
    match = _TIMESTAMP.fullmatch(timestamp.strip())
    if match is None:
        return None
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def action_id(verb: int | None, noun: int | None) -> int | None:
    """The id of a pair of verb and noun; None where one is missing, or is none that a pair could be told by."""
    if verb is None or noun is None or verb < 0 or not 0 <= noun < ACTION_STRIDE:
        return None
    return verb * ACTION_STRIDE + noun


def _row(file: str, index: int, line: dict[str, str], subsets: _Subsets) -> Row:
    """A row; what cannot be parsed stays text, and `fault_of` finds it."""
    fields: dict[str, object] = {name: value.strip() or None for name, value in line.items()}
    video = line["video_id"].strip()
    for name in ("start_timestamp", "stop_timestamp"):
        seconds = seconds_of(line[name])
        fields[name] = fields[name] if seconds is None else seconds
    for name in _LABELS:
        class_id = integer_in(line[name].strip())
        fields[name] = fields[name] if class_id is None else class_id
    fault = fault_of(fields, "start_timestamp", "stop_timestamp", _LABELS) if video else "no video_id"
    verb, noun = (integer(fields[name]) for name in _LABELS)
    if fault is None and noun is not None and noun >= ACTION_STRIDE:
        fault = f"noun_class is not below {ACTION_STRIDE}"
    start, end = fields["start_timestamp"], fields["stop_timestamp"]
    participant = line.get("participant_id", "").strip() or video.split("_")[0]
    words = (line.get("verb", "").strip(), line.get("noun", "").strip())
    return Row(
        item=f"{file}#{line.get('narration_id', '').strip() or index}",
        video=video,
        fault=fault,
        start_sec=start if isinstance(start, float) else 0.0,
        end_sec=end if isinstance(end, float) else 0.0,
        order=start if isinstance(start, float) else None,
        ids=(verb, noun, action_id(verb, noun)),
        names=(*words, " ".join(words) if all(words) else ""),
        take=video,
        participant=participant or None,
        scenario="",
        subsets=subsets.of(participant, verb, noun),
    )


def _read_subsets(config: AnnotationConfig) -> _Subsets:
    """The official lists: one column each, `participant_id`, `verb`, `noun`."""

    def column(path: Path | None, name: str) -> frozenset[str] | None:
        return None if path is None else frozenset(row[name].strip() for row in read_csv(path, (name,)))

    return _Subsets(
        column(config.unseen_participants, "participant_id"),
        column(config.tail_verbs, "verb"),
        column(config.tail_nouns, "noun"),
    )
