"""Ego4D: long-term anticipation by clip and action_idx, Goal-Step on both levels; optional fields, test splits."""

import json
from pathlib import Path
from typing import Any

import pytest

from hwm.config import AnnotationConfig
from hwm.data.annotations import read_annotations
from hwm.data.exclusions import summarise
from hwm.data.segments import UNKNOWN, ClassTable, SegmentTable, Task
from hwm.errors import DataError

VERBS, NOUNS = [f"v{i}" for i in range(6)], [f"n{i}" for i in range(9)]


@pytest.fixture
def root(tmp_path: Path, ten_seconds: bytes) -> Path:
    """`clips/a.mp4`, `clips/b.mp4`, `v2/full_scale/x.mp4` and `y.mp4`."""
    for name in ("clips/a", "clips/b", "v2/full_scale/x", "v2/full_scale/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.mp4").write_bytes(ten_seconds)
    return tmp_path


def _write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _config(root: Path, dataset: str, **more: Any) -> AnnotationConfig:
    return AnnotationConfig(**{"dataset": dataset, "train": root / "t", "val": root / "v", "videos": root, **more})


# ------------------------------------------------------------------------------------------ long-term anticipation


def action(index: Any, start: Any, end: Any, verb: Any, noun: Any, clip: str = "a", **more: Any) -> dict[str, Any]:
    """An action whose times in the parent video would be wrong: only those of the clip count."""
    words = {"verb": f"v{verb}", "noun": f"n{noun}", "verb_label": verb, "noun_label": noun}
    times = {"action_clip_start_sec": start, "action_clip_end_sec": end, "interval_start_sec": 500.0}
    frames = {"action_clip_start_frame": 7, "action_clip_end_frame": 8, "clip_parent_start_sec": 300.0}
    return {"video_uid": "parent", "clip_uid": clip, "action_idx": index, "clip_id": 3} | words | times | frames | more


def _lta(root: Path, actions: list[Any], tasks: tuple[Task, ...] | None = None, **more: Any) -> SegmentTable:
    path = _write(root / "fho_lta.json", {"split": "train", "clips": actions})
    table = read_annotations(path, _config(root, "ego4d-lta", **more), tasks)
    assert table.expected == len(actions) == len(table.segments) + len(table.excluded)
    return table


def test_lta_actions_are_ordered_by_index_within_their_clip(root: Path) -> None:
    actions = [
        action(2, 5.0, 6.5, 1, 2),
        action(0, 0.5, 2.0, 3, 2, clip="b"),
        action(0, 1.0, 3.0, 3, 2),
        action(1, 0.5, 2.0, 1, 4),  # starts before the one of lower index, as parallel actions do
    ]
    table = _lta(root, actions, sequence_length=3)
    assert [(task.name, task.num_positions) for task in table.tasks] == [("verb", 3), ("noun", 3), ("action", 1)]
    assert table.tasks[0].classes == ClassTable((1, 3), ("v1", "v3"))
    assert table.tasks[2].classes == ClassTable((1002, 1004, 3002), ("v1 n2", "v1 n4", "v3 n2"))
    last, other, first, second = table.segments
    assert [(s.start_sec, s.end_sec) for s in table.segments] == [(5, 6.5), (0.5, 2), (1, 3), (0.5, 2)]
    assert first.labels == other.labels == (1, 0, 2)
    assert (second.labels, last.labels) == ((0, 1, 1), (0, 0, 0))
    assert first.previous_labels == other.previous_labels == (UNKNOWN,) * 3
    assert (second.previous_labels, last.previous_labels) == (first.labels, second.labels)
    assert first.following_labels == (second.labels, last.labels)
    assert second.following_labels == (last.labels,)
    assert last.following_labels == other.following_labels == ()
    assert {s.take for s in table.segments} == {"parent"}  # clips of one video stay together
    assert [s.video.path.name for s in table.segments] == ["a.mp4", "b.mp4", "a.mp4", "a.mp4"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"action_clip_start_sec": None}, "no action_clip_start_sec"),
        ({"action_clip_end_sec": 2.0}, "action_clip_end_sec is not after action_clip_start_sec"),
        ({"action_clip_start_sec": -0.5}, "action_clip_start_sec is negative"),
        ({"verb_label": None}, "no verb_label"),
        ({"noun_label": -1}, "noun_label is negative"),
        ({"noun_label": 1000}, "noun_label is not below 1000"),
        ({"verb_label": "1"}, "verb_label is not an integer"),
        ({"action_idx": None}, "no action_idx"),
        ({"action_idx": 1.5}, "action_idx is not an integer"),
        ({"clip_uid": "gone"}, "the video file is not on disk"),
        ({"clip_uid": None}, "the action names no clip"),
        ({"action_clip_start_sec": 12.0, "action_clip_end_sec": 13.0}, "starts after the end of the video"),
    ],
)
def test_lta_faults(root: Path, change: dict[str, Any], reason: str) -> None:
    table = _lta(root, [action(0, 0.0, 1.0, 1, 1), action(1, 2.0, 3.0, 1, 1) | change])
    assert table.excluded == (("fho_lta.json#clips[1]", reason),)


