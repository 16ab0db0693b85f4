"""The toy world in the formats of other data sets: every file parses, fields are as documented, times are true."""

import csv
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from hwm.config import TOYWORLD_FORMATS, ToyWorldConfig
from hwm.data.toyworld import generate, load_truth
from hwm.data.toyworld.actions import action_of, actions_of, ego_video, taxonomy
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.formats_ego4d import video_uid
from hwm.data.toyworld.formats_epic import epic_splits, tail, timestamp, video_id_of, video_path
from hwm.data.toyworld.generate import plan_takes
from hwm.data.toyworld.remux import decode
from hwm.data.toyworld.rules import RECIPES
from hwm.data.video import probe_video
from hwm.errors import DataError

CONFIG = ToyWorldConfig(num_takes=9, val_fraction=0.34, seed=3, fps=4, height=64).model_copy(
    update={"formats": TOYWORLD_FORMATS}
)
LABEL_FIELDS = {"verb", "noun", "verb_label", "noun_label"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("formats") / "world", CONFIG, num_processes=1).folder


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _plans(split: str) -> list[TakePlan]:
    return [plan for plan in plan_takes(CONFIG) if plan.split == split]


def test_all_formats_and_traps_are_the_same_bytes_again(trap_world: Path, tmp_path: Path) -> None:
    config = ToyWorldConfig.model_validate(_json(trap_world / "toyworld.json")["config"])
    assert set(config.formats) == set(TOYWORLD_FORMATS)
    assert config.traps
    generate(tmp_path / "again", config, num_processes=2)
    assert _digests(tmp_path / "again") == _digests(trap_world)


def test_formats_only_add_files(world: Path, tmp_path: Path) -> None:
    """The plain world's files are the same bytes; its description names neither setting, as before they were there."""
    plain = generate(tmp_path / "plain", CONFIG.model_copy(update={"formats": ()}), num_processes=1).folder
    with_formats, without = _digests(world), _digests(plain)
    assert set(without) < set(with_formats)
    assert {name for name in without if without[name] != with_formats[name]} == {"toyworld.json"}
    assert not {"formats", "traps"} & set(_json(plain / "toyworld.json")["config"])
    added = {name.split("/")[0] for name in set(with_formats) - set(without)}
    assert added == {"ego4d", "epic", "annotations", "takes"}


def test_verb_and_noun_tell_all_steps_apart() -> None:
    leaves = {step.unique_id: action_of(step) for recipe in RECIPES for step in recipe.steps}
    assert len(set(leaves.values())) == len(leaves) == 14
    verbs, nouns = taxonomy()
    assert ("pour", "kettle") in leaves.values()
    assert (len(set(verbs)), len(set(nouns))) == (len(verbs), 8)


# ------------------------------------------------------------------------------------------------- Ego-Exo4D


def test_benchmark_files(world: Path) -> None:
    folder = world / "annotations" / "keystep_benchmark"
    mapping = _csv(folder / "label_mapping.csv")
    assert list(mapping[0]) == ["label_id", "step_unique_id", "step_name", "scenario_name"]
    assert [int(row["label_id"]) for row in mapping] == list(range(len(mapping)))
    ids = [int(row["step_unique_id"]) for row in mapping]
    assert ids != sorted(ids), "labels are not in the order of ids"
    label_of = {int(row["step_unique_id"]): int(row["label_id"]) for row in mapping}
    for split in ("train", "val"):
        content = _json(folder / f"keystep_segment_{split}.json")
        assert set(content) == {"date", "description", "splits", "segments"}
        assert content["splits"] == split
        full = _json(world / "annotations" / f"keystep_{split}.json")["annotations"]
        known = [
            (uid, segment["start_time"], segment["end_time"], segment["step_unique_id"], segment["step_name"])
            for uid, take in full.items()
            for segment in take["segments"]
            if segment["step_unique_id"] in label_of
        ]
        names = ("take_uid", "start_time", "end_time", "step_unique_id", "step_name")
        assert [tuple(row[name] for name in names) for row in content["segments"]] == known
        for row in content["segments"]:
            assert row["label_id"] == label_of[row["step_unique_id"]]
            assert row["ego_segment_name"] in row["segment_name_list"]
            assert row["ego_segment_name"].startswith(f"{split}/{row['take_name']}/start{row['start_time']}_end")
            assert row["ego_segment_name"].endswith("_214-1.mp4")


