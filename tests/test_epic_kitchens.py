"""EPIC-KITCHENS-100: seconds come from timestamps, actions from verb and noun, subsets from the official lists."""

import csv
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hwm.config import AnnotationConfig
from hwm.data.annotations import read_annotations
from hwm.data.epic_kitchens import action_id, seconds_of
from hwm.data.exclusions import summarise
from hwm.data.segments import UNKNOWN, SegmentTable, Task
from hwm.errors import DataError

COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip


def row(start: str, stop: str, verb: Any, noun: Any, **more: Any) -> dict[str, Any]:
    """A row whose frame numbers are wrong on purpose: nothing may read them."""
    filled = {name: "" for name in COLUMNS} | {"video_id": "P01_01", "participant_id": "P01"}
    filled |= {"start_timestamp": start, "stop_timestamp": stop, "start_frame": 7, "stop_frame": 8}
    filled |= {"verb": f"verb{verb}", "verb_class": verb, "noun": f"noun{noun}", "noun_class": noun}
    return filled | more


def write(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def root(tmp_path: Path, ten_seconds: bytes) -> Path:
    """`P01/videos/P01_01.MP4` and `P02_02.mp4`."""
    (tmp_path / "media" / "P01" / "videos").mkdir(parents=True)
    (tmp_path / "media" / "P01" / "videos" / "P01_01.MP4").write_bytes(ten_seconds)
    (tmp_path / "media" / "P02_02.mp4").write_bytes(ten_seconds)
    return tmp_path


def _config(root: Path, **more: Any) -> AnnotationConfig:
    paths = {"train": root / "train.csv", "val": root / "val.csv", "videos": root / "media"}
    return AnnotationConfig(**{"dataset": "epic-kitchens-100", **paths, **more})


def _read(root: Path, rows: list[dict[str, Any]], tasks: tuple[Task, ...] | None = None, **more: Any) -> SegmentTable:
    table = read_annotations(write(root / "EPIC.csv", rows), _config(root, **more), tasks)
    assert table.expected == len(rows) == len(table.segments) + len(table.excluded)
    return table


def test_times_labels_and_neighbours(root: Path) -> None:
    rows = [
        row("00:00:06.00", "00:00:07.50", 3, 20, narration_id="P01_01_1"),
        row("00:00:01.50", "00:00:03.00", 1, 20),
        row("00:00:00.25", "00:00:01.25", 3, 4, video_id="P02_02", participant_id=""),
    ]
    table = _read(root, rows)
    assert [(s.start_sec, s.end_sec) for s in table.segments] == [(6.0, 7.5), (1.5, 3.0), (0.25, 1.25)]
    verb, noun, action = table.tasks
    assert [task.name for task in table.tasks] == ["verb", "noun", "action"]
    assert (verb.classes.ids, noun.classes.ids) == ((1, 3), (4, 20))
    assert action.classes.ids == (1020, 3004, 3020)
    assert action.classes.names == ("verb1 noun20", "verb3 noun4", "verb3 noun20")
    assert [s.labels for s in table.segments] == [(1, 1, 2), (0, 1, 0), (1, 0, 1)]
    nothing = (UNKNOWN,) * 3
    assert [s.previous_labels for s in table.segments] == [(0, 1, 0), nothing, nothing]
    assert [(s.take, s.participant) for s in table.segments] == [("P01_01", "P01")] * 2 + [("P02_02", "P02")]
    assert [s.video.path.name for s in table.segments] == ["P01_01.MP4", "P01_01.MP4", "P02_02.mp4"]
    assert [s.row for s in table.segments] == ["EPIC.csv#P01_01_1", "EPIC.csv#2", "EPIC.csv#3"]
    assert all(s.following_labels == () and s.subsets == ((), (), ()) for s in table.segments)


@pytest.mark.parametrize("fps", [59.94, 29.97, 50.0, 60.0])
def test_frame_numbers_are_never_read(root: Path, fps: float) -> None:
    """Whatever frame numbers stand there, counted at 60 or at the video's own rate: the timestamp decides."""
    rows = [row("00:00:09.99", "00:01:00.50", 1, 1, start_frame=round(60 * 9.99), stop_frame=round(fps * 60.5))]
    assert [(s.start_sec, s.end_sec) for s in _read(root, rows).segments] == [(9.99, 60.5)]


def test_timestamps() -> None:
    assert seconds_of("00:00:01.25") == 1.25
    assert seconds_of("01:02:03.5") == 3723.5
    assert seconds_of("100:00:00") == 360000
    for text in (
        "",
        "12.5",
        "00:61:00",
        "00:00:-1",
        "0:0",
        "00:00:1e3",
        "\u0660\u0660:\u0660\u0660:\u0660\u0661",
        "00:00:nan",
        "9" * 5000 + ":00:00",
    ):
        assert seconds_of(text) is None, text


BAD_ROWS = [
    ({"start_timestamp": ""}, "no start_timestamp"),
    ({"stop_timestamp": " "}, "no stop_timestamp"),
    ({"start_timestamp": "2 s"}, "start_timestamp is not a number"),
    ({"verb_class": ""}, "no verb_class"),
    ({"noun_class": "cup"}, "noun_class is not an integer"),
    ({"verb_class": "-1"}, "verb_class is not an integer"),
    ({"verb_class": "9" * 5000}, "verb_class is not an integer"),
    ({"noun_class": "1000"}, "noun_class is not below 1000"),
    ({"stop_timestamp": "00:00:02.00"}, "stop_timestamp is not after start_timestamp"),
    ({"start_timestamp": "00:00:10.00", "stop_timestamp": "00:00:11.00"}, "starts after the end of the video"),
    ({"video_id": ""}, "no video_id"),
    ({"video_id": "P09_09"}, "the video file is not on disk"),
    ({"video_id": "../media/P02_02"}, "the video file is not on disk"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_ROWS)
def test_each_fault_is_an_exclusion_with_its_reason(root: Path, change: dict[str, Any], reason: str) -> None:
    rows = [row("00:00:00.00", "00:00:01.00", 1, 1), row("00:00:02.00", "00:00:03.00", 1, 1) | change]
    table = _read(root, rows)
    assert table.excluded == (("EPIC.csv#2", reason),)
    assert len(table.segments) == 1


def test_a_class_that_training_does_not_have_counts_for_the_other_tasks(root: Path) -> None:
    train = _read(root, [row("00:00:00.00", "00:00:01.00", 1, 1), row("00:00:01.00", "00:00:02.00", 2, 2)]).tasks
    rows = [
        row("00:00:00.00", "00:00:01.00", 2, 1),  # both known, never together
        row("00:00:01.00", "00:00:02.00", 2, 9),
        row("00:00:02.00", "00:00:03.00", 9, 9),
        row("00:00:03.00", "00:00:04.00", 1, 1),
    ]
    val = _read(root, rows, train)
    assert [s.labels for s in val.segments] == [(1, 0, UNKNOWN), (1, UNKNOWN, UNKNOWN), (0, 0, 0)]
    assert summarise(val.excluded) == {"class not in training": 1}
    assert val.segments[2].previous_labels == (UNKNOWN,) * 3  # what came before is known to no task
    assert val.tasks == train


def test_pairs_that_no_number_tells_apart_have_no_action() -> None:
    assert (action_id(2, 999), action_id(0, 0)) == (2999, 0)
    assert [action_id(1, 1000), action_id(-1, 3), action_id(1, -1), action_id(None, 1), action_id(1, None)] == [
        None
    ] * 5


def test_unseen_participants_and_tail_classes(root: Path) -> None:
    subsets = {
        "unseen_participants": write(root / "unseen.csv", [{"participant_id": "P02"}], ("participant_id",)),
        "tail_verbs": write(root / "verbs.csv", [{"verb": 5}, {"verb": 6}], ("verb",)),
        "tail_nouns": write(root / "nouns.csv", [{"noun": 7}], ("noun",)),
    }
    rows = [
        row("00:00:00.00", "00:00:01.00", 5, 1),
        row("00:00:01.00", "00:00:02.00", 1, 7),
        row("00:00:02.00", "00:00:03.00", 5, 7, video_id="P02_02", participant_id="P02"),
        row("00:00:03.00", "00:00:04.00", 1, 1, video_id="P02_02", participant_id="P02"),
        row("00:00:04.00", "00:00:05.00", 7, 5),
    ]
    table = _read(root, rows, None, **subsets)
    assert table.subsets == ("unseen", "tail")
    assert [s.subsets for s in table.segments] == [
        (("tail",), (), ("tail",)),
        ((), ("tail",), ("tail",)),  # a tail action has a tail verb OR a tail noun
        (("unseen", "tail"),) * 3,
        (("unseen",),) * 3,
        ((), (), ()),
    ]
    assert _read(root, rows, unseen_participants=subsets["unseen_participants"]).subsets == ("unseen",)
    with pytest.raises(ValidationError, match="tail_verbs and tail_nouns go together"):
        _config(root, tail_verbs=subsets["tail_verbs"])
    with pytest.raises(DataError, match=r"unseen\.csv does not have the columns"):
        _read(root, rows, tail_verbs=subsets["unseen_participants"], tail_nouns=subsets["tail_nouns"])


def test_the_test_split_and_other_files_are_refused(root: Path) -> None:
    config, rows = _config(root), [row("00:00:00.00", "00:00:01.00", 1, 1)]
    with pytest.raises(DataError, match=r"has no labels[\s\S]*test split"):
        read_annotations(write(root / "test.csv", rows, COLUMNS[:8]), config, None)
    with pytest.raises(DataError, match="does not have the columns"):
        read_annotations(write(root / "other.csv", rows, ("verb", "noun")), config, None)
    with pytest.raises(DataError, match="no usable segment"):
        read_annotations(write(root / "empty.csv", []), config, None)
    (root / "torn.csv").write_text('video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"P01_01,a\n')
    with pytest.raises(DataError, match=r"cannot read .*torn\.csv"):
        read_annotations(root / "torn.csv", config, None)


def test_two_videos_of_one_name_are_an_error_only_if_annotated(root: Path, ten_seconds: bytes) -> None:
    (root / "media" / "P02_02.MP4").write_bytes(ten_seconds)
    assert len(_read(root, [row("00:00:00.00", "00:00:01.00", 1, 1)]).segments) == 1
    with pytest.raises(DataError, match="more than one video called P02_02"):
        _read(root, [row("00:00:00.00", "00:00:01.00", 1, 1, video_id="P02_02")])


def test_links_between_folders_are_followed_and_never_for_ever(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "media" / "P02_02.mp4").rename(root / "elsewhere" / "P02_02.mp4")
    (root / "media" / "linked").symlink_to(root / "elsewhere")
    (root / "elsewhere" / "back").symlink_to(root / "media")
    assert len(_read(root, [row("00:00:00.00", "00:00:01.00", 1, 1, video_id="P02_02")]).segments) == 1


def test_settings_of_another_data_set_are_refused(root: Path) -> None:
    others: list[tuple[dict[str, Any], str]] = [
        ({"view": "cam01"}, "view is a setting of dataset=keystep, and dataset is epic-kitchens-100"),
        ({"level": "substep"}, "level is a setting of dataset=ego4d-goalstep"),
        ({"sequence_length": 20}, "sequence_length is a setting of dataset=ego4d-lta"),
        ({"dataset": "keystep", "tail_verbs": root}, "tail_verbs is a setting of dataset=epic-kitchens-100"),
        ({"dataset": "keystep", "classes": "benchmark"}, "label_mapping"),
        ({"dataset": "keystep", "label_mapping": root}, "classes=benchmark"),
    ]
    for more, words in others:
        with pytest.raises(ValidationError, match=words):
            _config(root, **more)