def test_lta_follows_over_actions_that_are_not_used_themselves(root: Path) -> None:
    train = _lta(root, [action(0, 0.0, 1.0, 1, 1)]).tasks
    table = _lta(
        root, [action(0, 0.0, 1.0, 1, 1), action(1, 2.0, 2.0, 1, 1), action(2, 3.0, 4.0, 5, 5)], sequence_length=3
    )
    first = table.segments[0]
    assert first.following_labels == ((0, 0, 0), (1, 1, 1))
    val = _lta(root, [action(0, 0.0, 1.0, 1, 5), action(1, 2.0, 3.0, 5, 5), action(2, 4.0, 5.0, 1, 1), "?"], train)
    assert [s.labels for s in val.segments] == [(0, UNKNOWN, UNKNOWN), (0, 0, 0)]
    assert summarise(val.excluded) == {"class not in training": 1, "the action is not an object": 1}


def test_lta_taxonomy_names_and_checks_the_labels(root: Path) -> None:
    taxonomy = _write(root / "taxonomy.json", {"verbs": VERBS, "nouns": [f"long {noun}" for noun in NOUNS]})
    plain = action(0, 0.0, 1.0, 1, 1)
    del plain["noun"]
    table = _lta(root, [plain, plain | {"action_idx": 1, "noun_label": 9}], taxonomy=taxonomy)
    assert table.tasks[1].classes == ClassTable((1,), ("long n1",))
    assert summarise(table.excluded) == {"noun_label is not in the taxonomy": 1}
    with pytest.raises(DataError, match=r"not the taxonomy of these annotations[\s\S]*'n1'[\s\S]*'long n1'"):
        _lta(root, [action(0, 0.0, 1.0, 1, 1)], taxonomy=taxonomy)
    with pytest.raises(DataError, match="wrong shape"):
        _lta(root, [plain], taxonomy=_write(root / "bad.json", {"verbs": VERBS}))


def test_test_splits_are_refused(root: Path) -> None:
    bare = {"clip_uid": "a", "action_idx": 0, "action_clip_start_sec": 0.0, "action_clip_end_sec": 1.0}
    for actions in ([bare], [bare | {"verb_label": -1, "noun_label": -1}]):
        with pytest.raises(DataError, match=r"has no labels[\s\S]*test split"):
            _lta(root, actions)
    path = _write(root / "goalstep_test.json", {"videos": [{"video_uid": "x", "step_segments": []}]})
    with pytest.raises(DataError, match=r"has no labels[\s\S]*test split"):
        read_annotations(path, _config(root, "ego4d-goalstep"), None)


@pytest.mark.parametrize("dataset", ["ego4d-lta", "ego4d-goalstep"])
def test_other_files_are_refused(root: Path, dataset: str) -> None:
    for content in ([], {"annotations": {}}, {"clips": {}, "videos": {}}):
        with pytest.raises(DataError, match="wrong shape"):
            read_annotations(_write(root / "other.json", content), _config(root, dataset), None)


# ------------------------------------------------------------------------------------------------------- Goal-Step


def step(start: Any, end: Any, category: Any, **more: Any) -> dict[str, Any]:
    flags = {"is_continued": False, "is_procedural": True, "is_relevant": "essential", "summary": []}
    return {"start_time": start, "end_time": end, "step_category": category, "step_description": "d"} | flags | more


def _goalstep(
    root: Path, videos: list[Any], expected: int, tasks: tuple[Task, ...] | None = None, **more: Any
) -> SegmentTable:
    path = _write(root / "goalstep.json", {"split": "train", "videos": videos})
    table = read_annotations(path, _config(root, "ego4d-goalstep", **more), tasks)
    assert table.expected == expected == len(table.segments) + len(table.excluded)
    return table


