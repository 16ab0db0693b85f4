"""No peeking: the window of a segment ends at or before start − τ, for any numbers."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data.decoding import TIME_TOLERANCE_SEC
from hwm.data.exclusions import Exclusion
from hwm.data.protocol import (
    LEGACY_END_MINUS_TAU,
    START_MINUS_TAU,
    Observation,
    draw_horizon,
    guard,
    last_step_at,
    observe_before,
)
from hwm.errors import DataError


def _check_no_peek(start: float, end: float, tau: float, fps: float, num_steps: int) -> None:
    seen = observe_before(start, end, tau, fps, num_steps, START_MINUS_TAU, "row")
    if start - tau < 0:
        assert seen == Exclusion("row", "starts before the horizon")
        return
    assert isinstance(seen, Observation)
    assert seen.last_time_sec <= start - tau
    assert seen.last_time_sec > start - tau - 1 / fps - 1e-12 * (1 + start)
    assert seen.last_step / fps == seen.last_time_sec
    assert 0 <= seen.last_step == seen.first_step + num_steps - 1
    assert not seen.shows_action
    assert seen.num_future >= 1
    # The imagined steps end within half a step of the segment's start (a horizon below half a step still imagines one).
    if tau * fps >= 0.5:
        assert abs(seen.last_time_sec + seen.num_future / fps - start) <= 0.5 / fps + 1e-9 * (1 + start)


class Draw(NamedTuple):
    """A segment, what is asked about it, and the video that it is in."""

    start: float
    end: float
    tau: float
    fps: float
    """Grid steps a second."""
    num_steps: int
    rate: float
    """Frames a second of the video."""


def _draws(count: int) -> Iterator[Draw]:
    rng = np.random.default_rng(0)
    for draw in range(count):
        start = rng.uniform(0, 400)
        if draw % 3 == 0:  # times on round numbers, where start − τ falls on the grid or a float's breath beside it
            start = round(start, int(rng.integers(0, 4)))
        tau = float(rng.choice([0.25, 0.3, 0.7, 1.0, 2.0, rng.uniform(0.05, 5)]))
        fps = float(rng.choice([1, 2, 3, 4, 10, 29.97, 30, rng.uniform(0.5, 60)]))
        rate = float(rng.choice([12, 25, 29.97, 30, 47.95, 50, 59.94, 90, rng.uniform(5, 120)]))
        yield Draw(start, start + rng.exponential(10), tau, fps, int(rng.integers(1, 33)), rate)


def _peeks(draw: Draw, protocol: str) -> bool:
    """Whether anything is seen from after start − τ: a grid time, or the frame that is on screen then."""
    seen = observe_before(draw.start, draw.end, draw.tau, draw.fps, draw.num_steps, protocol, "row")
    if isinstance(seen, Exclusion):
        return False
    steps = np.arange(max(seen.first_step, 0), seen.last_step + 1) / draw.fps
    frames = np.floor((steps + TIME_TOLERANCE_SEC) * draw.rate) / draw.rate
    anchor = draw.start - draw.tau
    return bool((steps > anchor).any() or (frames > anchor + TIME_TOLERANCE_SEC).any())


def test_ten_thousand_random_segments_never_peek():
    num_seen = 0
    for draw in _draws(10_000):
        _check_no_peek(draw.start, draw.end, draw.tau, draw.fps, draw.num_steps)
        assert not _peeks(draw, START_MINUS_TAU), draw
        num_seen += draw.start >= draw.tau
    assert num_seen > 9_500


def test_the_legacy_protocol_fails_the_same_test():
    peeks = [_peeks(draw, LEGACY_END_MINUS_TAU) for draw in _draws(10_000)]
    assert sum(peeks) > 9_000, "it looks past start − τ wherever the step lasts longer than a grid step"


@given(
    start=st.floats(0, 1e5), length=st.floats(1e-3, 300), tau=st.floats(1e-3, 60), fps=st.floats(0.1, 240),
    num_steps=st.integers(1, 64),
)  # fmt: skip
@settings(deadline=None)
def test_no_numbers_make_it_peek(start: float, length: float, tau: float, fps: float, num_steps: int):
    _check_no_peek(start, start + length, tau, fps, num_steps)


@given(time=st.floats(0, 1e6), fps=st.floats(0.1, 1000))
@settings(deadline=None)
def test_last_step_is_the_largest_at_or_before(time: float, fps: float):
    step = last_step_at(time, fps)
    assert step >= 0
    assert step / fps <= time < (step + 1) / fps


@given(step=st.integers(0, 100_000), fps=st.sampled_from([1.0, 3.0, 4.0, 7.0, 10.0, 24.0, 29.97, 30.0, 60.0]))
def test_a_time_on_the_grid_is_its_own_step(step: int, fps: float):
    assert last_step_at(step / fps, fps) == step


def test_worked_example():
    seen = observe_before(10.3, 14.0, 1.0, 4.0, 8, START_MINUS_TAU)
    assert seen == Observation(30, 8, 37, 9.25, 4, False)
    assert seen.num_padded == 0


def test_window_before_the_video_is_padding():
    seen = observe_before(2.0, 4.0, 1.0, 4.0, 8, START_MINUS_TAU)
    assert isinstance(seen, Observation)
    assert (seen.first_step, seen.last_step, seen.num_padded) == (-3, 4, 3)


def test_anchor_at_time_zero_sees_one_frame():
    seen = observe_before(1.0, 4.0, 1.0, 4.0, 8, START_MINUS_TAU)
    assert isinstance(seen, Observation)
    assert (seen.last_step, seen.num_padded, seen.num_future) == (0, 7, 4)


def test_half_a_step_rounds_the_same_way_at_odd_and_even_steps():
    futures = {observe_before(start, 99.0, 0.5, 1.0, 2, START_MINUS_TAU).num_future for start in (3.5, 4.5, 5.5, 6.5)}
    assert futures == {1}
    # start − last = 1.5 and 2.5 steps: half up, never half to even
    assert [observe_before(4.5, 99.0, tau, 1.0, 2, START_MINUS_TAU).num_future for tau in (1.5, 2.5)] == [2, 3]


def test_imagining_beyond_the_start_shows_nothing_more():
    for draw in _draws(3000):
        asked = (draw.start, draw.end, draw.tau, draw.fps, draw.num_steps, START_MINUS_TAU, "row")
        plain, on = observe_before(*asked), observe_before(*asked, beyond_sec=1.3)
        if isinstance(plain, Exclusion):
            assert on == plain
            continue
        assert isinstance(on, Observation)
        assert on._replace(num_future=0) == plain._replace(num_future=0)
        last_imagined_sec = on.last_time_sec + on.num_future / draw.fps
        if on.num_future > 1:
            assert abs(last_imagined_sec - draw.start - 1.3) <= 0.5 / draw.fps + 1e-9 * (1 + draw.start)


def test_legacy_protocol_says_that_it_shows_the_action():
    seen = observe_before(10.0, 14.0, 1.0, 4.0, 8, LEGACY_END_MINUS_TAU)
    assert isinstance(seen, Observation)
    assert (seen.last_time_sec, seen.num_future, seen.shows_action) == (13.0, 4, True)
    short = observe_before(10.0, 10.5, 1.0, 4.0, 8, LEGACY_END_MINUS_TAU)
    assert isinstance(short, Observation)
    assert (short.last_time_sec, short.shows_action) == (9.5, False)
    assert observe_before(0.0, 0.5, 1.0, 4.0, 8, LEGACY_END_MINUS_TAU, "r") == Exclusion("r", "ends before the horizon")


def test_guard_refuses_an_observation_of_the_future():
    seen = observe_before(10.0, 14.0, 1.0, 4.0, 8, LEGACY_END_MINUS_TAU)
    assert isinstance(seen, Observation)
    with pytest.raises(DataError, match=r"row 7 looks into the future"):
        guard(seen, 10.0, 14.0, 1.0, START_MINUS_TAU, "row 7")
    ok = observe_before(10.0, 14.0, 1.0, 4.0, 8, START_MINUS_TAU)
    assert isinstance(ok, Observation)
    with pytest.raises(DataError, match=r"future"):
        guard(ok._replace(last_time_sec=math.nextafter(9.0, 10)), 10.0, 14.0, 1.0, START_MINUS_TAU)


@pytest.mark.parametrize(
    "change",
    [{"horizon_sec": 0.0}, {"horizon_sec": -1.0}, {"fps": 0.0}, {"num_steps": 0}, {"start_sec": math.nan},
     {"beyond_sec": -0.5}, {"beyond_sec": math.inf},
     {"protocol": "end-minus-tau"}],
)  # fmt: skip
def test_senseless_numbers_are_refused(change: dict):
    good = {"start_sec": 5.0, "end_sec": 6.0, "horizon_sec": 1.0, "fps": 4.0, "num_steps": 8}
    with pytest.raises(DataError):
        observe_before(**(good | {"protocol": START_MINUS_TAU} | change))


def test_horizon_is_a_pure_function_and_stays_in_range():
    drawn = [draw_horizon((0.75, 1.5), 3, epoch, index) for epoch in range(20) for index in range(20)]
    assert drawn == [draw_horizon((0.75, 1.5), 3, epoch, index) for epoch in range(20) for index in range(20)]
    assert len(set(drawn)) == 400
    assert 0.75 <= min(drawn) < 0.8
    assert 1.45 < max(drawn) <= 1.5


@pytest.mark.parametrize("fps", [3.0, 4.0, 10.0, 29.97, 30.0, 60.0])
def test_a_breath_before_the_grid_time_belongs_to_the_step_before(fps: float):
    # Here time · fps often rounds up to a whole number: floor alone would take a frame from after the anchor.
    rounded_up = 0
    for step in range(1, 2000):
        time = math.nextafter(step / fps, 0)
        assert last_step_at(time, fps) == step - 1
        rounded_up += math.floor(time * fps) == step
    assert fps == 4.0 or rounded_up > 0
