"""From the rows of an annotation file to a `SegmentTable`: what all readers share.

In: an `Annotation`, the rows as one reader understood them, and where each video is. Out: usable segments with their
labels, those of the segment before and after; an exclusion with its reason for every other row. expected = used +
excluded is checked.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hwm.data.exclusions import Exclusion, check_coverage, with_examples
from hwm.data.manifest import known_videos
from hwm.data.segments import UNKNOWN, ClassId, ClassTable, Segment, SegmentTable, Task
from hwm.data.video import VideoInfo
from hwm.data.video_folder import Located
from hwm.errors import DataError

NOT_IN_TRAINING = "class not in training"

_DIGITS = re.compile(r"[0-9]{1,15}")


class Row(NamedTuple):
    """One annotated segment as its reader understood it."""

    item: str
    """Where it stands, e.g. `EPIC_100_train.csv#P01_01_0`."""
    video: str
    """Key of its video in `Annotation.videos`."""
    fault: str | None
    """Why it cannot be used, if its own fields say so."""
    start_sec: float
    end_sec: float
    order: float | None
    """Its place among the rows of its video (equal: at the same time); None if it has none."""
    ids: tuple[ClassId | None, ...]
    """The dataset's class ids, one a task."""
    names: tuple[str, ...]
    """A name for each, or ""."""
    take: str
    participant: str | None
    scenario: str
    subsets: tuple[tuple[str, ...], ...] = ()


class Annotation(NamedTuple):
    """One annotation file, read."""

    file: Path
    tasks: tuple[str, ...]
    rows: Sequence[Row]
    broken: Sequence[Exclusion]
    """Entries that hold no readable rows; each counts as one expected item."""
    videos: Mapping[str, Located]
    """Every annotated video, by its key."""
    needs: str
    """What a usable row has, for the error where none is."""
    class_names: tuple[Mapping[ClassId, str], ...] = ()
    """Names that the data set gives to its classes, one mapping a task; () leaves them to the rows."""
    counts: Mapping[str, int] = {}
    subsets: tuple[str, ...] = ()
    num_positions: tuple[int, ...] = ()
    """Z of each task; () means 1 for all."""


def fault_of(fields: Mapping[str, object], start: str, end: str, ids: Sequence[str]) -> str | None:
    """What is wrong with a segment by itself.

    Args:
        fields: the row, as the file has it.
        start: name of the field with the start in seconds.
        end: name of the field with the end.
        ids: names of the fields with class ids.
    """
    absent = next((name for name in (start, end, *ids) if fields.get(name) is None), None)
    if absent is not None:
        return f"no {absent}"
    times: list[float] = []
    for name in (start, end):
        time = finite(fields[name])
        if time is None:
            return f"{name} is not a number"
        times.append(time)
    for name in ids:
        class_id = integer(fields[name])
        if class_id is None or class_id < 0:
            return f"{name} is not an integer" if class_id is None else f"{name} is negative"
    if times[0] < 0:
        return f"{start} is negative"
    return f"{end} is not after {start}" if times[1] <= times[0] else None


def finite(value: object) -> float | None:
    """A finite number; None for anything else (JSON's true is no number, and its integers may exceed any float)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return None if math.isnan(value) else float(value)


def integer(value: object) -> int | None:
    """A whole number; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def integer_in(text: str) -> int | None:
    """The whole number, 0 or more, that a text writes with at most 15 digits; None for anything else."""
    return int(text) if _DIGITS.fullmatch(text) else None


