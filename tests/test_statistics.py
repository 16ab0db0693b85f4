"""Intervals cover the truth as often as they say, respect takes, and are a function of the seed."""

import numpy as np
import pytest
import torch

from hwm.errors import DataError, RunError
from hwm.evaluation.metrics import mean_average_precision
from hwm.evaluation.statistics import mean_interval, statistic_interval


def _simulate(
    rng: np.random.Generator, num_takes: int, truth: float, take_spread: float
) -> tuple[np.ndarray, list[str]]:
    """Segment values around `truth`, alike within a take, with takes of 4 to 12 segments."""
    takes = np.repeat(np.arange(num_takes), rng.integers(4, 13, num_takes))
    values = truth + rng.normal(0, take_spread, num_takes)[takes] + rng.normal(0, 1, len(takes))
    return values, [f"take-{t}" for t in takes]


@pytest.mark.parametrize(("num_takes", "take_spread"), [(10, 0.0), (10, 0.7), (40, 0.7)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(num_takes, take_spread):
    rng = np.random.default_rng(0)
    covered = 0
    num_trials = 400
    for _ in range(num_trials):
        values, takes = _simulate(rng, num_takes, 0.3, take_spread)
        interval = mean_interval(values, takes, rng, num_resamples=800)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 0.92 <= covered / num_trials <= 0.98


def test_the_difference_of_two_models_is_covered_and_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(1)
    covered, narrower, num_trials = 0, 0, 150
    for _ in range(num_trials):
        shared, takes = _simulate(rng, 12, 0.0, 1.0)
        a = shared + 0.2 + rng.normal(0, 0.2, len(shared))
        b = shared + rng.normal(0, 0.2, len(shared))
        difference = mean_interval(a - b, takes, rng, 300)
        alone = mean_interval(a, takes, rng, 300)
        covered += difference.low <= 0.2 <= difference.high
        narrower += (difference.high - difference.low) < 0.6 * (alone.high - alone.low)
    assert covered / num_trials >= 0.89
    assert narrower == num_trials


def test_segments_of_one_take_are_not_counted_as_independent():
    # 5 takes whose segments are all equal: 100 copies a take hold no more evidence than one.
    per_take = np.array([0.0, 0.2, 0.4, 0.6, 0.8])
    names = [f"take-{t}" for t in range(5)]
    once = mean_interval(per_take, names, np.random.default_rng(0))
    often = mean_interval(per_take.repeat(100), [n for n in names for _ in range(100)], np.random.default_rng(0))
    assert often.num_takes == 5
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert often.high - often.low > 0.4


def test_the_fast_mean_equals_the_general_statistic():
    values, takes = _simulate(np.random.default_rng(2), 7, 0.0, 0.5)
    fast = mean_interval(values, takes, np.random.default_rng(5), 200)
    general = statistic_interval(lambda rows: values[rows].mean(), takes, np.random.default_rng(5), 200)
    assert fast == pytest.approx(general)


def test_any_metric_works_and_the_seed_decides():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 5, generator=generator), torch.randint(5, (60,), generator=generator)
    takes = [f"take-{i // 6}" for i in range(60)]

    def average_precision(rows: np.ndarray) -> float:
        return mean_average_precision(logits[rows], labels[rows])

    first, again, other = (
        statistic_interval(average_precision, takes, np.random.default_rng(seed), 60) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert first.value == mean_average_precision(logits, labels)
    assert first.low < first.value < first.high


def test_equal_models_differ_by_exactly_zero_and_a_clear_gain_excludes_zero():
    values, takes = _simulate(np.random.default_rng(3), 9, 0.5, 0.3)
    same = mean_interval(values - values, takes, np.random.default_rng(0), 100)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.excludes_zero
    assert mean_interval(values + 10, takes, np.random.default_rng(0)).excludes_zero
    assert mean_interval(values - 10, takes, np.random.default_rng(0)).excludes_zero


def test_one_take_gives_a_value_and_says_that_it_knows_no_bounds():
    interval = mean_interval([0.0, 1.0], ["only", "only"], np.random.default_rng(0))
    assert (interval.value, interval.low, interval.high, interval.num_takes) == (0.5, None, None, 1)
    assert not interval.excludes_zero


def test_wrong_input_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="needs segments"):
        mean_interval([], [], rng)
    with pytest.raises(DataError, match="same segments"):
        mean_interval([1.0, 2.0], ["a"], rng)
    with pytest.raises(RunError, match="row 1"):
        mean_interval([1.0, float("nan")], ["a", "b"], rng)
    with pytest.raises(RunError, match="not finite"):
        statistic_interval(lambda rows: float("nan"), ["a", "b"], rng, 5)