def test_small_copies_and_personalised_gaze(world: Path) -> None:
    personalised = 0
    for plan in plan_takes(CONFIG):
        ego = ego_video(world, plan)
        small = ego.parent / "downscaled" / "448"
        assert sorted(path.name for path in small.iterdir()) == sorted([ego.name, "cam01.mp4"])
        gaze = world / "takes" / plan.name / "eye_gaze" / "personalized_eye_gaze_2d.csv"
        personalised += gaze.is_file()
        assert not gaze.is_file() or list(_csv(gaze)[0]) == ["frame_num", "tracking_timestamp_us", "x", "y"]
    assert personalised == 3


# ----------------------------------------------------------------------------------------------------- Ego4D


def test_long_term_anticipation_files(world: Path) -> None:
    folder = world / "ego4d" / "annotations"
    words = _json(folder / "fho_lta_taxonomy.json")
    assert (words["verbs"], words["nouns"]) == taxonomy()
    seen: set[str] = set()
    for split in ("train", "val", "test_unannotated"):
        content = _json(folder / f"fho_lta_{split}.json")
        assert set(content) == {"version", "date", "description", "split", "clips"}
        assert content["split"] == split
        assert content["clips"]
        spans = ("clip_parent", "interval", "action_clip")
        fields = {f"{span}_{side}_{unit}" for span in spans for side in ("start", "end") for unit in ("sec", "frame")}
        fields |= {"video_uid", "clip_uid", "clip_id", "action_idx"}
        clips: dict[str, list[dict[str, Any]]] = {}
        for row in content["clips"]:
            labels = set() if split == "test_unannotated" else LABEL_FIELDS
            assert set(row) == fields | labels
            clips.setdefault(row["clip_uid"], []).append(row)
        for uid, rows in clips.items():
            info = probe_video(world / "ego4d" / "clips" / f"{uid}.mp4")
            order = sorted(rows, key=lambda row: row["action_idx"])
            assert [row["action_idx"] for row in order] == list(range(len(rows)))
            starts = [row["action_clip_start_sec"] for row in order]
            assert starts == sorted(starts)
            assert info.duration_sec == pytest.approx(rows[0]["clip_parent_end_sec"] - rows[0]["clip_parent_start_sec"])
            for row in rows if split != "test_unannotated" else []:
                assert words["verbs"][row["verb_label"]] == row["verb"]
                assert words["nouns"][row["noun_label"]] == row["noun"]
        assert content["clips"] != sorted(content["clips"], key=lambda row: (row["clip_uid"], row["action_idx"]))
        assert not seen & set(clips)
        seen |= set(clips)


def test_a_clip_shows_its_part_of_the_video_bit_for_bit(world: Path) -> None:
    rows = _json(world / "ego4d" / "annotations" / "fho_lta_train.json")["clips"]
    plan = _plans("train")[0]
    clip = next(row for row in rows if row["video_uid"] == video_uid(plan, CONFIG.seed))
    assert clip["clip_parent_start_sec"] > 0
    _, whole = decode(ego_video(world, plan))
    times, part = decode(world / "ego4d" / "clips" / f"{clip['clip_uid']}.mp4")
    np.testing.assert_array_equal(part, whole[clip["clip_parent_start_frame"] :])
    np.testing.assert_allclose(times, np.arange(len(part)) / CONFIG.fps, atol=1e-6)
    # Seconds of the clip and seconds of the video mean the same moment.
    actions = {action.start_sec for action in actions_of(plan)}
    for row in rows:
        if row["clip_uid"] == clip["clip_uid"]:
            start = row["action_clip_start_sec"] + row["clip_parent_start_sec"]
            assert min(abs(start - action) for action in actions) < 1e-4


