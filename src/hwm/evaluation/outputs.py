"""What a run of stage 2 said about every segment, read back, checked, and aligned with other runs.

In: the run folder's `outputs.safetensors` (logits and labels of each task) and `segments.json` (rows, takes and class
tables), as `pipelines.scoring.write_outputs` leaves them. Out: `RunOutputs`. Two runs can be compared only on the same
segments with the same labels and class tables; the first thing that differs is named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hwm.errors import DataError


class SegmentRow(BaseModel):
    """One validation segment as the run saw it."""

    model_config = ConfigDict(strict=True, frozen=True)

    row: str
    """Where it stands in the annotation; unique in a run."""
    take: str
    start_sec: float
    labels: tuple[int, ...]
    """One a task, in the order of the tasks; below 0 where the class is not in training."""


class ClassList(BaseModel):
    """The classes of one task: label i is `ids[i]`, called `names[i]`."""

    model_config = ConfigDict(strict=True, frozen=True)

    ids: tuple[int | str, ...]
    names: tuple[str, ...]
    sha256: str


class _Rows(BaseModel):
    """`segments.json`."""

    model_config = ConfigDict(strict=True, frozen=True)

    classes: dict[str, ClassList]
    segments: tuple[SegmentRow, ...]


@dataclass(frozen=True)
class TaskOutputs:
    """Logits and labels of one task; Z positions where the task asks about what follows, else 1."""

    classes: ClassList
    logits_SZC: Tensor
    labels_SZ: Tensor

    @property
    def logits_SC(self) -> Tensor:  # noqa: N802 - carries its axes
        """Logits for the segment itself."""
        return self.logits_SZC[:, 0]

    @property
    def labels_S(self) -> Tensor:  # noqa: N802 - carries its axes
        """True class 0..C-1 of each segment, below 0 where it is not in training."""
        return self.labels_SZ[:, 0]


@dataclass(frozen=True)
class RunOutputs:
    """All tasks of one run on its S segments."""

    folder: Path
    segments: tuple[SegmentRow, ...]
    tasks: Mapping[str, TaskOutputs]
    """Task name → outputs, in the order of the data set's tasks."""

    @property
    def takes(self) -> tuple[str, ...]:
        """The take of each segment."""
        return tuple(segment.take for segment in self.segments)


def read_outputs(folder: Path, tensors: str = "outputs.safetensors", rows: str = "segments.json") -> RunOutputs:
    """Reads and checks the per-segment outputs of a run folder.

    Args:
        folder: of the run.
        tensors: name of the file with logits and labels.
        rows: name of the file with segments and class tables.

    Raises:
        DataError: a file is missing, damaged, or the two contradict each other.
    """
    written = _read_rows(folder / rows)
    segments = written.segments
    _check_rows(folder / rows, segments, len(written.classes))
    found = _read_tensors(folder / tensors)
    tasks = {}
    for place, (name, table) in enumerate(written.classes.items()):
        prefix = "" if len(written.classes) == 1 else f"{name}/"
        pair = [found.get(prefix + part) for part in ("logits", "labels")]
        labels = torch.tensor([segment.labels[place] for segment in segments])
        tasks[name] = _task(folder / tensors, name, table, pair, labels)
    return RunOutputs(folder, segments, tasks)


def align(runs: Sequence[RunOutputs]) -> tuple[RunOutputs, ...]:
    """The runs with all segments in the order of the first one.

    Raises:
        DataError: no run, or a run differs in its tasks, class tables, segments, takes, start times or labels.
    """
    if not runs:
        raise DataError("there are no runs to compare", expected="at least one run folder", found="none")
    first = runs[0]
    return (first, *(_aligned(first, other) for other in runs[1:]))


def _read_rows(path: Path) -> _Rows:
    try:
        return _Rows.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", found=error.strerror or "an error of the disk", fix="run `hwm anticipate` first"
        ) from error
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise DataError(
            f"{path} is not a list of segments that hwm wrote", found=f"{where}: {fault['msg']}", fix="run it again"
        ) from error


