"""How often intervals and tests keep their promise: the simulations behind docs/statistics.md.

    python scripts/interval_coverage.py coverage       95 % intervals of a Top-1 difference, by variant
    python scripts/interval_coverage.py few            the same for few takes
    python scripts/interval_coverage.py one-seed       what one seed does not know
    python scripts/interval_coverage.py errors         how often "no difference" or "better" is claimed wrongly
    python scripts/interval_coverage.py metrics        intervals of all metrics, on classes of unequal frequency
    python scripts/interval_coverage.py speed          seconds for 5,000 segments, 3 seeds, 2,000 resamples

`--trials 1000` sets the trials of each row. A segment is right where a Gaussian is above a threshold. Its variance of 1
is shared out: the segment's difficulty, the same for both models (0.4); the seed, apart for each model; of the rest the
take has `correlation`, apart for each model, a tenth of it anew for each seed; and what is left is noise, half of it
the model's and half the seed's. So the true difference over all takes and seeds is exact.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from hwm.evaluation.differences import Difference, difference_of, metric_difference
from hwm.evaluation.resampled import METRICS, MetricName
from hwm.evaluation.statistics import draw_takes

SHARED = 0.4
BASE = 0.35
NUM_RESAMPLES = 2000


class World(NamedTuple):
    """What is simulated."""

    num_takes: int
    correlation: float
    """Share of a model's own variance that belongs to the take."""
    num_seeds: int
    seed_points: float
    """Standard deviation of each model's Top-1 over seeds, in points."""
    gain: float = 0.03
    """True difference, a fraction."""


class Trial(NamedTuple):
    """Hits of a minus hits of b, J seeds."""

    difference_NJ: NDArray[np.float64]
    take_of_N: NDArray[np.int64]


def simulate(world: World, rng: np.random.Generator) -> Trial:
    """One comparison: takes of 8 to 27 segments, two models, J seeds."""
    take_of_N = np.repeat(np.arange(world.num_takes), rng.integers(8, 28, world.num_takes))
    threshold_M = stats.norm.ppf([BASE + world.gain, BASE])
    of_seed = (world.seed_points / 100 / float(stats.norm.pdf(threshold_M.mean()))) ** 2
    own = 1 - SHARED - of_seed
    of_take, of_both = 0.9 * world.correlation * own, 0.1 * world.correlation * own
    noise = own - of_take - of_both

    def normal(variance: float, *shape: int) -> NDArray[np.float64]:
        return rng.normal(0, np.sqrt(variance), shape)

    num_segments, num_seeds = len(take_of_N), world.num_seeds
    difficulty_N = normal(SHARED, num_segments)
    hits_NJ = []
    for threshold in threshold_M:
        skill_N = difficulty_N + normal(of_take, world.num_takes)[take_of_N] + normal(noise / 2, num_segments)
        anew_NJ = normal(of_both, world.num_takes, num_seeds)[take_of_N] + normal(noise / 2, num_segments, num_seeds)
        hits_NJ.append(threshold + skill_N[:, None] + anew_NJ + normal(of_seed, 1, num_seeds) > 0)
    return Trial(hits_NJ[0].astype(np.float64) - hits_NJ[1], take_of_N)


