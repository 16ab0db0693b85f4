"""Key-step annotations in all their shapes: every segment is used or excluded with its reason, and views never mix."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwm.config import AnnotationConfig, AnticipateConfig, ToyWorldConfig
from hwm.data.annotations import read_annotations
from hwm.data.exclusions import summarise
from hwm.data.seen_videos import SeenVideos, take_name
from hwm.data.segments import UNKNOWN, ClassTable, SegmentTable, Task
from hwm.data.toyworld import generate
from hwm.data.video import write_video
from hwm.data.video_folder import VideoFolder
from hwm.engine.runlog import RunLog, read_facts
from hwm.engine.runtime import StopFlag
from hwm.errors import DataError
from hwm.pipelines.anticipate import read_tables

UID = "77cd56fc-6b68-4c7f-814b-81545484dd2d"


def segment(start: Any, end: Any, class_id: Any, **more: Any) -> dict[str, Any]:
    return {"start_time": start, "end_time": end, "step_unique_id": class_id, "step_name": f"name {class_id}"} | more


def _write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of 10 s."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    write_video(path, frames, 2.0, preset="ultrafast")
    return path.read_bytes()


@pytest.fixture
def plain(tmp_path: Path, video: bytes) -> Path:
    """A folder with take_a.mp4 and a video named by its uid."""
    (tmp_path / "take_a.mp4").write_bytes(video)
    (tmp_path / f"{UID}.mp4").write_bytes(video)
    return tmp_path


def _config(videos: Path, **more: Any) -> AnnotationConfig:
    return AnnotationConfig(train=Path("train.json"), val=Path("val.json"), videos=videos, **more)


def _read(videos: Path, annotation: Any, tasks: tuple[Task, ...] | None = None, **more: Any) -> SegmentTable:
    table = read_annotations(_write_json(videos / "keystep.json", annotation), _config(videos, **more), tasks)
    assert table.expected == len(table.segments) + len(table.excluded)
    return table


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_with_accents_is_found_however_it_is_written(tmp_path: Path, video: bytes, on_disk: str, written: str):
    """Files that come from a Mac spell é in two letters, which look like one."""
    path = tmp_path / f"{unicodedata.normalize(on_disk, 'Küche é')}.mp4"
    path.write_bytes(video)
    take = unicodedata.normalize(written, "Küche é")
    table = _read(tmp_path, {"annotations": {take: {"segments": [segment(1.5, 3.0, 40)]}}})
    assert [(step.video.path, step.take) for step in table.segments] == [(path, take)]
    assert VideoFolder(tmp_path).locate(take).path == path
    seen = SeenVideos({take_name(Path(f"elsewhere/{take}.mp4")): "seen"}, {})
    assert seen.takes_among(table.segments) == {take: "seen"}


def test_hand_written_annotation_of_a_plain_folder(plain: Path):
    steps = [segment(1.5, 3.0, 40), segment(0.5, 1.5, 7), segment(4, 5, 40)]
    table = _read(plain, {"annotations": {"take_a": {"segments": steps}, UID: {"segments": [segment(2, 3, 7)]}}})
    assert table.tasks == (Task("step", ClassTable((7, 40), ("name 7", "name 40"))),)
    assert [row.labels for row in table.segments] == [(1,), (0,), (1,), (0,)]
    assert [row.previous_labels for row in table.segments] == [(0,), (UNKNOWN,), (1,), (UNKNOWN,)]
    assert [row.video.path.name for row in table.segments] == ["take_a.mp4"] * 3 + [f"{UID}.mp4"]
    assert [row.row for row in table.segments][1:] == [
        "keystep.json#take_a[1]", "keystep.json#take_a[2]", f"keystep.json#{UID}[0]",
    ]  # fmt: skip
    first = table.segments[0]
    assert (first.start_sec, first.end_sec, first.take, first.participant, first.scenario) == (
        1.5, 3.0, "take_a", None, "",
    )  # fmt: skip
    assert not table.excluded


def test_flat_benchmark_shape(plain: Path):
    rows = [segment(0, 1, 5, take_name="take_a"), segment(1, 2, 6, take_uid=UID, take_name="x"), segment(1, 2, 6), "?"]
    table = _read(plain, {"splits": "train", "segments": rows})
    assert [row.row for row in table.segments] == ["keystep.json#segments[0]", "keystep.json#segments[1]"]
    assert [reason for _, reason in table.excluded] == ["the segment names no take", "the segment is not an object"]


def test_annotations_as_a_list(plain: Path):
    entry = {"take_name": "take_a", "segments": [segment(0, 1, 5)]}
    table = _read(plain, {"annotations": [entry, entry | {"segments": [segment(1, 2, 5)]}, {"take_name": "b"}]})
    assert len(table.segments) == 1
    assert summarise(table.excluded) == {"the take is annotated twice": 1, "the take has no list of segments": 1}


def test_names_come_from_the_vocabulary_first(plain: Path):
    steps = [segment(0, 1, 5), segment(1, 2, 6), segment(2, 3, 9)]
    del steps[2]["step_name"]
    annotation = {
        "annotations": {"take_a": {"segments": steps}},
        "vocabulary": {"5": "Unbox", "9": None, "77": "Unused"},
    }
    assert _read(plain, annotation).tasks[0].classes == ClassTable((5, 6, 9), ("Unbox", "name 6", "step 9"))


BAD_FIELDS = [
    ({"start_time": None}, "no start_time"),
    ({"end_time": None}, "no end_time"),
    ({"step_unique_id": None}, "no step_unique_id"),
    ({"start_time": "1.0"}, "start_time is not a number"),
    ({"end_time": float("nan")}, "end_time is not a number"),
    ({"end_time": True}, "end_time is not a number"),
    ({"end_time": 10**400}, "end_time is not a number"),
    ({"step_unique_id": -5}, "step_unique_id is negative"),
    ({"start_time": float("inf")}, "start_time is not a number"),
    ({"step_unique_id": "5"}, "step_unique_id is not an integer"),
    ({"step_unique_id": 5.5}, "step_unique_id is not an integer"),
    ({"start_time": -0.1}, "start_time is negative"),
    ({"end_time": 1.0}, "end_time is not after start_time"),
    ({"end_time": 0.5}, "end_time is not after start_time"),
    ({"start_time": 10.0, "end_time": 12.0}, "starts after the end of the video"),
]


@pytest.mark.parametrize(("change", "reason"), BAD_FIELDS)
def test_each_fault_is_an_exclusion_with_its_reason(plain: Path, change: dict[str, Any], reason: str):
    steps = [segment(0.0, 1.0, 4), segment(1.0, 2.0, 5) | change, segment(3.0, 4.0, 6)]
    table = _read(plain, {"annotations": {"take_a": {"segments": steps}}})
    assert len(table.segments) == 2
    assert table.excluded == (("keystep.json#take_a[1]", reason),)


@pytest.mark.parametrize("name", ["start_time", "end_time", "step_unique_id"])
def test_absent_fields_are_like_empty_ones(plain: Path, name: str):
    broken = segment(1.0, 2.0, 5)
    del broken[name]
    table = _read(plain, {"annotations": {"take_a": {"segments": [segment(0.0, 1.0, 4), broken, 17]}}})
    assert [reason for _, reason in sorted(table.excluded)] == [f"no {name}", "the segment is not an object"]


def test_a_segment_may_end_after_the_video(plain: Path):
    assert len(_read(plain, {"annotations": {"take_a": {"segments": [segment(9.0, 12.0, 4)]}}}).segments) == 1


def test_classes_only_in_validation_are_excluded(plain: Path):
    train = _read(plain, {"annotations": {"take_a": {"segments": [segment(0, 1, 4), segment(2, 3, 9)]}}}).tasks
    steps = [segment(0, 1, 9), segment(1, 2, 5), segment(2, 3, 4), segment(3, 4, 9)]
    val = _read(plain, {"annotations": {"take_a": {"segments": steps}}, "vocabulary": {"4": "other name"}}, train)
    assert val.tasks == train
    assert [row.labels for row in val.segments] == [(1,), (0,), (1,)]
    assert [row.previous_labels for row in val.segments] == [(UNKNOWN,), (UNKNOWN,), (0,)]  # before 4 came 5: unknown
    assert val.excluded == (("keystep.json#take_a[1]", "class not in training"),)


def test_training_classes_are_those_of_usable_segments(plain: Path):
    steps = [segment(0, 1, 4), segment(2, 2, 8), segment(99, 100, 9)]
    assert _read(plain, {"annotations": {"take_a": {"segments": steps}}}).tasks[0].classes.ids == (4,)


def test_previous_label_counts_excluded_segments_and_never_tells_a_repeat_its_own_label(plain: Path):
    steps = [
        segment(5, 6, 6),
        segment(0, 1, 4),
        segment(1, 1, 6),
        segment(2, 3, 4),
        segment(2, 3, 4),
        segment(None, 1, 6),
    ]
    table = _read(plain, {"annotations": {"take_a": {"segments": steps}}})
    assert [(row.start_sec, *row.labels) for row in table.segments] == [(5, 1), (0, 0), (2, 0), (2, 0)]
    assert [row.previous_labels for row in table.segments] == [
        (0,),
        (UNKNOWN,),
        (1,),
        (1,),
    ]  # the excluded step at 1 s came before
    assert table.counts["repeated segments kept"] == 1
    assert len(table.excluded) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": {\n  "a": }\n}', "line 2, column 8"),
        ("", "line 1, column 1"),
        (f'{{"annotations": {"9" * 5000}}}', "cannot read"),
        ('{"annotations": {"a": {"segments": []}, "a": {"segments": []}}}', "has the key 'a' twice"),
        ("[1, 2]", "wrong shape"),
        ('{"takes": {}}', "wrong shape"),
        ('{"annotations": {}}', "no segments at all"),
        ('{"annotations": {"nobody": {"segments": [{"start_time": 1}]}}}', "1 × no end_time"),
    ],
)
def test_malformed_files_name_file_line_and_column(plain: Path, text: str, message: str):
    path = plain / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError) as raised:
        read_annotations(path, _config(plain), None)
    assert message in str(raised.value)
    assert "broken.json" in str(raised.value)


def test_a_file_of_another_encoding_and_one_without_a_usable_segment_say_where(plain: Path):
    path = plain / "steps.json"
    path.write_bytes('{"annotations": {"K\u00fcche": {}}}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot read(.|\n)*fix: save the file as UTF-8"):
        read_annotations(path, _config(plain), None)
    path.write_text('{"annotations": {"other": {"segments": [{}, {}]}}}')
    with pytest.raises(DataError, match=r"2 × no start_time \(steps\.json#other\[0\]\)"):
        read_annotations(path, _config(plain), None)


def test_classes_numbered_differently_in_the_two_files_are_warned_of(plain: Path):
    steps = [segment(1, 2, 40), segment(3, 4, 7), segment(5, 6, 9)]
    train = _read(plain, {"annotations": {"take_a": {"segments": steps}}})
    renamed = [steps[0] | {"step_name": "name 7"}, steps[1] | {"step_name": "name 40"}, steps[2] | {"step_name": "new"}]
    assert _read(plain, {"annotations": {UID: {"segments": steps}}}, train.tasks).swapped_names == ()
    val = _read(plain, {"annotations": {UID: {"segments": renamed}}}, train.tasks)
    assert val.swapped_names == ("7 is 'name 40', in training 'name 7'", "40 is 'name 7', in training 'name 40'")
    files = {
        part: _write_json(plain / f"{part}.json", {"annotations": {take: {"segments": rows}}})
        for part, take, rows in (("train", "take_a", steps), ("val", UID, renamed))
    }
    config = AnticipateConfig.model_validate({"name": "x", "folder": plain, "annotations": files | {"videos": plain}})
    with RunLog.open(config, "anticipate", resume=False) as log:
        read_tables(config, log, StopFlag())
    copies, warning = read_facts(plain / "x")["warnings"]
    assert "7 is 'name 40', in training 'name 7'" in warning
    assert copies.startswith("copies of training videos"), "the two files are one video under two names"


def test_missing_files(plain: Path):
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        read_annotations(plain / "none.json", _config(plain), None)
    annotation = _write_json(plain / "keystep.json", {"annotations": {}})
    with pytest.raises(DataError, match=r"set annotations\.videos"):
        read_annotations(annotation, _config(plain / "no"), None)


def test_takes_without_usable_video_are_exclusions(plain: Path, video: bytes):
    (plain / "torn.mp4").write_bytes(video[: len(video) // 2])
    annotation = {
        "annotations": {name: {"segments": [segment(1, 2, 5)]} for name in ("take_a", "absent", "torn", "../x")}
    }
    reasons = {item: reason for item, reason in _read(plain, annotation).excluded}
    assert reasons["keystep.json#absent[0]"] == "no video named after the take"
    assert reasons["keystep.json#torn[0]"].startswith("unreadable video: ")
    assert reasons["keystep.json#../x[0]"] == "the take's name is not a file name"


def test_two_files_for_one_take_are_an_error(plain: Path, video: bytes):
    (plain / "take_a.mkv").write_bytes(video)
    with pytest.raises(DataError, match=r"more than one video") as raised:
        _read(plain, {"annotations": {"take_a": {"segments": [segment(1, 2, 5)]}}})
    assert "take_a.mkv" in str(raised.value)
    assert "take_a.mp4" in str(raised.value)


def test_a_plain_folder_has_no_448_copies(plain: Path):
    with pytest.raises(DataError, match=r"plain folder"):
        _read(plain, {"annotations": {}}, resolution="448")


@pytest.mark.parametrize("view", ["ego", "cam01"])
def test_toy_world_is_read_whole_in_both_views(tmp_path_factory: pytest.TempPathFactory, view: str):
    world = tmp_path_factory.getbasetemp() / "toy-for-keystep"
    made = generate(world, ToyWorldConfig(num_takes=4, height=64, fps=6), num_processes=1)
    config = AnnotationConfig(
        train=world / "annotations/keystep_train.json", val=world / "annotations/keystep_val.json", videos=world,
        takes=world / "takes.json", view=view,
    )  # fmt: skip
    train = read_annotations(config.train, config, None)
    assert len(train.segments) == made.num_segments["train"]
    assert not train.excluded
    classes = train.tasks[0].classes
    assert set(classes.ids) <= set(made.classes)
    assert all(made.classes[int(i)] == name for i, name in zip(classes.ids, classes.names, strict=True))
    assert all((row.video.width == row.video.height) == (view == "ego") for row in train.segments)
    val = read_annotations(config.val, config, train.tasks)
    assert val.expected == made.num_segments["val"]
    assert not {row.take for row in train.segments} & {row.take for row in val.segments}
    assert not {row.participant for row in train.segments} & {row.participant for row in val.segments}


MAPPING = "label_id,step_unique_id,step_name,scenario_name\n0,40,Stir,cooking\n1,7,Check,cooking\n2,9,Set,bike\n"


def test_benchmark_classes(plain: Path):
    mapping = plain / "label_mapping.csv"
    mapping.write_text(MAPPING)
    steps = [
        segment(0, 1, 7, label_id=1),
        segment(1, 2, 40),  # of the full files: no label_id
        segment(2, 3, 7, label_id=2),
        segment(3, 4, 8),
        segment(4, 5, None, label_id=1),
        segment(5, 6, None, label_id=3),
        segment(6, 7, None),
    ]
    rows = [fields | {"take_name": "take_a", "ego_segment_name": "train/take_a/x.mp4"} for fields in steps]
    table = _read(plain, {"splits": "train", "segments": rows}, classes="benchmark", label_mapping=mapping)
    assert table.tasks[0].classes == ClassTable((0, 1), ("Stir", "Check"))
    assert [(row.start_sec, row.labels) for row in table.segments] == [(0, (1,)), (1, (0,)), (4, (1,))]
    assert table.segments[2].previous_labels == (UNKNOWN,)  # step 8 is none of the benchmark's
    assert [reason for _, reason in table.excluded] == [
        "label_id contradicts label_mapping.csv",
        "not one of the classes of label_mapping.csv",
        "label_id is not in label_mapping.csv",
        "no step_unique_id",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MAPPING + "3,9,Again,x\n", "row 4 of .* repeats an id"),
        (MAPPING + "x,10,Word,x\n", "row 4 of .* has no label_id"),
        ("label_id,step_name\n0,Stir\n", "does not have the columns"),
        (MAPPING.replace("scenario_name", "step_name"), "each column once"),
        (MAPPING + "3,10,Wrong, comma,x\n", "too many values in line 5"),
    ],
)
def test_wrong_label_mappings_are_refused(plain: Path, text: str, message: str):
    mapping = plain / "label_mapping.csv"
    mapping.write_text(text)
    with pytest.raises(DataError, match=message):
        _read(plain, {"annotations": {}}, classes="benchmark", label_mapping=mapping)


def test_takes_of_another_split_are_excluded(plain: Path):
    splits = _write_json(plain / "splits.json", {"take_uid_to_split": {UID: "val"}})
    annotation = {"annotations": {UID: {"segments": [segment(0, 1, 4)]}, "take_a": {"segments": [segment(0, 1, 4)]}}}
    with pytest.raises(DataError, match=r"1 × splits.json has the take in val, not in train"):
        _read(plain, annotation, splits=splits)
    tasks = (Task("step", ClassTable((4,), ("a",))),)
    val = _read(plain, annotation, tasks, splits=splits)
    assert [row.row for row in val.segments] == [f"keystep.json#{UID}[0]"]
    assert summarise(val.excluded) == {"the take is not in splits.json": 1}
    assert val.counts["takes in splits.json"] == 1
    for wrong in ([], {"split_to_take_uids": {}}, {"take_uid_to_split": {UID: "dev"}}):
        with pytest.raises(DataError, match=r"splits\.json has the wrong shape"):
            _read(plain, annotation, splits=_write_json(splits, wrong))


def test_class_table():
    table = ClassTable((3, 10), ("a", "a"))
    assert (table.index(10), 3 in table, 4 in table, len(table)) == (1, True, False, 2)
    assert table.sha256 != ClassTable((3, 11), ("a", "a")).sha256
    assert table.sha256 == ClassTable((3, 10), ("a", "a")).sha256
    with pytest.raises(DataError, match=r"class 4"):
        table.index(4)
    assert [table.label(i) for i in (3, 10, 4, None)] == [0, 1, UNKNOWN, UNKNOWN]
    for ids, names in (((3, 3), ("a", "b")), ((4, 3), ("a", "b")), ((3,), ())):
        with pytest.raises(DataError):
            ClassTable(ids, names)