def _check_rows(path: Path, segments: Sequence[SegmentRow], num_tasks: int) -> None:
    if not segments or not num_tasks:
        raise DataError(f"{path} holds nothing to compare", expected="segments and tasks", found="none")
    seen: set[str] = set()
    for segment in segments:
        if segment.row in seen:
            raise DataError(f"{path} names a segment twice", found=segment.row)
        if len(segment.labels) != num_tasks:
            raise DataError(
                f"{path}: a segment's labels are not one a task", expected=f"{num_tasks}", found=f"{segment.row}"
            )
        seen.add(segment.row)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read", found=str(error), fix="run `hwm anticipate` again") from error


def _task(path: Path, name: str, classes: ClassList, pair: Sequence[Tensor | None], labels_S: Tensor) -> TaskOutputs:
    logits, labels = pair
    if logits is None or labels is None:
        raise DataError(f"{path} has no logits or no labels of the task {name}", fix="run `hwm anticipate` again")
    if logits.ndim == 2 and labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    wanted = (len(labels_S), len(classes.ids))
    found = f"logits {list(logits.shape)} and labels {list(labels.shape)}"
    if logits.ndim != 3 or (logits.shape[0], logits.shape[2]) != wanted or labels.shape != logits.shape[:2]:
        raise DataError(
            f"{path}: {name} does not fit its segments", expected=f"{wanted[0]} rows, {wanted[1]} classes", found=found
        )
    if labels.is_floating_point() or not torch.equal(labels[:, 0].long(), labels_S):
        raise DataError(f"{path}: labels of {name} are not those of its segments.json", fix="run it again")
    if int(labels.max()) >= wanted[1] or len(classes.names) != wanted[1]:
        raise DataError(
            f"{path}: a label of {name} is not in its class table",
            expected=f"below {wanted[1]}",
            found=f"{int(labels.max())}",
        )
    return TaskOutputs(classes, logits, labels.long())


def _aligned(first: RunOutputs, other: RunOutputs) -> RunOutputs:
    if list(first.tasks) != list(other.tasks):
        raise _differ(first, other, "tasks", ", ".join(first.tasks), ", ".join(other.tasks))
    for name, task in first.tasks.items():
        _require_same_classes(first, other, name, task.classes, other.tasks[name].classes)
    place = {segment.row: index for index, segment in enumerate(other.segments)}
    for segment in first.segments:
        if segment.row not in place:
            raise _differ(first, other, "segments", segment.row, "no such segment")
        twin = other.segments[place[segment.row]]
        if twin != segment:
            raise _differ(first, other, "segments", f"{segment}", f"{twin}")
    more = place.keys() - {segment.row for segment in first.segments}
    if more:
        raise _differ(first, other, "segments", "no such segment", min(more, key=place.__getitem__))
    order_S = torch.tensor([place[segment.row] for segment in first.segments])
    tasks = {
        name: replace(task, logits_SZC=task.logits_SZC[order_S], labels_SZ=task.labels_SZ[order_S])
        for name, task in other.tasks.items()
    }
    for name, task in first.tasks.items():
        if not torch.equal(task.labels_SZ, tasks[name].labels_SZ):
            raise _differ(first, other, f"labels of what follows ({name})", "the same", "others")
    return RunOutputs(other.folder, first.segments, tasks)


def _require_same_classes(first: RunOutputs, other: RunOutputs, name: str, a: ClassList, b: ClassList) -> None:
    for label in range(max(len(a.ids), len(b.ids))):
        entries = [f"{c.ids[label]} {c.names[label]!r}" if label < len(c.ids) else "no such class" for c in (a, b)]
        if entries[0] != entries[1]:
            raise _differ(first, other, f"classes of {name} (label {label})", *entries)


def _differ(first: RunOutputs, other: RunOutputs, what: str, here: str, there: str) -> DataError:
    return DataError(
        f"the runs {first.folder} and {other.folder} are not of the same {what}",
        expected=here,
        found=there,
        fix="compare runs of one protocol on one annotation file",
    )
