"""Differences of two models: resampled metrics are the metrics, intervals cover the truth, claims keep their level."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interval_coverage import coverage, error_rates, trials
from paired_worlds import World, as_logits, simulate_segments
from safetensors.torch import load_file

from hwm.errors import DataError, RunError
from hwm.evaluation import resampled
from hwm.evaluation.class_gains import class_gains
from hwm.evaluation.differences import Difference, difference_of, metric_difference, resampled_model
from hwm.evaluation.metrics import score, top_k_hits
from hwm.evaluation.resampled import METRICS, resampled_metric
from hwm.evaluation.statistics import draw_takes, number_takes, statistic_interval

GOLDEN = Path(__file__).parent / "golden"


def _hard_case(seed: int, num_segments: int = 60) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Tied logits, classes that never occur or in one take alone, takes of unequal size in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(4, (num_segments, 7), generator=generator).float()
    labels = torch.randint(5, (num_segments,), generator=generator)
    takes = np.random.default_rng(seed).permutation(np.arange(num_segments) % 8 % 6)
    labels[np.flatnonzero(takes == 5)[:2]] = 5  # not in a resample without this take
    return logits, labels, takes


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_resampled_metric_is_the_metric_of_the_drawn_segments(metric, seed):
    logits, labels, take_of = _hard_case(seed)
    draws = np.vstack([np.ones((1, 6), dtype=np.int64), draw_takes(6, 5, np.random.default_rng(seed))])
    fast = resampled_metric(metric, logits, labels, take_of, draws)
    for draw, value in zip(draws, fast, strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(take_of == take), n) for take, n in enumerate(draw)])
        assert value == pytest.approx(getattr(score(logits[rows], labels[rows]), metric), abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_resampled_metric_does_not_depend_on_how_much_is_done_at_a_time(metric, monkeypatch):
    logits, labels, take_of = _hard_case(0)
    draws = np.vstack([np.ones((1, 6), dtype=np.int64), draw_takes(6, 5, np.random.default_rng(0))])
    whole = resampled_metric(metric, logits, labels, take_of, draws)
    monkeypatch.setattr(resampled, "_CHUNK", 3)
    np.testing.assert_allclose(resampled_metric(metric, logits, labels, take_of, draws), whole, rtol=1e-6)


def test_resampled_metrics_of_all_segments_equal_the_golden_values():
    tensors, percent = load_file(GOLDEN / "metrics.safetensors"), json.loads((GOLDEN / "metrics.json").read_text())
    names = {
        "top1": "accuracy@1/all", "top5": "accuracy@5/all", "class_mean_recall_at_1": "class_mean_recall@1/all",
        "class_mean_recall_at_5": "class_mean_recall@5/all",
        "mean_average_precision": "mean_average_precision_softmax_present_classes",
    }  # fmt: skip
    assert set(names) == set(METRICS)
    take_of, ones = np.arange(len(tensors["labels"])) % 9, np.ones((1, 9))
    for metric, golden in names.items():
        (value,) = resampled_metric(metric, tensors["logits"], tensors["labels"], take_of, ones)
        assert 100 * value == pytest.approx(percent[golden], abs=2e-5)


def test_the_interval_agrees_with_resampling_one_by_one():
    (a, labels, take_of), (b, _, _) = _hard_case(1, 120), _hard_case(2, 120)
    takes = [f"take {t}" for t in take_of]

    gain = top_k_hits(a, labels, 1).double() - top_k_hits(b, labels, 1).double()

    def one_by_one(rows: np.ndarray) -> float:
        return gain[rows].mean().item()

    fast = metric_difference("top1", [a], [b], labels, takes, np.random.default_rng(0), 1000)
    slow = statistic_interval(one_by_one, takes, np.random.default_rng(1), 1000)
    assert fast.value == pytest.approx(slow.value, abs=1e-6)
    fast_interval = fast.interval()
    assert fast_interval.high - fast_interval.low == pytest.approx(slow.high - slow.low, rel=0.2)


@pytest.mark.parametrize("metric", METRICS)
def test_a_hundred_copies_of_a_take_s_segments_hold_no_more_evidence(metric):
    (a, labels, take_of), (b, _, _) = _hard_case(1), _hard_case(2)
    takes, copies = [f"take {t}" for t in take_of], np.arange(60).repeat(100)
    once = metric_difference(metric, [a], [b], labels, takes, np.random.default_rng(0), 500)
    often = metric_difference(
        metric, [a[copies]], [b[copies]], labels[copies], [takes[row] for row in copies.tolist()],
        np.random.default_rng(0), 500,
    )  # fmt: skip
    assert often.value == pytest.approx(once.value, abs=1e-6)
    assert often.standard_error == pytest.approx(once.standard_error, rel=1e-4)
    assert once.standard_error > 0.02


def _measured(world: World, rng: np.random.Generator) -> Difference:
    """One simulated comparison, from logits, as users compare."""
    scored = as_logits(simulate_segments(world, rng))
    return metric_difference("top1", *scored, rng, 1000)


def test_the_simulations_measure_what_the_package_computes():
    world, rng = World(20, 0.3, 3, 1.0), np.random.default_rng([0, 20_000, 300, 3000, 1000, 30, 8000, 27_000])
    (trial,) = trials(world, 1, seed=0)
    assert np.array_equal(draw_takes(20, 2000, rng), trial.draws_RP)
    scored = as_logits(simulate_segments(world, rng))
    take_of, _ = number_takes([f"{int(take[5:]):02}" for take in scored.takes], len(scored.takes))
    a, b = (
        resampled_model("top1", logits, scored.labels_N, take_of, trial.draws_RP.astype(np.int64))
        for logits in scored[:2]
    )
    told, found = a.minus(b), trial.kept
    assert told.value == pytest.approx(found.value, abs=1e-12)
    assert told.interval() == pytest.approx(found.interval())
    assert (told.degrees_of_freedom, told.p_value) == pytest.approx((found.degrees_of_freedom, found.p_value))


@pytest.mark.parametrize(
    "world",
    [World(24, 0.0, 1, 0.0), World(24, 0.5, 1, 0.0), World(60, 0.3, 3, 1.0), World(24, 0.0, 3, 2.0)],
    ids=lambda world: "-".join(map(str, world[:4])),
)
def test_intervals_cover_the_true_difference(world):
    # 250 trials: the share that is covered has a standard deviation of 1.4 points.
    assert 0.915 <= coverage(world, 250, seed=1)["kept"] <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("num_takes", [24, 180])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize(("num_seeds", "seed_points"), [(1, 0.0), (3, 0.0), (3, 2.0), (5, 1.0)])
def test_intervals_cover_the_true_difference_in_93_to_97_percent(num_takes, correlation, num_seeds, seed_points):
    covered = coverage(World(num_takes, correlation, num_seeds, seed_points), 8000, seed=1)["kept"]
    assert 0.93 <= covered <= 0.97  # 8,000 trials, 8 s: a standard deviation of a quarter of a point


@pytest.mark.slow
@pytest.mark.parametrize("world", [World(24, 0.5, 1, 0.0), World(24, 0.3, 3, 1.0)], ids=str)
def test_intervals_from_logits_cover_the_true_difference_in_93_to_97_percent(world):
    rng = np.random.default_rng(2)
    intervals = [_measured(world, rng).interval() for _ in range(1000)]
    assert 0.93 <= np.mean([low <= world.gain <= high for _, low, high, *_ in intervals]) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("world", [World(60, 0.3, 1, 0.0), World(60, 0.3, 3, 0.0)], ids=str)
def test_equivalence_from_logits_keeps_its_level_at_the_bound(world):
    bound, rng = 0.08, np.random.default_rng(3)
    wrong = np.mean([_measured(world._replace(gain=bound), rng).is_within(bound) for _ in range(500)])
    assert 0.02 <= wrong <= 0.05 + 2 * 0.0097  # and two standard deviations of 500 trials


def test_a_difference_at_the_bound_is_rarely_called_none_and_a_small_one_often():
    bound = 0.1
    worlds = [World(30, 0.2, 1, 0.0, gain=bound), World(90, 0.2, 3, 1.0, gain=bound)]
    at_bound = [error_rates(world, 300, 3, lambda d: d.is_within(bound))[0] for world in worlds]
    assert max(at_bound) <= 0.05 + 2.6 * 0.0126  # and 2.6 standard deviations of 300 trials
    assert min(at_bound) >= 0.005  # far from a test that never says yes
    assert error_rates(worlds[1]._replace(gain=0.0), 100, 4, lambda d: d.is_within(bound))[0] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("world", [World(24, 0.3, 1, 0.0), World(60, 0.0, 1, 0.0), World(60, 0.0, 3, 1.0)], ids=str)
def test_claims_keep_their_level_over_many_trials(world):
    rates = error_rates(world._replace(gain=0.05), 1000, 0, lambda d: d.is_within(0.05))
    rates += error_rates(
        world._replace(gain=0.0), 1000, 0, lambda d: d.interval().excludes_zero, lambda d: d.p_value < 0.05
    )
    assert max(rates) <= 0.05 + 2 * 0.0069  # and two standard deviations
    assert rates[1] == rates[2] >= 0.03


def test_equivalence_uses_the_90_percent_interval():
    values, rng = np.array([0.01]), np.random.default_rng(0)
    difference = difference_of(values, values + rng.normal(0, 0.02, (2000, 1)), 40)
    narrow, wide = difference.interval(0.9).high, difference.interval(0.95).high
    assert difference.is_within(narrow + 1e-6)
    assert not difference.is_within(narrow - 1e-6)
    assert narrow < wide
    with pytest.raises(DataError, match="bound"):
        difference.is_within(0.0)


def test_seeds_that_disagree_widen_the_interval_and_equal_seeds_do_not():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (2000, 1))
    alike = difference_of(np.full(3, 0.03), 0.03 + noise.repeat(3, 1), 50)
    single = difference_of(np.full(1, 0.03), 0.03 + noise, 50)
    apart = difference_of(np.array([0.0, 0.03, 0.06]), np.array([0.0, 0.03, 0.06]) + noise, 50)
    assert alike.interval() == pytest.approx(single.interval())
    assert apart.value == pytest.approx(single.value)
    # By hand: takes .01² · 50 / 49, seeds .03² / 3, which is 75 % of the sum; df = 1 / (.25 / 49 + .75 / 2).
    assert (apart.degrees_of_freedom, single.degrees_of_freedom) == (pytest.approx(2.64, abs=0.02), 49)
    assert apart.standard_error == pytest.approx((0.01**2 * 50 / 49 + 0.03**2 / 3) ** 0.5, rel=0.02)
    assert apart.interval().high - apart.value == pytest.approx(3.44 * apart.standard_error, rel=0.01)
    assert apart.p_value > 0.1 > 0.01 > alike.p_value
    assert alike.interval().excludes_zero
    assert not apart.interval().excludes_zero


def test_takes_are_few_and_what_a_seed_errs_in_its_own_way_counts_once():
    """By hand, with four takes, of which resamples spread less than takes do."""
    common, own = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([[2.0, -2], [2, -2], [-2, 2], [-2, 2]])
    single = difference_of(np.zeros(1), common, 4)
    assert (single.standard_error, single.degrees_of_freedom) == (pytest.approx((4 / 3) ** 0.5), 3)
    two = difference_of(np.array([3.0, -3.0]), common + own, 4)
    # Seeds: 18 / 2. Takes: 4/3 · 1, less 4/3 · (4 + 4) / (2 - 1) / 2, which the seeds' part holds already: not below 0.
    assert two.standard_error == pytest.approx(3)
    assert difference_of(np.array([3.0, -3.0]), 4 * common + own, 4).standard_error == pytest.approx(
        (9 + 4 / 3 * 16 - 4 / 3 * 4) ** 0.5
    )


def test_seeds_with_the_same_score_by_chance_do_not_make_takes_certain():
    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.05, (2000, 3))
    resampled = 0.02 + rng.normal(0, 0.01, (2000, 1)) + own - own.mean(axis=1, keepdims=True)
    found = difference_of(np.full(3, 0.02), resampled, 12)
    assert (found.standard_error, found.degrees_of_freedom) == (pytest.approx(0.01 * (12 / 11) ** 0.5, rel=0.05), 11)
    assert found.p_value > 0.05


def test_p_value_and_interval_say_the_same_and_the_smallest_difference_has_its_power():
    rng = np.random.default_rng(0)
    difference = difference_of(np.array([0.04]), rng.normal(0.04, 0.02, (2000, 1)), 25)
    p_value = difference.p_value
    assert difference.interval(1 - p_value - 1e-9).excludes_zero
    assert not difference.interval(1 - p_value + 1e-9).excludes_zero
    # One seed, a known error: with the smallest detectable gain, 80 % of the experiments exclude zero.
    trials = rng.normal(0, 1, (20_000, 60)).mean(axis=1, keepdims=True), rng.normal(0, 1, (20_000, 60))
    error = trials[1].std(axis=1, ddof=1) / 60**0.5
    visible = difference_of(
        np.zeros(1), rng.normal(0, 60**-0.5, (20_000, 1)) * (59 / 60) ** 0.5, 60
    ).smallest_detectable()
    assert np.mean((trials[0][:, 0] + visible) / error > 2.0010) == pytest.approx(0.8, abs=0.02)


def test_equal_models_differ_by_exactly_zero_and_one_take_has_no_bounds():
    logits, labels, take_of = _hard_case(0)
    takes = [str(t) for t in take_of]
    same = metric_difference("mean_average_precision", [logits], [logits], labels, takes, np.random.default_rng(0), 50)
    assert (same.value, same.interval().low, same.interval().high, same.p_value) == (0, 0, 0, 1)
    alone = metric_difference("top1", [logits], [logits + 1], labels, ["only"] * 60, np.random.default_rng(0), 50)
    assert (alone.interval().low, alone.p_value, alone.smallest_detectable()) == (None, None, None)
    assert not alone.is_within(1.0)


def test_what_cannot_be_compared_is_refused():
    logits, labels, take_of = _hard_case(0)
    takes, rng = [str(t) for t in take_of], np.random.default_rng(0)
    with pytest.raises(DataError, match="same seeds"):
        metric_difference("top1", [logits, logits], [logits], labels, takes, rng, 10)
    with pytest.raises(DataError, match="at least one seed"):
        metric_difference("top1", [], [], labels, takes, rng, 10)
    with pytest.raises(DataError, match="takes and draws"):
        resampled_metric("top1", logits, labels, take_of + 1, np.ones((1, 6)))
    with pytest.raises(DataError, match="no take"):
        resampled_metric("top1", logits, labels, take_of, np.zeros((1, 6)))
    with pytest.raises(RunError, match="not finite"):
        difference_of(np.zeros(1), np.full((3, 1), np.nan), 3)
    few, many = (resampled_model("top1", [logits], labels, take_of, draw_takes(6, n, rng)) for n in (3, 4))
    with pytest.raises(DataError, match="on the same resamples"):
        few.minus(many)


def test_the_gain_of_a_class_is_judged_on_the_takes_that_hold_it():
    labels = torch.tensor([2, 2, 2, 0, 0, 3])
    takes = ["a", "a", "b", "a", "b", "c"]
    right, wrong = torch.eye(4)[labels], torch.eye(4)[[1] * 6]
    half = torch.eye(4)[[2, 1, 1, 0, 0, 3]]
    gains = class_gains([right, right], [wrong, half], labels, takes, 1, np.random.default_rng(0))
    assert [(gain.label, gain.support, gain.difference.num_takes) for gain in gains] == [
        (2, 3, 2),
        (0, 2, 2),
        (3, 1, 1),
    ]
    assert (gains[0].recall_a, gains[0].recall_b) == (1, pytest.approx((0 + 1 / 3) / 2))
    assert gains[0].difference.of_seed == (1, pytest.approx(2 / 3))
    assert gains[2].difference.interval().low is None
    second = wrong + 0.5 * right
    assert class_gains([second], [wrong], labels, takes, 1, np.random.default_rng(0))[0].recall_a == 0
    assert class_gains([second], [wrong], labels, takes, 2, np.random.default_rng(0))[0].recall_a == 1
    with pytest.raises(DataError, match="same seeds"):
        class_gains([right], [wrong, half], labels, takes, 1, np.random.default_rng(0))
