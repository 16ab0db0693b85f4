"""By how much one model beats another, and how sure that is: takes and seeds are both random.

In: logits of two models on the same segments, one pair a seed. Out: a `Difference`, which knows its interval, its p
value, the smallest difference it could see, and whether it lies within a bound.

The variance of the difference has two parts, a random-effects analysis of takes crossed with seeds:

- seeds: the variance of the difference over the J seeds, divided by J. It holds what a training does by chance, and
  also that each seed errs on these takes in its own way;
- takes: the variance of the seed-averaged difference over resamples of whole takes (both models and all seeds on the
  same resample; segments of a drawn take stay together) times P / (P - 1), less what the seeds' part holds already.

The square root of the sum is the standard error. Interval and p value are Student's t, with degrees of freedom between
P - 1 and J - 1: their harmonic mean, weighted by the two parts. Satterthwaite's formula (Biometrics Bulletin, 1946)
weighs by the squares of the parts. With three seeds the parts are guesses themselves: where the seeds' part happens to
come out small, its square says that seeds hardly count, and the intervals are too narrow. Where seeds do matter, three
are few, and t with nearly 2 degrees of freedom says so. With one seed nothing is known of others: the interval is about
these two trained models, not about training them again.

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


class Difference(NamedTuple):
    """The difference a - b of one metric, over J paired seeds and P takes."""

    value: float
    """Mean over seeds of the difference on all segments, in the metric's unit (fractions)."""
    of_seed: tuple[float, ...]
    """The difference of each pair of seeds."""
    standard_error: float | None
    """In the metric's unit; None below two takes, where nothing can be said."""
    degrees_of_freedom: float
    """Of Student's t: P - 1 with one seed, else between P - 1 and J - 1; 0 below two takes."""
    num_takes: int

    @property
    def num_seeds(self) -> int:
        """Pairs of trained models; with 1 the interval does not cover another training."""
        return len(self.of_seed)

    def interval(self, level: float = 0.95) -> Interval:
        """The two-sided interval of the given nominal coverage."""
        if self.standard_error is None:
            return Interval(self.value, None, None, level, self.num_takes)
        reach = self.standard_error * float(stats.t.ppf((1 + level) / 2, self.degrees_of_freedom))
        return Interval(self.value, self.value - reach, self.value + reach, level, self.num_takes)

    @property
    def p_value(self) -> float | None:
        """Two-sided p of "no difference": below 1 - level exactly where `interval(level)` excludes zero."""
        if self.standard_error is None:
            return None
        if self.value == 0:
            return 1.0
        if self.standard_error == 0:
            return 0.0
        return 2 * float(stats.t.sf(abs(self.value) / self.standard_error, self.degrees_of_freedom))

    def smallest_detectable(self, power: float = 0.8, level: float = 0.95) -> float | None:
        """The true difference that an `interval(level)` of such data would find not to be zero with this power."""
        if self.standard_error is None:
            return None
        return self.standard_error * float(stats.t.ppf([(1 + level) / 2, power], self.degrees_of_freedom).sum())

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
    error, degrees = _standard_error(value_J, resampled_RJ, num_takes) if num_takes > 1 else (None, 0.0)
    return Difference(float(value_J.mean()), tuple(value_J.tolist()), error, degrees, num_takes)


def _standard_error(
    value_J: NDArray[np.float64], resampled_RJ: NDArray[np.float64], num_takes: int
) -> tuple[float, float]:
    """The standard error of the mean over seeds, and its degrees of freedom."""
    num_seeds = len(value_J)
    fewer = num_takes / (num_takes - 1)  # resampled takes spread less than takes do
    of_takes = fewer * float(resampled_RJ.mean(axis=1).var())
    if num_seeds == 1:
        return math.sqrt(of_takes), float(num_takes - 1)
    of_seeds = float(value_J.var(ddof=1)) / num_seeds
    # What each seed errs on these takes in its own way is in both: once is enough.
    own_RJ = resampled_RJ - resampled_RJ.mean(axis=1, keepdims=True)
    of_both = fewer * float(own_RJ.var(axis=0).sum()) / (num_seeds - 1) / num_seeds
    variance = max(0.0, of_takes - of_both) + of_seeds
    if variance == 0:  # seeds that score the same by chance are no proof that takes do not matter
        variance = of_takes
    share = of_seeds / variance if variance else 0.0
    return math.sqrt(variance), 1 / ((1 - share) / (num_takes - 1) + share / (num_seeds - 1))
