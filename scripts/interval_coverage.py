"""How often intervals and tests keep their promise: the tables of docs/statistics.md.

    python scripts/interval_coverage.py all            every table below, and the processor time of each

    python scripts/interval_coverage.py coverage       95 % intervals of a Top-1 difference
    python scripts/interval_coverage.py segments       the same for fewer and more segments a take
    python scripts/interval_coverage.py few            the same for few takes and for two seeds
    python scripts/interval_coverage.py takes          ways to treat takes
    python scripts/interval_coverage.py seeds          ways to treat seeds
    python scripts/interval_coverage.py one-seed       what one seed does not know
    python scripts/interval_coverage.py errors         how often "no difference" or "better" is claimed wrongly
    python scripts/interval_coverage.py power          how often "no difference" is claimed rightly
    python scripts/interval_coverage.py metrics        intervals and claims of all metrics, on unequal classes

`--trials 1000` sets the trials of each cell, `--into docs/statistics.md` writes the tables there. The same command
gives the same tables. `paired_worlds.py` has what is simulated.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from paired_worlds import Scored, World, simulate_logits, simulate_segments
from scipy import stats

from hwm.evaluation.differences import Difference, difference_of, resampled_model
from hwm.evaluation.resampled import METRICS, MetricName
from hwm.evaluation.statistics import draw_takes, number_takes
from hwm.evaluation.tests_of_difference import holm
from hwm.evaluation.verdicts import Outcome, decide

NUM_RESAMPLES = 2000
TRIALS_AT_ONCE = 50
CORRELATIONS = (0.0, 0.3, 0.5)
SEEDS = ((1, 0.0), (3, 0.0), (3, 1.0), (3, 2.0), (5, 0.0), (5, 1.0), (5, 2.0))
"""Seeds and seed noise in points."""


class Trial(NamedTuple):
    """One comparison: the difference of hits (a - b) on all segments, on resamples of whole takes, and by take."""

    value_J: NDArray[np.float64]
    resampled_RJ: NDArray[np.float64]
    draws_RP: NDArray[np.float64]
    square_P: NDArray[np.float64]
    """Sum over a take's segments of the squared difference, averaged over seeds first."""
    total_P: NDArray[np.float64]
    size_P: NDArray[np.int64]

    @property
    def kept(self) -> Difference:
        """What the package makes of it."""
        return difference_of(self.value_J, self.resampled_RJ, len(self.size_P))


def trials(world: World, num_trials: int, seed: int) -> Iterator[Trial]:
    """Independent comparisons; resamples are drawn anew for every few of them. Each world has numbers of its own."""
    rng = np.random.default_rng([seed, *(round(1000 * number) for number in (*world[:5], *world.segments))])
    for start in range(0, num_trials, TRIALS_AT_ONCE):
        num_here = min(TRIALS_AT_ONCE, num_trials - start)
        draws_RP = draw_takes(world.num_takes, NUM_RESAMPLES, rng).astype(np.float64)
        hits = simulate_segments(world, rng, num_here)
        gain_NJ = hits.a_NJ.astype(np.float64) - hits.b_NJ
        first_P = np.cumsum(hits.size_P) - hits.size_P
        total_PJ = np.add.reduceat(gain_NJ, first_P, axis=0)
        square_P = np.add.reduceat(gain_NJ.mean(axis=1) ** 2, first_P)
        for trial in range(num_here):
            here = slice(trial * world.num_takes, (trial + 1) * world.num_takes)
            size_P = hits.size_P[here]
            yield Trial(
                total_PJ[here].sum(axis=0) / size_P.sum(), draws_RP @ total_PJ[here] / (draws_RP @ size_P)[:, None],
                draws_RP, square_P[here], total_PJ[here].mean(axis=1), size_P,
            )  # fmt: skip


Bounds = tuple[float, float]
Variants = Callable[[Trial], dict[str, Bounds]]