def test_goal_step_files(world: Path) -> None:
    flags = {"is_continued", "is_procedural", "is_relevant"}
    fields = {"start_time", "end_time", "step_category", "step_description", "summary"} | flags
    relevance, parts, continued = set(), 0, 0
    for split, name in (("train", "train"), ("val", "valid")):
        content = _json(world / "ego4d" / "annotations" / f"goalstep_{name}.json")
        assert set(content) == {"version", "date", "description", "split", "videos"}
        videos = {video["video_uid"]: video for video in content["videos"]}
        assert set(videos) == {video_uid(plan, CONFIG.seed) for plan in _plans(split)}
        for plan in _plans(split):
            video = videos[video_uid(plan, CONFIG.seed)]
            assert (world / "ego4d" / "full_scale" / f"{video['video_uid']}.mp4").samefile(ego_video(world, plan))
            assert [step["start_time"] for step in video["segments"]] == list(plan.script.starts_sec)
            assert [step["end_time"] for step in video["segments"]] == list(plan.script.ends_sec)
            names = [RECIPES[plan.script.recipe].steps[item].name for item in plan.script.steps]
            assert [step["step_category"] for step in video["segments"]] == names
            for number, step in enumerate(video["segments"]):
                assert set(step) == fields | {"segments"}
                assert video["start_time"] < step["start_time"] < step["end_time"] < video["end_time"]
                assert step["is_continued"] == (names[number] in names[:number])
                continued += step["is_continued"]
                relevance.add(step["is_relevant"])
                parts += bool(step["segments"])
                for part in step["segments"]:
                    assert set(part) == fields
                    assert step["start_time"] <= part["start_time"] < part["end_time"] <= step["end_time"]
    assert relevance == {"essential", "optional", "irrelevant", "unsure"}
    assert 0 < parts < sum(len(plan.script.steps) for plan in plan_takes(CONFIG))
    assert continued > 0


def test_ego4d_gaze(world: Path) -> None:
    found = 0
    for plan in plan_takes(CONFIG):
        path = world / "ego4d" / "gaze" / f"{video_uid(plan, CONFIG.seed)}.csv"
        if not path.is_file():
            continue
        found += 1
        rows, truth = _csv(path), load_truth(world, plan.name)
        filled = {name for name, value in rows[0].items() if value}
        assert filled == {"world_index", "confidence", "norm_pos_x", "norm_pos_y"}
        assert len(rows) > len(truth.times_sec), "several samples a frame"
        frames = [int(row["world_index"]) for row in rows]
        assert sorted(set(frames)) == list(range(len(truth.times_sec)))
        points = np.array([(float(row["norm_pos_x"]), 1 - float(row["norm_pos_y"])) for row in rows])
        np.testing.assert_allclose(points, truth.gaze_ego[frames], atol=1e-6)
    assert found == 3


# ------------------------------------------------------------------------------------------------------ EPIC

EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
)


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    assert (len(hours), len(minutes), len(seconds)) == (2, 2, 5)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def test_epic_annotations(world: Path) -> None:
    folder = world / "epic" / "annotations"
    classes = {
        kind: {int(row["id"]): row for row in _csv(folder / f"EPIC_100_{kind}_classes.csv")}
        for kind in ("verb", "noun")
    }
    assert [list(rows) for rows in classes.values()] == [list(range(len(rows))) for rows in classes.values()]
    narrations: set[str] = set()
    for split, plans in epic_splits(plan_takes(CONFIG)).items():
        path = folder / f"EPIC_100_{split}.csv"
        assert path.read_text(encoding="utf-8").split("\n")[0] == EPIC_COLUMNS
        rows = _csv(path)
        assert {row["video_id"] for row in rows} == {video_id_of(plan) for plan in plans}
        expected = [(plan, action) for plan in plans for action in actions_of(plan)]
        for row, (plan, action) in zip(rows, expected, strict=True):
            assert row["narration_id"].rsplit("_", 1)[0] == row["video_id"] == video_id_of(plan)
            assert row["video_id"].startswith(f"{row['participant_id']}_")
            start, stop = _seconds(row["start_timestamp"]), _seconds(row["stop_timestamp"])
            assert start == pytest.approx(action.start_sec, abs=0.0051)
            assert stop == pytest.approx(action.end_sec, abs=0.0051)
            assert int(row["start_frame"]) == math.floor(60 * start + 1e-9)
            assert (row["verb"], row["noun"]) == (action.verb, action.noun)
            assert classes["verb"][int(row["verb_class"])]["key"] == action.verb
            assert classes["noun"][int(row["noun_class"])]["key"] == action.noun
            assert (row["all_nouns"], row["all_noun_classes"]) == (f"['{action.noun}']", f"[{row['noun_class']}]")
            narrations.add(row["narration_id"])
        assert len(narrations) == len({*narrations})
    assert len(narrations) == sum(len(plan.script.steps) for plan in plan_takes(CONFIG))


