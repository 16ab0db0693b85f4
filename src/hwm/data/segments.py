"""Labelled segments of videos and the tables of their classes, the same for every annotation format.

In: nothing; the readers (`hwm.data.annotations`) build these. Out: `Segment`, `ClassTable`, `Task`, `SegmentTable`. A
segment has one label a task: KeyStep has the task `step`, EPIC-KITCHENS has `verb`, `noun` and `action`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from hwm.data.exclusions import Exclusion
from hwm.data.video import VideoInfo
from hwm.errors import DataError

ClassId = int | str
"""A data set's own id of a class: a number, or (Goal-Step) the category itself."""

UNKNOWN = -1
"""The label of a class that is not in the class table: neither trained nor scored, and counted."""


@dataclass(frozen=True)
class ClassTable:
    """C classes in a fixed order: label i is `ids[i]`, called `names[i]`."""

    ids: tuple[ClassId, ...]
    """The dataset's ids, ascending and all of one kind; numbers need not be dense."""
    names: tuple[str, ...]
    """A name for each, for people; names may repeat, ids may not."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or list(self.ids) != sorted(set(self.ids)):
            raise DataError("a class table needs ascending ids without repeats and one name for each")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, class_id: object) -> bool:
        return class_id in self._index

    def index(self, class_id: ClassId) -> int:
        """The label 0..C-1 of a dataset id.

        Raises:
            DataError: the id is not in the table.
        """
        if class_id not in self._index:
            raise DataError(f"class {class_id} is not in the class table", expected=f"one of its {len(self)} ids")
        return self._index[class_id]

    def label(self, class_id: ClassId | None) -> int:
        """The label 0..C-1 of a dataset id, or `UNKNOWN`."""
        return UNKNOWN if class_id is None else self._index.get(class_id, UNKNOWN)

    @property
    def sha256(self) -> str:
        """Fingerprint of ids and names: equal tables, equal label numbers."""
        text = json.dumps([list(self.ids), list(self.names)], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _index(self) -> dict[ClassId, int]:
        return {class_id: label for label, class_id in enumerate(self.ids)}


class Task(NamedTuple):
    """One thing that is asked about a segment: a label head of the probe."""

    name: str
    """`step`, `verb`, `noun` or `action`."""
    classes: ClassTable
    num_positions: int = 1
    """Z: 1 asks about the segment alone, more about the segments that follow it too."""


class Segment(NamedTuple):
    """One annotated key step or action in one video; labels are aligned with `SegmentTable.tasks`."""

    video: VideoInfo
    start_sec: float
    """Start of the step, seconds after the first frame."""
    end_sec: float
    """End of the step; may lie after the end of the video."""
    labels: tuple[int, ...]
    """0..C-1 of each task's `ClassTable`, or `UNKNOWN`; at least one is known."""
    previous_labels: tuple[int, ...]
    """Labels of the segment before it in the video, all `UNKNOWN` for the first."""
    following_labels: tuple[tuple[int, ...], ...]
    """Labels of the segments after it in order, as many as the longest task asks for, fewer near the video's end."""
    take: str
    """What must not be torn apart: the take, or the video that a clip was cut from."""
    participant: str | None
    scenario: str
    row: str
    """Where it stands in the annotation, e.g. `keystep_val.json#<take_uid>[3]`."""
    subsets: tuple[tuple[str, ...], ...] = ()
    """For each task, the named subsets it is also scored in (`unseen`, `tail`)."""


class SegmentTable(NamedTuple):
    """The segments of one annotation file; expected = len(segments) + len(excluded)."""

    segments: tuple[Segment, ...]
    tasks: tuple[Task, ...]
    excluded: tuple[Exclusion, ...]
    expected: int
    counts: Mapping[str, int] = MappingProxyType({})
    """For the record: takes annotated, takes with a video, repeated segments that were kept, and the like."""
    subsets: tuple[str, ...] = ()
    """Names of the subsets that are scored on their own."""
    swapped_names: tuple[str, ...] = ()
    """Where there is one task: classes whose name is another class's in training, in words."""