def kept_alone(trial: Trial) -> dict[str, Bounds]:
    """95 % bounds of what the package does."""
    interval = trial.kept.interval()
    assert interval.low is not None
    assert interval.high is not None
    return {"kept": (interval.low, interval.high)}


def take_variants(trial: Trial) -> dict[str, Bounds]:
    """Ways to treat takes. Where segments are drawn, the variance over all such draws is known without drawing."""
    value, of_takes_R = float(trial.value_J.mean()), trial.resampled_RJ.mean(axis=1)
    low, high = np.quantile(of_takes_R, [0.025, 0.975])
    spread_P = trial.square_P - trial.total_P**2 / trial.size_P  # drawing a take's segments again: its variance
    again = float((trial.draws_RP @ spread_P / (trial.draws_RP @ trial.size_P) ** 2).mean())
    alone = (trial.square_P.sum() / trial.size_P.sum() - value**2) / trial.size_P.sum()
    return kept_alone(trial) | {
        "takes, percentile": (float(low), float(high)),
        "takes, then segments": _bounds(value, float(of_takes_R.var()) + again, np.inf),
        "segments alone": _bounds(value, float(alone), np.inf),
    }


def seed_variants(trial: Trial) -> dict[str, Bounds]:
    """Ways to treat seeds."""
    value, num_seeds, num_takes = float(trial.value_J.mean()), len(trial.value_J), len(trial.size_P)
    fewer = num_takes / (num_takes - 1)
    of_takes = fewer * float(trial.resampled_RJ.mean(axis=1).var())
    of_seeds = float(trial.value_J.var(ddof=1)) / num_seeds
    kept = trial.kept
    variance = (kept.standard_error or 0.0) ** 2
    squares = of_seeds**2 / (num_seeds - 1) + (variance - of_seeds) ** 2 / (num_takes - 1)
    rng = np.random.default_rng(0)
    drawn_RJ = rng.integers(0, num_seeds, trial.resampled_RJ.shape)
    low, high = np.quantile(np.take_along_axis(trial.resampled_RJ, drawn_RJ, axis=1).mean(axis=1), [0.025, 0.975])
    over_takes = _bounds(value, max(of_takes, variance), num_takes - 1)
    over_seeds = _bounds(value, of_seeds, num_seeds - 1)
    return kept_alone(trial) | {
        "seeds fixed": _bounds(value, of_takes, num_takes - 1),
        "seeds drawn": (float(low), float(high)),
        "wider of two": min(over_takes, over_seeds),
        "Satterthwaite": _bounds(value, variance, variance**2 / squares),
    }


def _bounds(value: float, variance: float, degrees: float) -> Bounds:
    reach = float(stats.t.ppf(0.975, degrees)) * variance**0.5
    return value - reach, value + reach


def coverage(world: World, num_trials: int, seed: int, variants: Variants = kept_alone) -> dict[str, float]:
    """Share of trials whose bounds hold the true difference, for each variant."""
    covered: dict[str, int] = {}
    for trial in trials(world, num_trials, seed):
        for name, (low, high) in variants(trial).items():
            covered[name] = covered.get(name, 0) + (low <= world.gain <= high)
    return {name: count / num_trials for name, count in covered.items()}


Claim = Callable[[Difference], bool]


def error_rates(world: World, num_trials: int, seed: int, *claims: Claim) -> tuple[float, ...]:
    """Share of trials in which each claim is made."""
    found = [trial.kept for trial in trials(world, num_trials, seed)]
    return tuple(sum(map(claim, found)) / num_trials for claim in claims)


def print_coverage(num_trials: int) -> None:
    """Coverage over the whole grid."""
    _print_head("takes", "correlation", *_names(SEEDS))
    for num_takes in (12, 24, 60, 180):
        for correlation in CORRELATIONS:
            worlds = [World(num_takes, correlation, *seeds) for seeds in SEEDS]
            shares = [coverage(world, num_trials, 0)["kept"] for world in worlds]
            _print_row(num_takes, correlation, *map(_percent, shares))


