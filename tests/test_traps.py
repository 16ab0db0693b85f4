"""Each trap of a toy world: the right video, the right frames, the right label, or an exclusion with its reason.

`traps.json` says where each trap is and what must come of it; a check stands here for every one of them.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwm.data.check_child import facts_of
from hwm.data.gaze_tracks import read_gaze_2d
from hwm.data.toyworld import load_truth
from hwm.data.toyworld.actions import ego_video
from hwm.data.toyworld.remux import decode
from hwm.data.toyworld.traps import Trap, load_traps
from hwm.data.video import VideoReader, probe_video
from hwm.errors import DataError
from traps_world import (
    FILES,
    SETTINGS,
    World,
    all_and_no_more,
    bites,
    every_trap_has_its_check,
    nearest,
    random_times,
    read_at,
    rows_in,
    same_frames_later,
)

DATASETS = ("ego-exo4d", "gaze")


@pytest.fixture(scope="module")
def world(trap_world: Path) -> World:
    return World(trap_world)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting.values()))
@pytest.mark.parametrize("file", FILES)
def test_the_traps_are_all_that_is_excluded(world: World, file: str, setting: dict[str, str]) -> None:
    all_and_no_more(world.keystep(file, setting), world.excluded(file, setting))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting.values()))
def test_every_used_row_has_the_video_of_its_take_and_view(world: World, setting: dict[str, str]) -> None:
    small = "downscaled/448/" if setting["resolution"] == "448" else ""
    checked = 0
    for file in FILES:
        for segment in world.keystep(file, setting).segments:
            aria = world.plans[segment.take].aria
            camera = f"{aria}_214-1" if setting["view"] == "ego" else setting["view"]
            path = world.folder / "takes" / segment.take / f"frame_aligned_videos/{small}{camera}.mp4"
            assert segment.video.path == path
            checked += 1
    assert checked > 100


def test_without_takes_json_the_layout_gives_the_same_videos(world: World) -> None:
    for setting in SETTINGS:
        for file in FILES[:2]:
            listed, found = (world.keystep(file, setting, with_takes_json) for with_takes_json in (True, False))
            known = {segment.row: segment.video.path for segment in listed.segments}
            paths = {segment.row: segment.video.path for segment in found.segments}
            assert known.items() <= paths.items()
            # Only takes.json knows that takes are dropped, or not in it.
            extra = {segment.take for segment in found.segments} - {segment.take for segment in listed.segments}
            assert extra == ({world.traps[name].facts["take"] for name in ("take-not-in-takes-json", "dropped-take")}
                             if "train" in file else set())  # fmt: skip
            reasons = {reason for _, reason in found.excluded}
            assert ("the take is not on disk" in reasons) == ("train" in file)


def excluded(world: World, trap: Trap) -> None:
    """Its rows are left out where it bites, and used where it does not."""
    assert trap.where
    for setting in SETTINGS:
        for file in FILES:
            table, rows = world.keystep(file, setting), rows_in(trap, file)
            reasons, used = dict(table.excluded), {segment.row for segment in table.segments}
            for row in rows:
                if bites(trap, setting):
                    assert reasons[row].startswith(str(trap.reason))
                    assert row not in used
                else:
                    assert (row in used) == (row not in world.excluded(file, setting))


def take_excluded(world: World, trap: Trap) -> None:
    """Besides: the rows are all rows of the take."""
    excluded(world, trap)
    take = trap.facts["take"]
    for setting in SETTINGS:
        if bites(trap, setting):
            assert take not in {segment.take for file in FILES for segment in world.keystep(file, setting).segments}


def used_as_it_is(world: World, trap: Trap) -> None:
    """Times and class are those of the file."""
    for setting in SETTINGS:
        for file in FILES:
            table = world.keystep(file, setting)
            segments = {segment.row: segment for segment in table.segments}
            for row in rows_in(trap, file):
                segment = segments[row]
                assert (segment.start_sec, segment.end_sec) == (trap.facts["start_time"], trap.facts["end_time"])
                assert table.tasks[0].classes.ids[segment.labels[0]] == trap.facts["step_unique_id"]


def repeated(world: World, trap: Trap) -> None:
    """Besides: counted, and neither copy is told its own label as what came before."""
    used_as_it_is(world, trap)
    for file in ("keystep_train.json", "keystep_segment_train.json"):
        table = world.keystep(file, SETTINGS[0])
        (row,) = rows_in(trap, file)
        assert table.counts["repeated segments kept"] == 1
        take = next(segment.take for segment in table.segments if segment.row == row)
        start = trap.facts["start_time"]
        copies = [segment for segment in table.segments if (segment.take, segment.start_sec) == (take, start)]
        assert len(copies) == 2
        assert len({segment.previous_labels for segment in copies}) == 1
        before = [segment for segment in table.segments if segment.take == take and segment.start_sec < start]
        assert copies[0].previous_labels == max(before, key=lambda segment: segment.start_sec).labels


def never_read(world: World, trap: Trap) -> None:
    """No reader gives one of its files, in any view."""
    paths = {world.folder / name for name in trap.where}
    assert all(path.is_file() for path in paths)
    for setting in SETTINGS:
        for with_takes_json in (True, False):
            tables = [world.keystep(file, setting, with_takes_json) for file in FILES[:2]]
            assert not paths & {segment.video.path for table in tables for segment in table.segments}


def side_camera(world: World, trap: Trap) -> None:
    """Besides: it lies beside the wanted view, sorted first or not, and the wanted view is in colour."""
    never_read(world, trap)
    for name in trap.where[:4]:
        path = world.folder / name
        siblings = sorted(other.name for other in path.parent.glob("*.mp4"))
        assert siblings.index(path.name) < siblings.index(next(name for name in siblings if "214-1" in name))
        grey = decode(path)[1][0].astype(int)
        assert np.ptp(grey, axis=-1).mean() < 6
    picture = read_at(world.keystep(FILES[0], SETTINGS[0]).segments[0].video.path, np.array([1.0]))[0]
    assert np.ptp(picture.astype(int), axis=-1).mean() > 6


def collage(world: World, trap: Trap) -> None:
    never_read(world, trap)
    with pytest.raises(DataError, match=r"takes\.json has no video of the view collage"):
        world.keystep(FILES[0], {"view": "collage", "resolution": "full"})


def aria(world: World, trap: Trap) -> None:
    """Its videos are the ones that are read, with and without takes.json."""
    for with_takes_json in (True, False):
        tables = [world.keystep(file, SETTINGS[0], with_takes_json) for file in FILES[:2]]
        paths = {segment.video.path for table in tables for segment in table.segments}
        assert paths & {world.folder / name for name in trap.where}
    assert not {Path(name).name for name in trap.where} & {"aria01_214-1.mp4"}


def original_of(world: World, trap: Trap) -> tuple[Path, Path]:
    path = ego_video(world.folder, world.plans[trap.facts["take"]])
    assert trap.where[0] == path.relative_to(world.folder).as_posix() or trap.must == "exclude"
    return path, world.folder / trap.facts["original"]


def rotation(world: World, trap: Trap) -> None:
    path, original = original_of(world, trap)
    assert probe_video(path).rotation == trap.facts["rotation"]
    times, originals = decode(original)
    asked = random_times(times[-1])
    for time, picture in zip(asked, read_at(path, asked), strict=True):
        assert nearest(picture, originals) == np.searchsorted(times, time + 1e-6, side="right") - 1
    lying = decode(path)[1][0]
    assert np.abs(lying.astype(int) - originals[0]).mean() > 15, "the trap does not bite: it is stored upright"


def variable_rate(world: World, trap: Trap) -> None:
    path, original = original_of(world, trap)
    kept = np.array(trap.facts["kept_frames"])
    _, originals = decode(original)
    kept_times, asked = kept / world.fps, random_times(kept[-1] / world.fps, 40)
    expected = kept[np.searchsorted(kept_times, asked + 1e-6, side="right") - 1]
    assert [nearest(picture, originals) for picture in read_at(path, asked)] == expected.tolist()
    info = probe_video(path)
    counted = kept[np.minimum((asked * info.fps).astype(int), len(kept) - 1)]
    assert (counted != expected).sum() > 20, "the trap does not bite: counting finds the same frames"


def late_start(world: World, trap: Trap) -> None:
    path, original = original_of(world, trap)
    same_frames_later(path, original, trap.facts["late_sec"])


def truncated(world: World, trap: Trap) -> None:
    take_excluded(world, trap)
    path, original = original_of(world, trap)
    assert b"moov" not in path.read_bytes()
    for refuse in (lambda: probe_video(path), lambda: VideoReader(path), lambda: facts_of(path)):
        with pytest.raises(DataError) as raised:
            refuse()
        assert str(path) in raised.value.problem
    probe_video(original)


def lost_frames(world: World, trap: Trap) -> None:
    path, original = original_of(world, trap)
    good_sec = trap.facts["decodable_frames"] / world.fps
    # The last good frame needs the time of the next one, which is lost.
    asked = random_times(good_sec - 1 / world.fps)
    np.testing.assert_array_equal(read_at(path, asked), read_at(original, asked))
    end_sec = probe_video(original).duration_sec
    refused = 0
    for time in np.linspace(good_sec + 0.01, end_sec - 0.01, 9):
        with pytest.raises(DataError) as raised:
            read_at(path, np.array([time]))
        refused += path.name in raised.value.problem
    assert refused == 9
    with pytest.raises(DataError, match=path.name):
        facts_of(path)


def claimed_length(world: World, trap: Trap) -> None:
    path, _ = original_of(world, trap)
    true_sec = trap.facts["duration_sec"]
    header = path.read_bytes()
    ticks, length = struct.unpack_from(">II", header, header.index(b"mvhd") + 16)
    assert length / ticks == pytest.approx(3 * true_sec, rel=0.01)
    for found_sec in (probe_video(path).duration_sec, facts_of(path)["duration_sec"]):
        assert found_sec == pytest.approx(true_sec, abs=1e-3)
    segments = world.keystep(FILES[0], SETTINGS[0]).segments
    found = {segment.video.duration_sec for segment in segments if segment.take == trap.facts["take"]}
    assert found == {probe_video(path).duration_sec}


def gaze_unknown(world: World, trap: Trap) -> None:
    """Not valid at these rows, valid and true around them."""
    track, truth = read_gaze_2d(world.folder / trap.where[0]), load_truth(world.folder, trap.facts["take"])
    rows = np.array(trap.facts["rows"])
    _, valid = track.at(rows / 10 + 0.04)
    if trap.name == "gaze-gap":  # the last sample before the gap stands for a little while
        assert not np.isin(np.round(track.times_sec * 10), rows).any()
        valid = valid[1:]
    assert not valid.any()
    around = np.array([rows[0] - 1, rows[-1] + 1]) / 10
    xy, valid = track.at(around)
    assert valid.all()
    shown = np.searchsorted(truth.times_sec, around + 1e-6, side="right") - 1
    np.testing.assert_allclose(xy, truth.gaze_ego[shown], atol=0.05)


def gaze_missing(world: World, trap: Trap) -> None:
    with pytest.raises(DataError, match=r"cannot read gaze file .*general_eye_gaze_2d\.csv"):
        read_gaze_2d(world.folder / trap.where[0])
    assert trap.facts["take"] in {segment.take for segment in world.keystep(FILES[0], SETTINGS[0]).segments}


def null_best_exo(world: World, trap: Trap) -> None:
    takes = {take["take_name"]: take for take in json.loads((world.folder / "takes.json").read_text(encoding="utf-8"))}
    assert takes[trap.facts["take"]]["best_exo"] is None
    assert trap.facts["take"] in {segment.take for segment in world.keystep(FILES[0], SETTINGS[0]).segments}


def exo_missing(world: World, trap: Trap) -> None:
    take_excluded(world, trap)
    other = world.keystep(FILES[0], {"view": "cam02", "resolution": "full"})
    assert {segment.take for segment in other.segments} == {trap.facts["take"]}


CHECKS: dict[str, Callable[[World, Trap], None]] = {
    "grey-side-cameras": side_camera,
    "eye-tracking-stream": never_read,
    "aria-without-number": aria,
    "aria-other-than-01": aria,
    "collage": collage,
    "take-not-on-disk": take_excluded,
    "take-not-in-takes-json": take_excluded,
    "dropped-take": take_excluded,
    "exo-view-missing": exo_missing,
    "null-best-exo": null_best_exo,
    "small-copy-missing": take_excluded,
    "truncated-mp4": truncated,
    "over-reported-frames": lost_frames,
    "over-reported-duration": claimed_length,
    "rotation-metadata": rotation,
    "variable-frame-rate": variable_rate,
    "non-zero-stream-start": late_start,
    "segment-at-zero": used_as_it_is,
    "overlapping-segments": used_as_it_is,
    "repeated-segment": repeated,
    "segment-after-the-end": excluded,
    "zero-length-segment": excluded,
    "reversed-segment": excluded,
    "missing-start-time": excluded,
    "missing-step-unique-id": excluded,
    "label-only-in-validation": excluded,
    "empty-gaze-cells": gaze_unknown,
    "gaze-outside-the-picture": gaze_unknown,
    "gaze-gap": gaze_unknown,
    "gaze-file-missing": gaze_missing,
}


@pytest.mark.parametrize("name", CHECKS)
def test_trap(world: World, name: str) -> None:
    CHECKS[name](world, world.traps[name])


def test_there_is_a_check_for_every_trap(world: World) -> None:
    every_trap_has_its_check(world, DATASETS, set(CHECKS))


def test_a_world_without_traps_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no traps"):
        load_traps(tmp_path)
