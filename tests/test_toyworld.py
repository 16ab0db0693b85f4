"""Files of the toy world: same bytes every time, real formats, truth that agrees with the pixels, nothing half done."""

import csv
import hashlib
import json
import multiprocessing
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hwm.config import ToyWorldConfig
from hwm.data.toyworld import ToyWorldSummary, generate, load_truth
from hwm.data.toyworld.ceiling import ceilings
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.generate import plan_takes
from hwm.data.toyworld.rules import RECIPES
from hwm.data.video import VideoReader, probe_video
from hwm.errors import DataError, RunError
from process_groups import is_gone_within, own_group

CONFIG = ToyWorldConfig(num_takes=3, val_fraction=0.34, seed=5, fps=6, height=96)
UNSAID = {"ego_camera", "grid_fps", "views", "formats", "traps"}
"""Settings that a world of their defaults does not name, so that worlds made before they were there are the same."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ToyWorldSummary:
    return generate(tmp_path_factory.mktemp("toy") / "world", CONFIG, num_processes=1)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _ego(world: ToyWorldSummary, plan: TakePlan) -> Path:
    return world.folder / "takes" / plan.name / "frame_aligned_videos" / f"{plan.aria}_214-1.mp4"


def test_same_seed_gives_the_same_bytes_with_any_number_of_processes(world: ToyWorldSummary, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(tmp_path / "again", CONFIG, progress=lambda done, total: seen.append((done, total)), num_processes=2)
    assert _digests(tmp_path / "again") == _digests(world.folder)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("view", ["exo", "ego"])
def test_one_view_alone_is_the_same_world_without_the_other(world: ToyWorldSummary, tmp_path: Path, view: str) -> None:
    one = generate(tmp_path / view, CONFIG.model_copy(update={"views": view}), num_processes=1)
    whole, found = _digests(world.folder), _digests(one.folder)
    assert one.ceilings == world.ceilings
    assert {name: digest for name, digest in found.items() if name != "toyworld.json"}.items() <= whole.items()
    missing = {Path(name).name for name in whole.keys() - found.keys()}
    if view == "ego":
        assert missing == {"cam01.mp4", "train_cam01.txt", "val_cam01.txt"}
    else:
        aria = {path.name for path in world.folder.rglob("aria*.mp4")}
        assert aria
        assert missing == aria | {"train_ego.txt", "val_ego.txt"}


def test_ceilings_are_those_of_the_grid_that_is_asked_for(tmp_path: Path) -> None:
    fine = generate(tmp_path / "fine", CONFIG.model_copy(update={"grid_fps": 6.0, "views": "ego"}), num_processes=1)
    told = _json(fine.folder / "toyworld.json")
    assert told["grid_fps"] == told["config"]["grid_fps"] == 6.0
    scripts = [plan.script for plan in plan_takes(CONFIG) if plan.split == "val"]
    assert fine.ceilings["val"] == ceilings(scripts, True, 6.0, CONFIG.fps)
    assert fine.ceilings["val"] != ceilings(scripts, True, 4.0, CONFIG.fps)


def test_formats_and_traps_need_both_views() -> None:
    with pytest.raises(ValueError, match="need views=both, found views=ego"):
        ToyWorldConfig(views="ego", formats=("lta",))


def test_another_seed_gives_other_takes() -> None:
    scripts = [[plan.script for plan in plan_takes(CONFIG.model_copy(update={"seed": seed}))] for seed in (5, 6)]
    assert scripts[0] != scripts[1]


def test_files_are_where_takes_json_says(world: ToyWorldSummary) -> None:
    takes = json.loads((world.folder / "takes.json").read_text(encoding="utf-8"))
    assert len(takes) == 3
    for take in takes:
        root = world.folder / take["root_dir"]
        durations = set()
        for camera, streams in take["frame_aligned_videos"].items():
            for stream in streams.values():
                if camera in ("collage", "best_exo"):
                    continue
                info = probe_video(root / stream["relative_path"])
                durations.add(round(info.duration_sec, 3))
                if stream["stream_id"] == "214-1":
                    assert (info.width, info.height) == (96, 96)
                if camera == "cam01":
                    assert (info.width, info.height) == (170, 96)
        assert durations == {round(take["duration_sec"], 3)}
        assert take["frame_aligned_videos"]["best_exo"]["0"]["relative_path"] is None
        assert take["frame_aligned_videos"]["collage"]["0"]["relative_path"] == "frame_aligned_videos/ego_preview.mp4"
        names = sorted(path.name for path in (root / "frame_aligned_videos").iterdir())
        assert names[0].endswith("_1201-1.mp4"), "the grey side camera sorts first, as in the real layout"


def test_annotations_have_the_real_structure(world: ToyWorldSummary) -> None:
    files = {split: _json(world.folder / "annotations" / f"keystep_{split}.json") for split in ("train", "val")}
    count = dict.fromkeys(files, 0)
    for split, content in files.items():
        assert set(content) == {"annotations", "taxonomy", "vocabulary"}
        for uid, take in content["annotations"].items():
            assert take["take_uid"] == uid
            nodes = content["taxonomy"][take["scenario"]]
            last_end = 0.0
            for segment in take["segments"]:
                node = nodes[str(segment["step_id"])]
                assert node["is_leafnode"]
                assert node["unique_id"] == segment["step_unique_id"]
                assert node["name"] == segment["step_name"]
                assert content["vocabulary"][str(segment["step_unique_id"])] == segment["step_name"]
                assert last_end < segment["start_time"] < segment["end_time"]
                last_end = segment["end_time"]
                count[split] += 1
    assert count == world.num_segments
    assert {int(key) for key in files["train"]["vocabulary"]} == set(world.classes)


def test_taxonomy_shares_leaves_between_scenarios_and_has_inner_nodes(world: ToyWorldSummary) -> None:
    taxonomy = _json(world.folder / "annotations" / "keystep_train.json")["taxonomy"]
    places: dict[int, set[tuple[str, int]]] = {}
    for scenario, nodes in taxonomy.items():
        for key, node in nodes.items():
            assert node["id"] == int(key)
            assert ("unique_id" in node) == node["is_leafnode"]
            if node["is_leafnode"]:
                parent = nodes[str(node["parent_id"])]
                assert not parent["is_leafnode"]
                assert parent["name"] == node["parent_name"]
                places.setdefault(node["unique_id"], set()).add((scenario, node["id"]))
    assert len(places) == 14
    shared = [spots for spots in places.values() if len(spots) > 1]
    assert len(shared) >= 3
    assert all(len({local for _, local in spots}) > 1 for spots in shared), "a shared leaf has another id elsewhere"
    ids = sorted(places)
    assert ids != list(range(ids[0], ids[0] + len(ids))), "unique ids are not dense"


def test_no_participant_is_in_both_splits(world: ToyWorldSummary) -> None:
    splits = _json(world.folder / "annotations" / "splits.json")
    people: dict[str, set[int]] = {"train": set(), "val": set()}
    for take in json.loads((world.folder / "takes.json").read_text(encoding="utf-8")):
        split = splits["take_uid_to_split"][take["take_uid"]]
        assert take["take_uid"] in splits["split_to_take_uids"][split]
        people[split].add(take["participant_uid"])
    assert people["train"]
    assert people["val"]
    assert not people["train"] & people["val"]
    config = ToyWorldConfig(num_takes=50, val_fraction=0.3)
    by_split: dict[str, set[int]] = {"train": set(), "val": set()}
    for plan in plan_takes(config):
        by_split[plan.split].add(plan.person)
    assert not by_split["train"] & by_split["val"]


def test_measured_gaze_is_the_truth_in_1408_pixels(world: ToyWorldSummary) -> None:
    for plan in plan_takes(CONFIG):
        truth = load_truth(world.folder, plan.name)
        path = world.folder / "takes" / plan.name / "eye_gaze" / "general_eye_gaze_2d.csv"
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert list(rows[0]) == ["frame_num", "tracking_timestamp_us", "x", "y"]
        assert [int(row["frame_num"]) for row in rows] == list(range(len(rows)))
        assert set(np.diff([int(row["tracking_timestamp_us"]) for row in rows])) == {100_000}
        # 10 Hz and 6 frames a second meet every half second: sample 5 k is frame 3 k.
        shared = range(0, min(len(rows) // 5, len(truth.times_sec) // 3))
        found = np.array([[float(rows[5 * k]["x"]), float(rows[5 * k]["y"])] for k in shared]) / 1408
        np.testing.assert_allclose(found, truth.gaze_ego[[3 * k for k in shared]], atol=1e-6)
        assert (truth.gaze_ego > 0).all()
        assert (truth.gaze_ego < 1).all()
        assert len(rows) >= 10 * plan.script.duration_sec - 1


@pytest.mark.parametrize("view", ["exo", "ego"])
def test_truth_points_lie_on_the_drawn_objects(world: ToyWorldSummary, view: str) -> None:
    """Find each object by its colour in the decoded picture; its truth must lie there, whatever the camera does."""
    colours = {"kettle": (58, 112, 204), "mug": (214, 48, 50), "bowl": (142, 96, 200), "bottle": (44, 150, 84)}
    checked = 0
    for plan in plan_takes(CONFIG):
        truth = load_truth(world.folder, plan.name)
        path = _ego(world, plan) if view == "ego" else _ego(world, plan).with_name("cam01.mp4")
        info = probe_video(path)
        with VideoReader(path) as reader:
            # After the first turn the ego camera has panned, and the hands are still at rest.
            frame = int(np.argmax(truth.turned))
            picture = reader.read([truth.times_sec[frame]], [(info.height, info.width)]).views[0][0].astype(float)
        points = (truth.objects_ego if view == "ego" else truth.objects_exo)[frame]
        tint = picture / (1 + picture.sum(axis=-1, keepdims=True))
        rows, columns = np.mgrid[: info.height, : info.width]
        for kind, point in zip(truth.object_kinds, points, strict=True):
            inside = np.hypot(*(point - 0.5)) < 0.42 if view == "ego" else True  # not under the fisheye's rim
            if kind in colours and inside:
                x, y = point[0] * info.width, point[1] * info.height
                near = np.hypot(columns - x, rows - y) < 0.11 * info.height
                wanted = np.array(colours[kind]) / sum(colours[kind])
                hit = near & (np.abs(tint - wanted).max(axis=-1) < 0.07)
                assert hit.sum() > 30, f"no {kind} at {point} in {plan.name}"
                centre = np.array([columns[hit].mean() - x, rows[hit].mean() - y]) / info.height
                assert np.abs(centre).max() < 0.045, f"{kind} in {plan.name} is off by {centre}"
                checked += 1
    assert checked >= 6


def test_head_box_holds_the_head(world: ToyWorldSummary) -> None:
    for plan in plan_takes(CONFIG):
        truth = load_truth(world.folder, plan.name)
        box = truth.head_box
        assert ((box > 0) & (box < 1)).all()
        wide = (box[:, 2] - box[:, 0]) * 170 / 96
        np.testing.assert_allclose(wide, box[:, 3] - box[:, 1])
        assert (wide * 128 >= 24).all(), "at least 24 px where the central square is 128"
        with VideoReader(_ego(world, plan).with_name("cam01.mp4")) as reader:
            two = reader.read([0.0, float(truth.times_sec[-1])], [(96, 170)]).views[0].astype(float)
        # The head is the only thing that changes in the upper middle of the picture, and it stays in its box.
        left, top, right, bottom = (box[0] * [170, 96, 170, 96]).round().astype(int)
        assert np.abs(two[0] - two[1])[top:bottom, left:right].mean() > 4


def test_description_names_ceilings_classes_and_files(world: ToyWorldSummary) -> None:
    description = _json(world.folder / "toyworld.json")
    assert description["config"] == CONFIG.model_dump(mode="json", exclude=UNSAID)
    assert len(description["classes"]) == 14
    for split in ("train", "val"):
        rows = description["ceilings"][split]
        assert [row["horizon_sec"] for row in rows] == [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
        assert rows == [row._asdict() for row in world.ceilings[split]]
    on_disk = {name for name in _digests(world.folder) if name != "toyworld.json"}
    assert set(description["files"]) == on_disk


def test_the_same_world_is_found_made_and_untouched(world: ToyWorldSummary) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")}
    again = generate(world.folder, CONFIG)
    assert not again.made_now
    assert world.made_now
    assert again._replace(made_now=True) == world
    assert {path: path.stat().st_mtime_ns for path in world.folder.rglob("*")} == before


def test_a_folder_of_others_is_refused_and_left_alone(world: ToyWorldSummary, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="new or empty folder"):
        generate(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="another config"):
        generate(world.folder, CONFIG.model_copy(update={"seed": 6}))


def test_a_damaged_world_is_refused(tmp_path: Path) -> None:
    config = ToyWorldConfig(num_takes=2, fps=4, height=64)
    generate(tmp_path / "w", config, num_processes=1)
    next((tmp_path / "w").rglob("cam01.mp4")).unlink()
    with pytest.raises(DataError, match=r"damaged[\s\S]*cam01"):
        generate(tmp_path / "w", config)


def test_a_broken_off_world_leaves_nothing(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        generate(tmp_path / "w", ToyWorldConfig(num_takes=2, fps=4, height=64), progress=stop, num_processes=1)
    assert list(tmp_path.iterdir()) == []


def test_unknown_take_has_no_truth(world: ToyWorldSummary) -> None:
    with pytest.raises(DataError, match="toy_soup_01_1"):
        load_truth(world.folder, "toy_soup_01_1")


def test_every_recipe_is_in_both_splits_of_the_default_world() -> None:
    found = {(plan.split, plan.script.recipe) for plan in plan_takes(ToyWorldConfig())}
    assert found == {(split, recipe) for split in ("train", "val") for recipe in range(len(RECIPES))}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_or_killed_world_leaves_no_process_that_draws(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hwm", "toyworld", str(tmp_path / "w"), "--takes", "400"]
    with own_group(command) as child:
        until = time.monotonic() + 120
        while not list(tmp_path.glob(".w.partial-*/takes/*/*/cam01.mp4")) and time.monotonic() < until:
            time.sleep(0.1)
        child.send_signal(number)
        assert child.wait(60) == code
        assert is_gone_within(child.pid, 30)
    if number == signal.SIGTERM:
        assert not list(tmp_path.iterdir())


def test_a_process_that_draws_and_is_killed_is_told(tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(RunError, match="was killed"):
        generate(tmp_path / "w", ToyWorldConfig(num_takes=16, fps=4, height=64), progress=kill, num_processes=2)
    assert list(tmp_path.iterdir()) == []