def print_segments(num_trials: int) -> None:
    """Coverage for fewer and more segments a take."""
    _print_head("segments a take", "takes", "1 seed", "3 seeds, noise 0", "3 seeds, noise 1")
    for segments in ((1, 5), (8, 27), (40, 120)):
        for num_takes in (24, 60):
            worlds = [World(num_takes, 0.3, *seeds, segments=segments) for seeds in SEEDS[:3]]
            shares = [coverage(world, num_trials, 0)["kept"] for world in worlds]
            _print_row("{} to {}".format(*segments), num_takes, *map(_percent, shares))


def print_few(num_trials: int) -> None:
    """Coverage for few takes and for two seeds."""
    seeds = ((1, 0.0), (2, 0.0), (2, 1.0), (2, 2.0), (3, 0.0), (3, 1.0), (3, 2.0))
    _print_head("takes", "correlation", *_names(seeds))
    for num_takes in (4, 6, 8, 60):
        for correlation in CORRELATIONS:
            worlds = [World(num_takes, correlation, *of) for of in seeds]
            shares = [coverage(world, num_trials, 0)["kept"] for world in worlds]
            _print_row(num_takes, correlation, *map(_percent, shares))


def print_variants(num_trials: int, variants: Variants, seeds: Sequence[tuple[int, float]]) -> None:
    """Coverage of several ways to treat takes or seeds."""
    for num_takes in (12, 60, 180):
        for correlation in CORRELATIONS:
            for num_seeds, points in seeds:
                world = World(num_takes, correlation, num_seeds, points)
                shares = coverage(world, num_trials, 0, variants)
                if (num_takes, correlation, points) == (12, 0.0, 0.0):
                    _print_head("takes", "correlation", "seed noise", *shares)
                _print_row(num_takes, correlation, points, *map(_percent, shares.values()))


def print_one_seed(num_trials: int) -> None:
    """What a single seed does not know: coverage where seeds differ and there is one."""
    _print_head("takes", "correlation", "seed noise 0.5", "1.0", "2.0")
    for num_takes in (24, 60, 180):
        for correlation in CORRELATIONS:
            worlds = [World(num_takes, correlation, 1, points) for points in (0.5, 1.0, 2.0)]
            shares = [coverage(world, num_trials, 0)["kept"] for world in worlds]
            _print_row(num_takes, correlation, *map(_percent, shares))


def print_errors(num_trials: int) -> None:
    """How often a difference of 5 points is called none within 5 points, and none is called a difference."""
    columns = ("none, at the bound", "p < .05", "p < .01", "p < .0033")
    _print_head("takes", "correlation", "seeds", "seed noise", *columns)
    for num_takes in (24, 60, 180):
        for correlation in (0.0, 0.3):
            for seeds, points in SEEDS:
                world = World(num_takes, correlation, seeds, points, gain=0.05)
                rates = error_rates(world, num_trials, 0, _none)
                claims = [lambda d, level=level: (d.p_value or 0.0) < level for level in (0.05, 0.01, 0.05 / 15)]
                rates += error_rates(world._replace(gain=0.0), num_trials, 0, *claims)
                _print_row(*world[:4], *map(_percent, rates))


def print_power(num_trials: int) -> None:
    """How often "no difference within 5 points" is claimed where there is none, and one of 5 points is found."""
    seeds = ((1, 0.0), (3, 0.0), (3, 1.0), (5, 1.0))
    _print_head("true", "takes", "correlation", *_names(seeds))
    for gain in (0.0, 0.05):
        for num_takes in (24, 60, 180, 360):
            for correlation in CORRELATIONS:
                worlds = [World(num_takes, correlation, *of, gain=gain) for of in seeds]
                rates = [error_rates(world, num_trials, 0, _found if gain else _none)[0] for world in worlds]
                _print_row(f"{100 * gain:g} points", num_takes, correlation, *map(_percent, rates))


