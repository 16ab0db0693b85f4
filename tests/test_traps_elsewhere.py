"""Each trap of a toy world in the formats of Ego4D and EPIC-KITCHENS: see `test_traps.py`."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwm.data.segments import UNKNOWN, Segment
from hwm.data.toyworld.remux import decode
from hwm.data.toyworld.traps import Trap
from hwm.data.video import probe_video
from traps_world import (
    OTHERS,
    World,
    all_and_no_more,
    every_trap_has_its_check,
    nearest,
    read_at,
    rows_in,
    same_frames_later,
)

DATASETS = ("ego4d-lta", "ego4d-goalstep", "epic")


@pytest.fixture(scope="module")
def world(trap_world: Path) -> World:
    return World(trap_world)


@pytest.mark.parametrize("file", OTHERS)
def test_the_traps_are_all_that_is_excluded_elsewhere(world: World, file: str) -> None:
    all_and_no_more(world.table(file), world.excluded(file, {}))


def excluded_elsewhere(world: World, trap: Trap) -> None:
    assert trap.where
    for file in OTHERS:
        reasons = dict(world.table(file).excluded)
        assert all(reasons[row].startswith(str(trap.reason)) for row in rows_in(trap, file))


def used_elsewhere(world: World, trap: Trap) -> list[Segment]:
    """The segments of its rows, in order."""
    found = []
    for file in OTHERS:
        segments = {segment.row: segment for segment in world.table(file).segments}
        found += [segments[row] for row in rows_in(trap, file)]
    assert len(found) == len(trap.where) > 0
    return found


def goal_step_used(world: World, trap: Trap) -> None:
    """Times and category are those of the file."""
    content = json.loads((world.folder / "ego4d/annotations/goalstep_train.json").read_text(encoding="utf-8"))
    steps = {
        f"goalstep_train.json#{video['video_uid']}[{number}]": step
        for video in content["videos"]
        for number, step in enumerate(video["segments"])
    }
    categories = world.table("goalstep_train.json").tasks[0].classes.ids
    for segment in used_elsewhere(world, trap):
        step = steps[segment.row]
        assert (segment.start_sec, segment.end_sec) == (step["start_time"], step["end_time"])
        assert categories[segment.labels[0]] == step["step_category"]


def flags_missing(world: World, trap: Trap) -> None:
    goal_step_used(world, trap)
    assert world.table("goalstep_train.json").counts["annotated without is_continued"] == 1


def beyond_the_goal(world: World, trap: Trap) -> None:
    goal_step_used(world, trap)
    content = json.loads((world.folder / "ego4d/annotations/goalstep_train.json").read_text(encoding="utf-8"))
    ends = {video["video_uid"]: video["end_time"] for video in content["videos"]}
    assert all(segment.end_sec > ends[segment.take] for segment in used_elsewhere(world, trap))


def late_clip(world: World, trap: Trap) -> None:
    path, original = (world.folder / trap.facts[name] for name in ("clip", "original"))
    same_frames_later(path, original, 2.5)
    content = json.loads((world.folder / "ego4d/annotations/fho_lta_train.json").read_text(encoding="utf-8"))
    rows = {f"fho_lta_train.json#clips[{number}]": row for number, row in enumerate(content["clips"])}
    verbs, nouns, _ = (task.classes.ids for task in world.table("fho_lta_train.json").tasks)
    for segment in used_elsewhere(world, trap):
        row = rows[segment.row]
        assert segment.video.path == path
        assert (segment.start_sec, segment.end_sec) == (row["action_clip_start_sec"], row["action_clip_end_sec"])
        assert (verbs[segment.labels[0]], nouns[segment.labels[1]]) == (row["verb_label"], row["noun_label"])
        # The clip's own seconds: the whole video shows the same picture later.
        video = world.folder / "ego4d/full_scale" / f"{row['video_uid']}.mp4"
        later = np.array([segment.start_sec + row["clip_parent_start_sec"]])
        np.testing.assert_array_equal(read_at(path, np.array([segment.start_sec])), read_at(video, later))


def annotated_at_60(world: World, trap: Trap) -> None:
    """What the reader shows at a row's start is what the original shows then; `start_frame` is another frame."""
    times, originals = decode(world.folder / trap.facts["original"])
    path = world.folder / trap.facts["video"]
    with (world.folder / "epic/annotations/EPIC_100_train.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["narration_id"]: row for row in csv.DictReader(file)}
    info, drifted = probe_video(path), 0
    assert info.fps == pytest.approx(trap.facts["fps"])
    for segment in used_elsewhere(world, trap):
        assert segment.video.path == path
        row = rows[segment.row.split("#")[1]]
        assert segment.start_sec == float(row["start_timestamp"].rpartition(":")[2]) < 60
        picture = read_at(path, np.array([segment.start_sec]))[0]
        # A frame of the slower original is shown from the next tick of the faster video on.
        frame = math.floor(segment.start_sec * trap.facts["fps"] + 1e-6)
        shown = np.searchsorted(times, frame / trap.facts["fps"] + 1e-6, side="right") - 1
        assert nearest(picture, originals) == shown
        drifted += int(row["start_frame"]) != frame
    assert drifted > 0, "the trap does not bite: counting frames finds the same ones"


def at_zero(world: World, trap: Trap) -> None:
    (segment,) = used_elsewhere(world, trap)
    assert segment.start_sec == 0


def new_pair(world: World, trap: Trap) -> None:
    (segment,) = used_elsewhere(world, trap)
    verb, noun, action = segment.labels
    assert UNKNOWN not in (verb, noun)
    assert action == UNKNOWN
    names = [task.classes.names for task in world.table("EPIC_100_validation.csv").tasks]
    assert (names[0][verb], names[1][noun]) == ("tear", "kettle")


CHECKS: dict[str, Callable[[World, Trap], None]] = {
    "lta-clip-missing": excluded_elsewhere,
    "lta-clip-starts-late": late_clip,
    "lta-zero-length-action": excluded_elsewhere,
    "goalstep-flags-missing": flags_missing,
    "goalstep-beyond-the-goal": beyond_the_goal,
    "goalstep-overlap": goal_step_used,
    "goalstep-unsure": goal_step_used,
    "goalstep-video-truncated": excluded_elsewhere,
    "goalstep-category-only-in-validation": excluded_elsewhere,
    "epic-frames-of-60": annotated_at_60,
    "epic-frames-of-60-at-29.97": annotated_at_60,
    "epic-video-missing": excluded_elsewhere,
    "epic-at-zero": at_zero,
    "epic-zero-length": excluded_elsewhere,
    "epic-action-only-in-validation": new_pair,
}


@pytest.mark.parametrize("name", CHECKS)
def test_trap(world: World, name: str) -> None:
    CHECKS[name](world, world.traps[name])


def test_there_is_a_check_for_every_trap(world: World) -> None:
    every_trap_has_its_check(world, DATASETS, set(CHECKS))