def build_table(
    annotation: Annotation,
    tasks: Sequence[Task] | None,
    manifest: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SegmentTable:
    """Join rows, videos and classes.

    Args:
        annotation: what a reader found.
        tasks: those of the training file, for validation; None builds class tables from this file's usable rows.
        manifest: what the videos are known from; None opens them.
        on_progress: called with how many were opened, of how many; what it raises ends the reading.

    Returns:
        The usable segments in the file's order and an exclusion for each row that is not used.

    Raises:
        DataError: no row is usable, or the manifest does not have a video.
    """
    videos = _known(annotation.videos, manifest, on_progress)
    excluded = list(annotation.broken)
    kept: list[int] = []
    for index, row in enumerate(annotation.rows):
        reason = row.fault or _video_fault(row, videos[row.video]) or _class_fault(row, tasks)
        if reason is None:
            kept.append(index)
        else:
            excluded.append(Exclusion(row.item, reason))
    usable = [annotation.rows[index] for index in kept]
    expected = len(annotation.rows) + len(annotation.broken)
    if not usable:
        raise DataError(
            f"no usable segment in {annotation.file}",
            expected=f"at least one segment with {annotation.needs} and a readable video",
            found=with_examples(excluded) or "no segments at all",
            fix="check the settings below `annotations`: the files named there, and where the videos are",
        )
    own = _new_tasks(annotation, usable, annotation.num_positions or (1,) * len(annotation.tasks))
    swapped = _swapped_names(own[0].classes, tasks[0].classes) if tasks is not None and len(own) == 1 else ()
    tasks = own if tasks is None else tasks
    labels = [tuple(t.classes.label(i) for t, i in zip(tasks, row.ids, strict=True)) for row in annotation.rows]
    around = _neighbours(annotation.rows, labels, max(task.num_positions for task in tasks) - 1)
    segments = tuple(_segment(annotation.rows[i], videos[annotation.rows[i].video], labels[i], around[i]) for i in kept)
    check_coverage(f"the reader of {annotation.file}", expected, len(segments), len(excluded))
    counts = {
        "takes annotated": len(videos),
        "takes with a readable video": sum(isinstance(video, VideoInfo) for video in videos.values()),
        "repeated segments kept": _count_repeats(usable),
    }
    return SegmentTable(
        segments, tuple(tasks), tuple(excluded), expected, counts | dict(annotation.counts), annotation.subsets, swapped
    )


def _known(
    videos: Mapping[str, Located], manifest: Path | None, on_progress: Callable[[int, int], None]
) -> dict[str, VideoInfo | str]:
    """Each video, or the reason why it cannot be used; each file is looked at once."""
    paths = list(dict.fromkeys(located.path for located in videos.values() if located.path is not None))
    infos = dict(zip(paths, known_videos(paths, manifest, on_progress), strict=True))
    found: dict[str, VideoInfo | str] = {}
    for key, located in videos.items():
        info = infos[located.path] if located.path is not None else str(located.reason)
        found[key] = f"unreadable video: {info}" if located.path is not None and isinstance(info, str) else info
    return found


def _video_fault(row: Row, video: VideoInfo | str) -> str | None:
    if isinstance(video, str):
        return video
    return "starts after the end of the video" if row.start_sec >= video.duration_sec else None


def _class_fault(row: Row, tasks: Sequence[Task] | None) -> str | None:
    """A row is of no use where no task knows its class; where some do, it counts for those."""
    if tasks is None or any(class_id in task.classes for task, class_id in zip(tasks, row.ids, strict=True)):
        return None
    return NOT_IN_TRAINING


def _swapped_names(here: ClassTable, training: ClassTable) -> tuple[str, ...]:
    """Classes that here have the name of another class of training: the two files number their classes differently."""
    there = dict(zip(training.ids, training.names, strict=True))
    return tuple(
        f"{class_id} is {name!r}, in training {there[class_id]!r}"
        for class_id, name in zip(here.ids, here.names, strict=True)
        if there.get(class_id, name) != name and name in there.values()
    )


def _new_tasks(annotation: Annotation, rows: Sequence[Row], num_positions: Sequence[int]) -> list[Task]:
    """Class tables of the usable rows: ids ascending; a name is the data set's own, else the most frequent one."""
    tasks = []
    for index, name in enumerate(annotation.tasks):
        given = annotation.class_names[index] if annotation.class_names else {}
        counts: dict[ClassId, Counter[str]] = {}
        for row in rows:
            class_id = row.ids[index]
            assert class_id is not None, "a reader let a row through that has no class"
            counts.setdefault(class_id, Counter()).update([row.names[index]] if row.names[index] else [])
        ids = sorted(counts)
        names = (given.get(i) or next((n for n, _ in counts[i].most_common(1)), f"{name} {i}") for i in ids)
        tasks.append(Task(name, ClassTable(tuple(ids), tuple(names)), num_positions[index]))
    return tasks


class _Neighbours(NamedTuple):
    previous: tuple[int, ...]
    following: tuple[tuple[int, ...], ...]


def _neighbours(rows: Sequence[Row], labels: Sequence[tuple[int, ...]], num_following: int) -> list[_Neighbours]:
    """For each row, the labels of the last row strictly before it in its video, and of the next ones strictly after.

    Strictly, because a repeated segment must not be told its own label. Rows that are excluded for another reason
    still count as what happened before and after.
    """
    none = (UNKNOWN,) * (len(labels[0]) if labels else 0)
    found = [_Neighbours(none, ())] * len(rows)
    by_video: dict[str, list[tuple[float, int]]] = {}
    for index, row in enumerate(rows):
        if row.order is not None:
            by_video.setdefault(row.video, []).append((row.order, index))
    for ordered in by_video.values():
        ordered.sort()  # the file's order among equals
        first = 0  # of those at the same place
        for after in range(1, len(ordered) + 1):
            if after < len(ordered) and ordered[after][0] == ordered[first][0]:
                continue
            previous = labels[ordered[first - 1][1]] if first else none
            following = tuple(labels[index] for _, index in ordered[after : after + num_following])
            for _, index in ordered[first:after]:
                found[index] = _Neighbours(previous, following)
            first = after
    return found


def _segment(row: Row, video: VideoInfo | str, labels: tuple[int, ...], around: _Neighbours) -> Segment:
    assert isinstance(video, VideoInfo)
    return Segment(
        video=video,
        start_sec=row.start_sec,
        end_sec=row.end_sec,
        labels=labels,
        previous_labels=around.previous,
        following_labels=around.following,
        take=row.take,
        participant=row.participant,
        scenario=row.scenario,
        row=row.item,
        subsets=row.subsets,
    )


def _count_repeats(rows: Sequence[Row]) -> int:
    keys = Counter((row.video, row.start_sec, row.end_sec, row.ids) for row in rows)
    return sum(count - 1 for count in keys.values())
