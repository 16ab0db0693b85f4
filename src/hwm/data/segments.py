"""Labelled segments of videos and the table of their classes, the same for every annotation format.

In: nothing; `hwm.data.keystep` and its like build these. Out: `Segment`, `ClassTable`, `SegmentTable`.
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


@dataclass(frozen=True)
class ClassTable:
    """C classes in a fixed order: label i is `ids[i]`, called `names[i]`."""

    ids: tuple[int, ...]
    """The dataset's ids (`step_unique_id`), ascending; they need not be dense."""
    names: tuple[str, ...]
    """A name for each, for people; names may repeat, ids may not."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names) or any(a >= b for a, b in zip(self.ids, self.ids[1:], strict=False)):
            raise DataError("a class table needs ascending ids without repeats and one name for each")

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, class_id: object) -> bool:
        return class_id in self._index

    def index(self, class_id: int) -> int:
        """The label 0..C-1 of a dataset id.

        Raises:
            DataError: the id is not in the table.
        """
        if class_id not in self._index:
            raise DataError(f"class {class_id} is not in the class table", expected=f"one of its {len(self)} ids")
        return self._index[class_id]

    @property
    def sha256(self) -> str:
        """Fingerprint of ids and names: equal tables, equal label numbers."""
        text = json.dumps([list(self.ids), list(self.names)], ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _index(self) -> dict[int, int]:
        return {class_id: label for label, class_id in enumerate(self.ids)}


class Segment(NamedTuple):
    """One annotated key step in one video."""

    video: VideoInfo
    start_sec: float
    """Start of the step, seconds after the first frame."""
    end_sec: float
    """End of the step; may lie after the end of the video."""
    label: int
    """0..C-1, an index of the `ClassTable`."""
    previous_label: int | None
    """Label of the segment that starts before it in the take; None for the first, or if that class is not known."""
    take: str
    """Name of the take (or its uid, where the annotation has no name)."""
    participant: str | None
    scenario: str
    row: str
    """Where it stands in the annotation, e.g. `keystep_val.json#<take_uid>[3]`."""


class SegmentTable(NamedTuple):
    """The segments of one annotation file; expected = len(segments) + len(excluded)."""

    segments: tuple[Segment, ...]
    classes: ClassTable
    excluded: tuple[Exclusion, ...]
    expected: int
    counts: Mapping[str, int] = MappingProxyType({})
    """For the record: takes annotated, takes with a video, duplicate segments that were kept."""
