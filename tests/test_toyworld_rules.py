"""The toy world's rules: what may be known when, pixel for pixel, and ceilings against a brute-force simulation."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest

from hwm.config import ToyWorldConfig
from hwm.data.toyworld.ceiling import HORIZONS_SEC, ceiling, ceilings
from hwm.data.toyworld.generate import plan_takes
from hwm.data.toyworld.head import HeadStyle, direction_to, head_sprite
from hwm.data.toyworld.look import EGO_SPOT, EXO_SPOT, HEAD_CENTRE, sample_look
from hwm.data.toyworld.rules import RECIPES, TURN_SEC, Script, sample_script
from hwm.data.toyworld.scene import Views, cameras_at, ego_frames, ego_normalised, exo_frames, exo_normalised
from hwm.data.toyworld.take import look_of
from hwm.data.toyworld.timeline import CARRY_SEC, REACH_SEC, gaze_at, hands_at, looks_at, objects_at

FPS, VIDEO_FPS = 4.0, 12


def _scripts(count: int, seed: int, informative: bool = True) -> list[Script]:
    rng = np.random.default_rng(seed)
    return [sample_script(index % len(RECIPES), informative, VIDEO_FPS, rng) for index in range(count)]


def test_task_graphs_are_what_the_ceilings_assume() -> None:
    for recipe in RECIPES:
        kinds = [step.kind for step in recipe.steps]
        assert len(set(kinds)) == len(kinds), "each step has its own object, so the gaze target names the step"
        assert len({step.unique_id for step in recipe.steps}) == len(kinds)
        for index, row in enumerate((*recipe.follow, recipe.start)):
            assert sum(row) == pytest.approx(1.0)
            assert sum(value > 0 for value in row) == 3
            assert 0.45 <= max(row) <= 0.5
            assert index == len(recipe.follow) or row[index] == 0, "no step follows itself"


def test_gaze_turns_within_its_window_and_never_before() -> None:
    for script in _scripts(200, seed=1):
        look = sample_look(script.recipe, 0, np.random.default_rng(0))
        starts = np.array(script.starts_sec)
        before = gaze_at(script, look, starts - 1.6)
        at_turn = gaze_at(script, look, script.turns_sec)
        done = gaze_at(script, look, starts - 0.4 + 1e-9)
        previous = np.array((-1, *script.gaze_objects[:-1]))
        np.testing.assert_array_equal(before.object_index, previous)
        np.testing.assert_array_equal(at_turn.object_index, previous)
        np.testing.assert_array_equal(done.object_index, script.steps)
        assert done.turned.all()
        np.testing.assert_allclose(done.head, look.exo_points[list(script.steps)])
        assert (script.turns_sec[1:] > starts[:-1]).all(), "a turn comes after the start of the step before"
        assert script.turns_sec[0] > 0


def test_next_step_shows_in_no_pixel_before_the_turn() -> None:
    """Two takes that differ only in step 3 and after: the same frames up to the turn, other frames after it."""
    script = _scripts(1, seed=3)[0]
    other = next(item for item in range(6) if item not in (script.steps[2], script.steps[3], script.steps[4]))
    steps = (*script.steps[:3], other, *reversed(script.steps[4:]))
    changed = script._replace(steps=steps, gaze_objects=steps)
    look = sample_look(script.recipe, 1, np.random.default_rng(7))
    times = np.arange(round(script.starts_sec[4] * VIDEO_FPS)) / VIDEO_FPS
    views = Views.of(64)
    films = []
    for take in (script, changed):
        gaze, hands = gaze_at(take, look, times), hands_at(take, look, times)
        cameras = cameras_at(look, gaze, views, times)
        exo = exo_frames(take, look, gaze, hands, cameras, views, times, np.random.default_rng(0))
        ego = ego_frames(take, look, hands, cameras, views, times, np.random.default_rng(0))
        films.append((np.stack(list(exo)), np.stack(list(ego))))
    quiet = times <= script.turns_sec[3]
    start = int(np.searchsorted(times, script.starts_sec[3]))
    for one, two in zip(*films, strict=True):
        np.testing.assert_array_equal(one[quiet], two[quiet])
        assert (one[~quiet][2] != two[~quiet][2]).any(), "the turn itself shows in both views"
    hands = [hands_at(take, look, times[:start]) for take in (script, changed)]
    np.testing.assert_array_equal(hands[0].exo, hands[1].exo)
    assert hands[0].tools == hands[1].tools


def test_a_still_ego_camera_shows_gaze_in_no_pixel() -> None:
    """Two takes that differ in their gaze alone: the same ego frames from first to last, unless the camera follows."""

    def films(camera: Literal["follows", "still"]) -> list[np.ndarray]:
        config = ToyWorldConfig(num_takes=2, ego_camera=camera)
        plan = plan_takes(config)[0]
        look, times, views = look_of(plan, config), np.arange(round(plan.script.duration_sec * 4)) / 4, Views.of(64)
        films = []
        for shift in (0, 1):
            take = plan.script._replace(gaze_objects=tuple((item + shift) % 6 for item in plan.script.steps))
            gaze, hands = gaze_at(take, look, times), hands_at(take, look, times)
            cameras = cameras_at(look, gaze, views, times)
            films.append(np.stack(list(ego_frames(take, look, hands, cameras, views, times, np.random.default_rng(0)))))
        return films

    np.testing.assert_array_equal(*films("still"))
    own, other = films("follows")
    assert (own != other).any(axis=(1, 2, 3)).mean() > 0.5


def test_truth_moves_with_the_cameras() -> None:
    """Two cameras that stand apart: truth says by how many pixels, and the pictures agree exactly."""
    script, views, times = _scripts(1, seed=9)[0], Views.of(96), np.array([0.3])
    base = sample_look(script.recipe, 2, np.random.default_rng(1))._replace(noise=0.0, exo_sway=0.0, ego_sway=0.06)
    films, points = [], []
    for shift, phase in ((-0.03, 0.0), (0.03, 2.0)):
        look = base._replace(exo_shift=np.array([shift, shift / 2]), ego_phases=np.full((2, 2), phase))
        gaze, hands = gaze_at(script, look, times), hands_at(script, look, times)
        cameras = cameras_at(look, gaze, views, times)
        exo = next(exo_frames(script, look, gaze, hands, cameras, views, times, np.random.default_rng(0)))
        ego = next(ego_frames(script, look, hands, cameras, views, times, np.random.default_rng(0)))
        films.append((exo, ego))
        points.append(
            (
                exo_normalised(look.exo_points[:1], cameras, views) * [views.exo_width, views.height],
                ego_normalised(look.ego_points[:1], cameras, views) * views.height,
            )
        )
    for view, reach in ((0, 30), (1, 12)):  # the ego picture only where the fisheye's rim does not darken it
        one, two = films[0][view], films[1][view]
        column, row = np.round(points[1][view][0] - points[0][view][0]).astype(int)
        assert (column, row) != (0, 0)
        y, x = one.shape[0] // 2, one.shape[1] // 2
        piece = one[y - reach : y + reach, x - reach : x + reach]
        moved = two[y - reach + row : y + reach + row, x - reach + column : x + reach + column]
        np.testing.assert_array_equal(piece, moved)


def test_the_object_in_use_is_brought_to_the_working_place_and_put_back() -> None:
    script = _scripts(1, seed=4)[0]
    look = sample_look(script.recipe, 1, np.random.default_rng(3))
    for item, start, end in zip(script.steps, script.starts_sec, script.ends_sec, strict=True):
        times = np.array([start, start + REACH_SEC, start + REACH_SEC + CARRY_SEC, end - CARRY_SEC - 1e-9, end])
        state, hands, gaze = (at(script, look, times) for at in (objects_at, hands_at, gaze_at))
        views = ((state.exo, look.exo_base, EXO_SPOT), (state.ego, look.ego_base, EGO_SPOT))
        for shifts, base, spot in views:
            np.testing.assert_allclose(shifts[[0, 1, 4]], 0, atol=1e-9)
            np.testing.assert_allclose(base[item] + shifts[[2, 3], item], [spot, spot], atol=1e-9)
            np.testing.assert_allclose(np.delete(shifts, item, axis=1), 0, atol=1e-9)
        hand = hands.exo[[1, 2], look.hand_of[item]]  # holds it on the way
        np.testing.assert_allclose(hand, look.exo_grips[item] + state.exo[[1, 2], item], atol=1e-9)
        np.testing.assert_allclose(gaze.head[2], look.exo_points[item] + state.exo[2, item], atol=1e-9)


def test_objects_change_at_six_tenths_of_their_step() -> None:
    script = _scripts(1, seed=4)[0]
    start, end = script.starts_sec[0], script.ends_sec[0]
    moments = start + np.array([0.59, 0.61]) * (end - start)
    looks = looks_at(script, 6, moments)
    assert not looks[0].any()
    assert looks[1].nonzero()[0].tolist() == [script.steps[0]]


def test_every_slot_gives_a_head_of_its_own() -> None:
    look = sample_look(0, 4, np.random.default_rng(0))
    style = HeadStyle(0.13 * 128, look.skin, look.hair, look.hair_style, 1.0)
    spots = [(x, y) for y in (0.651, 0.871) for x in (0.137, 0.379, 0.621, 0.863)]
    heads = [head_sprite(style, *direction_to(HEAD_CENTRE, np.array(spot))).colour / 256 for spot in spots]
    for first in range(8):
        for second in range(first):
            assert np.abs(heads[first] - heads[second]).mean() > 5, (first, second)


def test_uninformative_gaze_says_nothing() -> None:
    scripts = _scripts(2000, seed=5, informative=False)
    pairs = [(gaze, step) for script in scripts for gaze, step in zip(script.gaze_objects, script.steps, strict=True)]
    share = np.mean([gaze == step for gaze, step in pairs])
    assert abs(share - 1 / 6) < 0.02
    assert all(a != b for script in scripts for a, b in pairwise(script.gaze_objects))
    for row in ceilings(scripts[:300], informative=False, fps=FPS, video_fps=VIDEO_FPS):
        assert row.with_gaze == row.with_gaze_at_rest == row.without_gaze
        assert row.realised_with_gaze == row.realised_without_gaze


def test_ceilings_fall_with_the_horizon_and_gaze_lifts_them() -> None:
    rows = ceilings(_scripts(150, seed=6), informative=True, fps=FPS, video_fps=VIDEO_FPS)
    assert [row.horizon_sec for row in rows] == list(HORIZONS_SEC)
    assert rows[0].with_gaze == pytest.approx(1.0)
    for row in rows:
        assert 1 / 6 < row.without_gaze <= row.with_gaze_at_rest <= row.with_gaze <= 1
        assert row.without_gaze < row.with_gaze
    for early, late in pairwise(rows):
        assert late.with_gaze < early.with_gaze
        assert late.without_gaze <= early.without_gaze + 1e-9
    short = {row.horizon_sec: row for row in rows}
    assert 0.45 < short[1.0].without_gaze < 0.5


def _clues(script: Script, horizon_sec: float) -> list[tuple[tuple, tuple, tuple, int]]:
    """What an observer of each segment may know, without gaze, with it, with it at rest, and the answer."""
    found = []
    turns = [start - lead for start, lead in zip(script.starts_sec, script.leads_sec, strict=True)]
    for index, start in enumerate(script.starts_sec):
        if start < horizon_sec:
            continue
        last = np.floor((start - horizon_sec) * FPS) / FPS
        started = sum(begin <= last for begin in script.starts_sec)
        known = (script.recipe, script.steps[started - 1] if started else None, index - started)
        looked, rests = (
            script.gaze_objects[started] if turns[started] + turning < last else None for turning in (0, TURN_SEC)
        )
        found.append((known, (*known, looked), (*known, rests), script.steps[index]))
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["informative", "uninformative"])
def many(request: pytest.FixtureRequest) -> tuple[bool, list[Script]]:
    """About 68,000 drawn steps."""
    return request.param, _scripts(8_000, seed=8, informative=request.param)


@pytest.mark.parametrize("horizon_sec", [1.0, 2.0, 3.0])
def test_ceiling_equals_brute_force(many: tuple[bool, list[Script]], horizon_sec: float) -> None:
    """An observer that only counts what followed what, learnt on half of the takes, scored on the other half."""
    informative, scripts = many
    learn, score = scripts[::2], scripts[1::2]
    counts: dict[tuple, Counter[int]] = defaultdict(Counter)
    kinds = ("none", "gaze", "at rest")
    for script in learn:
        for *clues, answer in _clues(script, horizon_sec):
            for kind, clue in zip(kinds, clues, strict=True):
                counts[kind, clue][answer] += 1
    guess = {clue: counter.most_common(1)[0][0] for clue, counter in counts.items()}
    asked = [clue for script in score for clue in _clues(script, horizon_sec)]
    right = [[guess.get(clue) == answer for clue in zip(kinds, clues, strict=True)] for *clues, answer in asked]
    simulated = np.mean(right, axis=0)
    exact = ceiling(score, informative, horizon_sec, FPS, VIDEO_FPS)
    assert exact.num_segments == len(right)
    realised = exact.realised_without_gaze, exact.realised_with_gaze
    for index, expected in enumerate((exact.without_gaze, exact.with_gaze, exact.with_gaze_at_rest)):
        sigma = np.sqrt(expected * (1 - expected) / len(right))
        assert abs(simulated[index] - expected) < 3 * sigma
        if index < len(realised):
            assert abs(realised[index] - expected) < 3 * sigma


def test_plans_of_a_seed_do_not_change_with_the_size_of_the_picture() -> None:
    small, large = (plan_takes(ToyWorldConfig(num_takes=4, height=height)) for height in (64, 144))
    assert small == large