def by_take(trial: Trial, draws_RP: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The difference of each seed on all segments [J], and on resamples of whole takes [R, J]."""
    num_takes = draws_RP.shape[1]
    size_P = np.bincount(trial.take_of_N, minlength=num_takes)
    total_PJ = np.add.reduceat(trial.difference_NJ, np.flatnonzero(np.diff(trial.take_of_N, prepend=-1)), axis=0)
    return trial.difference_NJ.mean(axis=0), (draws_RP @ total_PJ) / (draws_RP @ size_P)[:, None]


def kept(trial: Trial, draws_RP: NDArray[np.float64]) -> Difference:
    """What the package does."""
    return difference_of(*by_take(trial, draws_RP), draws_RP.shape[1])


def segments_alone(trial: Trial, rng: np.random.Generator, num_resamples: int) -> NDArray[np.float64]:
    """Resampled mean over seeds, segments drawn as if they were independent."""
    value_N = trial.difference_NJ.mean(axis=1)
    return np.array([value_N[rng.integers(0, len(value_N), len(value_N))].mean() for _ in range(num_resamples)])


def takes_then_segments(trial: Trial, draws_RP: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Resampled mean over seeds: takes drawn, then segments within each drawn take."""
    value_N = trial.difference_NJ.mean(axis=1)
    size_P = np.bincount(trial.take_of_N)
    first_P = np.cumsum(size_P) - size_P
    means = np.empty(len(draws_RP))
    for resample, draw_P in enumerate(draws_RP):
        takes = np.repeat(np.arange(len(size_P)), draw_P.astype(int))
        rows = np.repeat(first_P[takes], size_P[takes]) + np.floor(
            rng.random(size_P[takes].sum()) * np.repeat(size_P[takes], size_P[takes])
        ).astype(int)
        means[resample] = value_N[rows].mean()
    return means


Bounds = tuple[float, float]
Variants = Callable[[Trial, NDArray[np.float64], np.random.Generator], Iterator[tuple[str, Bounds]]]


def kept_alone(trial: Trial, draws_RP: NDArray[np.float64], rng: np.random.Generator) -> Iterator[tuple[str, Bounds]]:
    """Name and 95 % bounds of what the package does."""
    interval = kept(trial, draws_RP).interval()
    assert interval.low is not None
    assert interval.high is not None
    yield "kept", (interval.low, interval.high)


def seed_variants(
    trial: Trial, draws_RP: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[tuple[str, Bounds]]:
    """Ways to treat seeds: as kept, as if they were all there is, and drawn with replacement like the takes."""
    yield from kept_alone(trial, draws_RP, rng)
    value_J, resampled_RJ = by_take(trial, draws_RP)
    yield "seeds fixed", _t_bounds(value_J.mean(), resampled_RJ.mean(axis=1), draws_RP.shape[1])
    drawn_RJ = rng.integers(0, len(value_J), resampled_RJ.shape)
    low, high = np.quantile(np.take_along_axis(resampled_RJ, drawn_RJ, axis=1).mean(axis=1), [0.025, 0.975])
    yield "seeds drawn", (low, high)
    yield "Satterthwaite", _satterthwaite_bounds(value_J, resampled_RJ, draws_RP.shape[1])


def take_variants(
    trial: Trial, draws_RP: NDArray[np.float64], rng: np.random.Generator
) -> Iterator[tuple[str, Bounds]]:
    """Ways to treat takes; the slow ones use 200 resamples and a normal quantile."""
    yield from kept_alone(trial, draws_RP, rng)
    value_J, resampled_RJ = by_take(trial, draws_RP)
    low, high = np.quantile(resampled_RJ.mean(axis=1), [0.025, 0.975])
    yield "takes, percentile", (low, high)
    few_RP = draws_RP[:200]
    for name, means in (
        ("takes, then segments", takes_then_segments(trial, few_RP, rng)),
        ("segments alone", segments_alone(trial, rng, len(few_RP))),
    ):
        yield name, (value_J.mean() - 1.96 * means.std(), value_J.mean() + 1.96 * means.std())


def _t_bounds(value: float, resampled_R: NDArray[np.float64], num_takes: int) -> Bounds:
    error = np.sqrt(num_takes / (num_takes - 1)) * resampled_R.std()
    reach = stats.t.ppf(0.975, num_takes - 1) * error
    return value - reach, value + reach


def _satterthwaite_bounds(value_J: NDArray[np.float64], resampled_RJ: NDArray[np.float64], num_takes: int) -> Bounds:
    """One t for the sum of both variances, as the p value does."""
    difference = difference_of(value_J, resampled_RJ, num_takes)
    reach = stats.t.ppf(0.975, difference.degrees_of_freedom) * difference.errors[0].size
    return difference.value - reach, difference.value + reach


def coverage(world: World, num_trials: int, seed: int, variants: Variants = kept_alone) -> dict[str, float]:
    """Share of trials whose bounds hold the true difference, for each variant."""
    rng = np.random.default_rng(seed)
    draws_RP = draw_takes(world.num_takes, NUM_RESAMPLES, rng).astype(np.float64)
    covered: dict[str, int] = {}
    for _ in range(num_trials):
        for name, (low, high) in variants(simulate(world, rng), draws_RP, rng):
            covered[name] = covered.get(name, 0) + (low <= world.gain <= high)
    return {name: count / num_trials for name, count in covered.items()}


Claim = Callable[[Difference], bool]


def error_rates(world: World, num_trials: int, seed: int, *claims: Claim) -> tuple[float, ...]:
    """Share of trials in which each claim is made."""
    rng = np.random.default_rng(seed)
    draws_RP = draw_takes(world.num_takes, NUM_RESAMPLES, rng).astype(np.float64)
    found = [kept(simulate(world, rng), draws_RP) for _ in range(num_trials)]
    return tuple(sum(map(claim, found)) / num_trials for claim in claims)


def worlds(takes: tuple[int, ...], num_seeds: int) -> Iterator[World]:
    """All cases of a table."""
    for num_takes in takes:
        for correlation in (0.0, 0.2, 0.5):
            for points in (0.0,) if num_seeds == 1 else (0.0, 0.5, 1.0, 2.0):
                yield World(num_takes, correlation, num_seeds, points)


def print_coverage(takes: tuple[int, ...], num_trials: int) -> None:
    """Coverage of each way to treat takes (one seed) and seeds (three)."""
    for num_seeds, variants in ((1, take_variants), (3, seed_variants)):
        for seed, world in enumerate(worlds(takes, num_seeds)):
            shares = coverage(world, num_trials, seed, variants)
            if not seed:
                _print_row("takes", "correlation", "seeds", "seed noise", *shares)
                _print_row(*["---"] * (4 + len(shares)))
            _print_row(*world[:4], *[f"{100 * share:.1f}" for share in shares.values()])


def print_one_seed(num_trials: int) -> None:
    """What a single seed does not know: coverage where seeds differ and there is one."""
    _print_row("takes", "correlation", "seeds", "seed noise", "kept")
    _print_row(*["---"] * 5)
    for points in (0.5, 1.0, 2.0):
        for world in worlds((30, 90, 180), 1):
            shares = coverage(world._replace(seed_points=points), num_trials, 0)
            _print_row(*world[:3], points, f"{100 * shares['kept']:.1f}")


def print_errors(num_trials: int) -> None:
    """How often a difference of 10 points is called none within 10 points, and none is called a difference."""
    columns = ("none, at the bound", "interval excludes zero", "p < .05", "p < .01")
    _print_row("takes", "correlation", "seeds", "seed noise", *columns)
    _print_row(*["---"] * 8)
    for num_takes in (30, 90, 180):
        for seeds, points in ((1, 0.0), (3, 0.0), (3, 1.0), (3, 2.0)):
            world = World(num_takes, 0.2, seeds, points, gain=0.1)
            rates = error_rates(world, num_trials, 0, lambda d: d.is_within(0.1))
            rates += error_rates(
                world._replace(gain=0.0), num_trials, 1, lambda d: d.interval().excludes_zero,
                lambda d: (d.p_value or 0) < 0.05, lambda d: (d.p_value or 0) < 0.01,
            )  # fmt: skip
            _print_row(*world[:4], *[f"{100 * rate:.1f}" for rate in rates])


class Scored(NamedTuple):
    """Logits of two models, J seeds each, and the labels and takes of the segments."""

    logits_a: list[torch.Tensor]
    logits_b: list[torch.Tensor]
    labels_N: torch.Tensor
    takes: list[str]


def simulate_logits(num_takes: int, rng: np.random.Generator, num_classes: int = 20, num_seeds: int = 3) -> Scored:
    """Classes with frequencies 1/rank, two kinds of take that hold them differently; model a sees them more clearly."""
    take_of_N = np.repeat(np.arange(num_takes), rng.integers(8, 28, num_takes))
    frequency_C = 1 / np.arange(1, num_classes + 1)
    kinds = np.stack([frequency_C, np.roll(frequency_C, 3)])
    kind_of_P = rng.integers(0, 2, num_takes)
    labels = [rng.choice(num_classes, p=kinds[kind_of_P[t]] / kinds[kind_of_P[t]].sum()) for t in take_of_N]
    truth_NC = np.eye(num_classes)[labels]
    logits = []
    for strength in (1.8, 1.5):
        shared_NC = rng.normal(0, 0.6, (len(labels), num_classes))
        clarity_P = strength + rng.normal(0, 0.4, num_takes)
        of_seed = []
        for _ in range(num_seeds):
            clarity_N = clarity_P[take_of_N] + rng.normal(0, 0.05)
            noise_NC = shared_NC + rng.normal(0, 0.8, shared_NC.shape)
            of_seed.append(torch.from_numpy(clarity_N[:, None] * truth_NC + noise_NC))
        logits.append(of_seed)
    return Scored(*logits, torch.tensor(labels), [f"take {t}" for t in take_of_N])


def print_metrics(num_trials: int) -> None:
    """Coverage of all metrics; the truth is the mean of 30 large simulations."""
    _print_row("takes", *METRICS)
    _print_row(*["---"] * (1 + len(METRICS)))
    rng = np.random.default_rng(0)
    large = [simulate_logits(300, rng) for _ in range(30)]
    truths = {metric: np.mean([_difference(metric, of, rng, 2).value for of in large]) for metric in METRICS}
    for num_takes in (30, 90):
        held = dict.fromkeys(METRICS, 0)
        for _ in range(num_trials):
            scored = simulate_logits(num_takes, rng)
            for metric in METRICS:
                _, low, high, *_ = _difference(metric, scored, rng, 400).interval()
                assert low is not None
                assert high is not None
                held[metric] += bool(low <= truths[metric] <= high)
        _print_row(num_takes, *(f"{100 * count / num_trials:.1f}" for count in held.values()))


def _difference(metric: MetricName, scored: Scored, rng: np.random.Generator, num_resamples: int) -> Difference:
    return metric_difference(
        metric, scored.logits_a, scored.logits_b, scored.labels_N, scored.takes, rng, num_resamples
    )


def print_speed() -> None:
    """Seconds for one comparison of 5,000 segments of 300 takes and 300 classes, 3 seeds, 2,000 resamples."""
    rng = np.random.default_rng(0)
    labels_N = torch.from_numpy((300 * rng.random(5000) ** 3).astype(np.int64))
    takes = [f"take {index % 300}" for index in range(5000)]
    models = [[torch.from_numpy(rng.normal(size=(5000, 300))) for _ in range(3)] for _ in range(2)]
    for metric in METRICS:
        started = time.perf_counter()
        metric_difference(metric, *models, labels_N, takes, rng)
        _print_row(metric, f"{time.perf_counter() - started:.1f} s")


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tables = {
        "coverage": lambda trials: print_coverage((30, 90, 180), trials),
        "few": lambda trials: print_coverage((4, 6, 10), trials),
        "one-seed": print_one_seed,
        "errors": print_errors,
        "metrics": print_metrics,
        "speed": lambda _: print_speed(),
    }
    parser.add_argument("table", choices=tables)
    parser.add_argument("--trials", type=int, default=1000)
    asked = parser.parse_args()
    tables[asked.table](asked.trials)


def _print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