def _names(seeds: Sequence[tuple[int, float]]) -> list[str]:
    return [f"{num} seeds, noise {points:g}" if num > 1 else "1 seed" for num, points in seeds]


def _none(difference: Difference) -> bool:
    return difference.is_within(0.05)


def _found(difference: Difference) -> bool:
    return (difference.p_value or 0.0) < 0.05


def print_metrics(num_trials: int) -> None:
    """Coverage of each metric, and how often any of the five is claimed better or worse where none is.

    The true differences are means of simulations of the same size: a mean of classes depends a little on the size.
    """
    _print_head("takes", *METRICS, "any false claim")
    rng = np.random.default_rng(0)
    for num_takes in (24, 60):
        once_RP = np.ones((2, num_takes), dtype=np.int64)
        large = [_differences(simulate_logits(num_takes, rng), once_RP) for _ in range(2 * num_trials)]
        truths = {metric: np.mean([of[metric].value for of in large]) for metric in METRICS}
        held, claimed = dict.fromkeys(METRICS, 0), 0
        for _ in range(num_trials):
            draws_RP = draw_takes(num_takes, 400, rng)
            for metric, difference in _differences(simulate_logits(num_takes, rng), draws_RP).items():
                _, low, high, *_ = difference.interval()
                held[metric] += low is not None and high is not None and bool(low <= truths[metric] <= high)
            none = _differences(simulate_logits(num_takes, rng, (1.6, 1.6)), draws_RP).values()
            adjusted = holm([difference.p_value or 0.0 for difference in none])
            outcomes = [decide(difference, None, p).outcome for difference, p in zip(none, adjusted, strict=True)]
            claimed += any(outcome in (Outcome.BETTER, Outcome.WORSE) for outcome in outcomes)
        _print_row(num_takes, *(_percent(count / num_trials) for count in (*held.values(), claimed)))


def _differences(scored: Scored, draws_RP: NDArray[np.int64]) -> dict[MetricName, Difference]:
    take_of_N, _ = number_takes(scored.takes, len(scored.labels_N))
    of_metric = {}
    for metric in METRICS:
        a, b = (
            resampled_model(metric, logits, scored.labels_N, take_of_N, draws_RP)
            for logits in (scored.logits_a, scored.logits_b)
        )
        of_metric[metric] = a.minus(b)
    return of_metric


TABLES: dict[str, Callable[[int], None]] = {
    "coverage": print_coverage,
    "segments": print_segments,
    "few": print_few,
    "takes": lambda num_trials: print_variants(num_trials, take_variants, SEEDS[:1]),
    "seeds": lambda num_trials: print_variants(num_trials, seed_variants, SEEDS[1:4]),
    "one-seed": print_one_seed,
    "errors": print_errors,
    "power": print_power,
    "metrics": print_metrics,
}


def main() -> None:
    """Prints one table, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=["all", *TABLES])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument(
        "--into", type=Path, help="Markdown file whose tables, each under its `<!-- name -->`, are replaced"
    )
    asked = parser.parse_args()
    for name in TABLES if asked.table == "all" else [asked.table]:
        started, printed = time.process_time(), io.StringIO()
        with contextlib.redirect_stdout(printed):
            TABLES[name](asked.trials)
        print(f"\n<!-- {name} -->\n{printed.getvalue()}\n{time.process_time() - started:.0f} s of one core", flush=True)
        if asked.into:
            text = asked.into.read_text(encoding="utf-8")
            asked.into.write_text(replace_table(text, name, printed.getvalue()), encoding="utf-8")


def replace_table(text: str, name: str, table: str) -> str:
    """The text with the table under `<!-- name -->` replaced."""
    before, found, after = text.partition(f"<!-- {name} -->\n")
    if not found:
        raise SystemExit(f"there is no <!-- {name} --> in this file")
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + found + table + "".join(rest)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _print_head(*cells: object) -> None:
    _print_row(*cells)
    print("|" + "---|" * len(cells))


def _print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
