"""By how much one model beats another, and how sure that is: takes and seeds are both random.

In: logits of two models on the same segments, one pair a seed. Out: a `Difference`, which knows its interval, its p
value, the smallest difference it could see, and whether it lies within a bound.

There are two standard errors, each with the Student's t that its few observations ask for:

- of takes: the spread of the seed-averaged difference over resamples of whole takes (both models and all seeds on the
  same resample; segments of a drawn take stay together) times P / (P - 1), plus what the J seeds spread beyond that;
  t with P - 1 degrees of freedom;
- of seeds: the spread of the difference over the J seeds, divided by J; t with J - 1 degrees of freedom.

An interval reaches as far as the wider of the two asks. Where seeds matter, three are few: t with 2 degrees of freedom
says so. With one seed the spread over seeds cannot be known: the interval is about these two trained models, not about
training them again.

The p value uses the first error, which holds both sources, with Satterthwaite's degrees of freedom (Biometrics
Bulletin, 1946). Far out in the tails, where Holm's correction asks, t with 2 degrees of freedom would find nothing,
whatever the takes say. A claim (`verdicts`) needs both: the interval and the p value.

`docs/statistics.md` has the measured coverage of this and of the variants that were not kept.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from hwm.errors import DataError, RunError
from hwm.evaluation.resampled import MetricName, resampled_metric
from hwm.evaluation.statistics import Interval, draw_takes, number_takes


class StandardError(NamedTuple):
    """One source of error of a difference."""

    size: float
    """In the metric's unit."""
    degrees_of_freedom: int
    """Of Student's t."""


class Difference(NamedTuple):
    """The difference a - b of one metric, over J paired seeds and P takes."""

    value: float
    """Mean over seeds of the difference on all segments, in the metric's unit (fractions)."""
    of_seed: tuple[float, ...]
    """The difference of each pair of seeds."""
    errors: tuple[StandardError, ...]
    """Of takes, and of seeds where there are several; empty below two takes, where nothing can be said."""
    degrees_of_freedom: float
    """Of t for the first error, by Satterthwaite; P - 1 with one seed."""
    num_takes: int

    @property
    def num_seeds(self) -> int:
        """Pairs of trained models; with 1 the interval does not cover another training."""
        return len(self.of_seed)

    def interval(self, level: float = 0.95) -> Interval:
        """The two-sided interval of the given nominal coverage."""
        if not self.errors:
            return Interval(self.value, None, None, level, self.num_takes)
        reach = max(size * float(stats.t.ppf((1 + level) / 2, degrees)) for size, degrees in self.errors)
        return Interval(self.value, self.value - reach, self.value + reach, level, self.num_takes)

    @property
    def p_value(self) -> float | None:
        """Two-sided p of "no difference"; with one seed, below 1 - level where `interval(level)` excludes zero."""
        if not self.errors:
            return None
        if self.value == 0:
            return 1.0
        size = self.errors[0].size
        return 2 * float(stats.t.sf(abs(self.value) / size, self.degrees_of_freedom)) if size else 0.0

    def smallest_detectable(self, power: float = 0.8, level: float = 0.95) -> float | None:
        """The true difference that an `interval(level)` of such data would find not to be zero with this power."""
        if not self.errors:
            return None
        tails = [(1 + level) / 2, power]
        return max(size * float(stats.t.ppf(tails, degrees).sum()) for size, degrees in self.errors)

    def is_within(self, bound: float, level: float = 0.95) -> bool:
        """Equivalence by two one-sided tests at 1 - level: the interval of 2 · level - 1 lies inside ± bound.

        Raises:
            DataError: the bound is not above 0.
        """
        if not bound > 0:
            raise DataError("an equivalence bound is a size", expected="a number above 0", found=f"{bound}")
        interval = self.interval(2 * level - 1)
        return (
            interval.low is not None and interval.high is not None and -bound < interval.low and interval.high < bound
        )


def metric_difference(
    metric: MetricName,
    logits_a: Sequence[Tensor],
    logits_b: Sequence[Tensor],
    labels_N: Tensor,
    takes: Sequence[str],
    rng: np.random.Generator,
    num_resamples: int = 2000,
) -> Difference:
    """How much better model a is than model b by one metric.

    Args:
        metric: one of `resampled.METRICS`.
        logits_a: logits [N, C] of model a, one tensor a seed.
        logits_b: logits [N, C] of model b, the same seeds in the same order.
        labels_N: true class 0..C-1 of each segment.
        takes: the take of each segment.
        rng: source of the resamples; the same state gives the same answer.
        num_resamples: resamples drawn.

    Raises:
        DataError: not the same seeds or segments, no segments, labels out of range.
        RunError: a logit is not finite.
    """
    take_of_N, num_takes = number_takes(takes, num_segments=len(labels_N))
    draws_RP = draw_takes(num_takes, num_resamples, rng)
    a = resampled_model(metric, logits_a, labels_N, take_of_N, draws_RP)
    return a.minus(resampled_model(metric, logits_b, labels_N, take_of_N, draws_RP))