def test_goalstep_steps(root: Path) -> None:
    bare = {"start_time": 6.0, "end_time": 7.0, "step_category": "b"}  # one released step lacks all flags
    steps = [
        step(4.0, 6.0, "a", is_continued=True),
        step(1.0, 4.0, "b", is_relevant="unsure"),
        bare,
    ]
    videos = [
        {"video_uid": "x", "goal_category": "COOKING", "segments": steps},
        {"video_uid": "y", "segments": [step(0.0, 12.0, "a")]},
    ]
    table = _goalstep(root, videos, 4)
    assert table.tasks == (Task("step", ClassTable(("a", "b"), ("a", "b"))),)
    assert [(s.start_sec, s.end_sec, s.labels) for s in table.segments] == [
        (4.0, 6.0, (0,)), (1.0, 4.0, (1,)), (6.0, 7.0, (1,)), (0.0, 12.0, (0,)),
    ]  # fmt: skip
    assert [s.previous_labels for s in table.segments] == [(1,), (UNKNOWN,), (0,), (UNKNOWN,)]
    assert [s.scenario for s in table.segments] == ["COOKING"] * 3 + [""]
    assert [s.row for s in table.segments][::3] == ["goalstep.json#x[0]", "goalstep.json#y[0]"]
    counts = table.counts
    assert (counts["annotated as continued"], counts["annotated as unsure"]) == (1, 1)
    assert counts["annotated without is_continued"] == 1


def test_goalstep_substeps(root: Path) -> None:
    inner = [step(1.0, 2.0, "a1"), step(2.0, 2.0, "a2"), "?"]
    steps = [step(1.0, 4.0, "a", segments=inner), step(4.0, 5.0, "b"), step(5.0, 6.0, "c", segments={}), 17]
    videos = [{"video_uid": "x", "segments": [*steps, step(6.0, 7.0, "d", segments=7)]}]
    table = _goalstep(root, videos, 5, level="substep")
    assert [(s.row, s.labels) for s in table.segments] == [("goalstep.json#x[0][0]", (0,))]
    assert summarise(table.excluded) == {
        "the step has no list of sub-steps": 2, "end_time is not after start_time": 1,
        "the segment is not an object": 1,
    }  # fmt: skip
    assert table.counts["steps without sub-steps"] == 2


def test_goalstep_faults(root: Path) -> None:
    videos = [
        {
            "video_uid": "x",
            "segments": [step(0.0, 1.0, "a"), step(1.0, 2.0, None), step(2.0, 3.0, 5), step(None, 1, "a")],
        },
        {"video_uid": "x", "segments": []},
        {"video_uid": "gone", "segments": [step(0.0, 1.0, "a")]},
        {"video_uid": "y"},
        {"segments": []},
        "?",
    ]
    table = _goalstep(root, videos, 9)
    assert summarise(table.excluded) == {
        "the entry names no video": 2, "no start_time": 1, "no step_category": 1, "step_category is not text": 1,
        "the video file is not on disk": 1, "the video has no list of segments": 1, "the video is annotated twice": 1,
    }  # fmt: skip


def test_goalstep_categories_only_in_validation(root: Path) -> None:
    train = _goalstep(root, [{"video_uid": "x", "segments": [step(0.0, 1.0, "a")]}], 1).tasks
    val = _goalstep(root, [{"video_uid": "y", "segments": [step(0.0, 1.0, "z"), step(1.0, 2.0, "a")]}], 2, train)
    assert val.excluded == (("goalstep.json#y[0]", "class not in training"),)


def test_reading_twice_gives_the_same_table(root: Path) -> None:
    actions = [action(i, float(i), i + 0.5, i % 3, (5 * i) % 7, clip="ab"[i % 2]) for i in range(9)]
    one, two = (_lta(root, actions, sequence_length=4) for _ in range(2))
    assert one == two
    shuffled = _lta(root, actions[::-1], sequence_length=4)
    assert [task.classes.sha256 for task in shuffled.tasks] == [task.classes.sha256 for task in one.tasks]
    assert {s.start_sec: s.following_labels for s in shuffled.segments} == {
        s.start_sec: s.following_labels for s in one.segments
    }