def test_epic_videos_and_their_rates(world: Path) -> None:
    for plans in epic_splits(plan_takes(CONFIG)).values():
        for number, plan in enumerate(plans):
            path = world / video_path(plan)
            assert path.suffix == ".MP4"
            if number:
                assert path.samefile(ego_video(world, plan))
                continue
            with av.open(str(path)) as container:
                assert container.streams.video[0].average_rate == pytest.approx(60000 / 1001)
            # Each frame is the one that the first video shows at that time.
            times, frames = decode(path)
            sources, originals = decode(ego_video(world, plan))
            for index in range(0, len(times), 37):
                shown = int(np.searchsorted(sources, times[index] + 1e-6, side="right")) - 1
                errors = [np.abs(frames[index].astype(int) - other).mean() for other in originals]
                assert int(np.argmin(errors)) == shown


def test_epic_unseen_people_and_rare_classes(world: Path) -> None:
    folder = world / "epic" / "annotations"
    people = {
        split: {row["participant_id"] for row in _csv(folder / f"EPIC_100_{split}.csv")}
        for split in ("train", "validation")
    }
    unseen = [row["participant_id"] for row in _csv(folder / "EPIC_100_unseen_participant_ids_validation.csv")]
    assert set(unseen) == people["validation"] - people["train"]
    assert unseen
    assert people["validation"] & people["train"], "and some people of the validation are in training too"
    for kind in ("verb", "noun"):
        rare = {int(row[kind]) for row in _csv(folder / f"EPIC_100_tail_{kind}s.csv")}
        used = [int(row[f"{kind}_class"]) for row in _csv(folder / "EPIC_100_train.csv")]
        share = sum(number in rare for number in used) / len(used)
        assert 0 < share <= 0.2
        assert min(rare) == max(set(used) - rare) + 1, "rare classes are the ones with the highest numbers"


def test_tail_and_timestamps() -> None:
    assert tail(["a", "b", "c"], ["a"] * 8 + ["b"] * 2) == [1, 2]
    assert tail(["a", "b"], ["a"] * 7 + ["b"] * 3) == []
    assert timestamp(3723.456) == "01:02:03.46"
    assert timestamp(0.14) == "00:00:00.14"
    assert timestamp(59.999) == "00:01:00.00"
    assert timestamp(1.0891, 3) == "00:00:01.089"


# ---------------------------------------------------------------------------------------------------- config


def test_traps_need_enough_takes() -> None:
    for bad in ({"num_takes": 15}, {"num_takes": 40, "val_fraction": 0.5}, {"num_takes": 16, "val_fraction": 0.05}):
        with pytest.raises(ValueError, match="traps need"):
            ToyWorldConfig.model_validate(bad | {"traps": True})
    for takes in (16, 17, 18, 19, 20, 23, 96):
        plans = plan_takes(ToyWorldConfig(num_takes=takes, traps=True))
        assert sum(plan.split == "train" for plan in plans) >= 12
        assert sum(plan.split == "val" for plan in plans) >= 3


def test_a_world_with_other_formats_is_another_world(world: Path) -> None:
    assert not generate(world, CONFIG).made_now
    with pytest.raises(DataError, match="another config"):
        generate(world, CONFIG.model_copy(update={"formats": ("epic",)}))