class ResampledModel(NamedTuple):
    """A metric of one model: of each of its J seeds on all segments, and on R resamples of the P takes."""

    value_J: NDArray[np.float64]
    resampled_RJ: NDArray[np.float64]
    num_takes: int

    def minus(self, other: "ResampledModel") -> Difference:
        """How much better this model is than another with the same seeds on the same resamples.

        Raises:
            DataError: not the same seeds, takes or resamples.
        """
        if self.resampled_RJ.shape != other.resampled_RJ.shape or self.num_takes != other.num_takes:
            raise DataError(
                "a paired comparison needs the same seeds of both models, on the same resamples",
                expected=f"{len(self.value_J)} seeds, {len(self.resampled_RJ)} resamples of {self.num_takes} takes",
                found=f"{len(other.value_J)} seeds, {len(other.resampled_RJ)} resamples of {other.num_takes} takes",
            )
        return difference_of(self.value_J - other.value_J, self.resampled_RJ - other.resampled_RJ, self.num_takes)


def resampled_model(
    metric: MetricName,
    logits: Sequence[Tensor],
    labels_N: Tensor,
    take_of_N: NDArray[np.int64],
    draws_RP: NDArray[np.int64],
) -> ResampledModel:
    """A metric of all seeds of one model on resamples that are drawn already; see `resampled_metric` for the rest.

    Raises:
        DataError: no seed, no segments, labels out of range.
        RunError: a logit is not finite.
    """
    if not logits:
        raise DataError(
            "a model needs at least one seed to be scored", expected="logits of one run or more", found="none"
        )
    draws_RP = np.vstack([np.ones((1, draws_RP.shape[1]), dtype=draws_RP.dtype), draws_RP])  # first: all takes once
    of_seed = [resampled_metric(metric, logits_NC, labels_N, take_of_N, draws_RP) for logits_NC in logits]
    values_RJ = np.stack(of_seed, axis=1)
    return ResampledModel(values_RJ[0], values_RJ[1:], draws_RP.shape[1])


def difference_of(value_J: Float[np.ndarray, " j"], resampled_RJ: Num[np.ndarray, "r j"], num_takes: int) -> Difference:
    """The `Difference` of values that were computed on resamples of whole takes.

    Args:
        value_J: the difference of each seed on all segments.
        resampled_RJ: the difference of each seed on each resample of the takes, all seeds on the same resample.
        num_takes: P, how many takes each resample draws.

    Raises:
        RunError: a value is not finite.
    """
    if not (np.isfinite(value_J).all() and np.isfinite(resampled_RJ).all()):
        raise RunError(
            "a difference is not finite on some resample of the takes", expected="a number on every resample"
        )
    errors, degrees = _errors(value_J, resampled_RJ, num_takes) if num_takes > 1 else ((), 0.0)
    return Difference(float(value_J.mean()), tuple(value_J.tolist()), errors, degrees, num_takes)


def _errors(
    value_J: NDArray[np.float64], resampled_RJ: NDArray[np.float64], num_takes: int
) -> tuple[tuple[StandardError, ...], float]:
    """The standard errors, and Satterthwaite's degrees of freedom of the first."""
    num_seeds = len(value_J)
    fewer = num_takes / (num_takes - 1)  # resampled takes spread less than takes do
    of_takes = fewer * float(resampled_RJ.mean(axis=1).var())
    if num_seeds == 1:
        return (StandardError(math.sqrt(of_takes), num_takes - 1),), float(num_takes - 1)
    of_seeds = float(value_J.var(ddof=1)) / num_seeds
    # Seeds spread also because each errs on these takes in its own way: that part is in `of_takes` already.
    own_RJ = resampled_RJ - resampled_RJ.mean(axis=1, keepdims=True)
    of_both = fewer * float(own_RJ.var(axis=0).sum()) / (num_seeds - 1) / num_seeds
    total = of_takes + max(0.0, of_seeds - of_both)
    errors = StandardError(math.sqrt(total), num_takes - 1), StandardError(math.sqrt(of_seeds), num_seeds - 1)
    terms = (of_takes, num_takes - 1), (of_seeds, num_seeds - 1), (of_both, (num_takes - 1) * (num_seeds - 1))
    doubt = sum(term**2 / degrees for term, degrees in terms)
    return errors, max(float(min(num_takes, num_seeds) - 1), total**2 / doubt) if doubt else float(num_takes - 1)
