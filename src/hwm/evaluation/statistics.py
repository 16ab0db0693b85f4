"""How sure a score is: 95 % intervals of one metric, or of the paired difference of two models, by resampling takes.

Inputs are per-segment values, or any statistic of segment rows, and the take of each segment; outputs are `Interval`s.

Segments of one take share person, kitchen and recipe, so that takes are the independent unit. A resample draws as many
takes as there are, with replacement, and keeps each drawn take's segments together; two models are always compared on
the same resample. The bounds are percentiles of the resampled values, widened for few takes so that the interval is as
wide as Student's t asks for (the "expanded percentile" interval of Hesterberg, The American Statistician, 2015).

Segments are not drawn a second time within a drawn take: their noise is in the take's total already, and doing both
counts it twice. On simulated data (6 to 30 takes of about 8 segments) 95 % intervals covered the truth in 85 to 100 %
of the trials with both, depending on how alike a take's segments are, and in 90 to 95 % as it is done here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hwm.errors import DataError, RunError

RESAMPLING_SEED = 20_250_612
"""Seed of the resamples of reports: what is compared on one page is compared on the same resamples."""
NUM_RESAMPLES = 2000

Statistic = Callable[[NDArray[np.int64]], float]
"""A score of the segments in these rows; a row may occur several times."""


class Interval(NamedTuple):
    """A value and how far off it may be."""

    value: float
    """The statistic of all segments."""
    low: float | None
    """Lower bound; None where there are fewer than two takes and nothing can be said."""
    high: float | None
    """Upper bound; None where there are fewer than two takes."""
    level: float
    """Nominal coverage, e.g. 0.95."""
    num_takes: int
    """Takes resampled: the number of independent observations."""

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the bounds (False where there are none)."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def within(self, lowest: float, highest: float) -> "Interval":
        """The bounds cut to what the statistic can be; what is cut off holds no possible value."""
        low, high = (None if bound is None else min(highest, max(lowest, bound)) for bound in (self.low, self.high))
        return self._replace(low=low, high=high)


def mean_interval(
    values_S: NDArray[np.floating] | Sequence[float],
    takes: Sequence[str],
    rng: np.random.Generator,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of the mean of a per-segment value, e.g. of hits (accuracy) or of a difference of hits of two models.

    The same as `statistic_interval` of the mean, but in one matrix product.

    Args:
        values_S: one finite number a segment.
        takes: the take of each segment.
        rng: source of the resamples; the same state gives the same interval.
        num_resamples: resamples drawn.
        level: nominal coverage.

    Raises:
        DataError: no segments, or not one take a segment.
        RunError: a value is not finite.
    """
    values_S = np.asarray(values_S, dtype=np.float64)
    take_of_S, num_takes = number_takes(takes, num_segments=len(values_S))
    if not np.isfinite(values_S).all():
        raise RunError(
            "an interval needs finite values", found=f"row {np.flatnonzero(~np.isfinite(values_S))[0]} is not"
        )
    total_P = np.bincount(take_of_S, weights=values_S, minlength=num_takes)
    size_P = np.bincount(take_of_S, minlength=num_takes)
    draws_RP = draw_takes(num_takes, num_resamples, rng)
    resampled_R = (draws_RP @ total_P) / (draws_RP @ size_P)
    return _interval(float(values_S.mean()), resampled_R, num_takes, level)


def statistic_interval(
    statistic: Statistic,
    takes: Sequence[str],
    rng: np.random.Generator,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of any score of a set of segments, e.g. mean average precision.

    Args:
        statistic: maps segment rows [S'] (int64, with repeats) to the score of these segments.
        takes: the take of each of the S segments.
        rng: source of the resamples; the same state gives the same interval.
        num_resamples: resamples drawn: the statistic is computed that many times.
        level: nominal coverage.

    Raises:
        DataError: no segments.
        RunError: the statistic is not finite on a resample.
    """
    take_of_S, num_takes = number_takes(takes, num_segments=len(takes))
    rows_of_take = [np.flatnonzero(take_of_S == take) for take in range(num_takes)]
    value = float(statistic(np.arange(len(takes))))
    resampled_R = np.empty(num_resamples)
    for resample, draws_P in enumerate(draw_takes(num_takes, num_resamples, rng)):
        rows = [np.tile(rows_of_take[take], count) for take, count in enumerate(draws_P) if count]
        resampled_R[resample] = statistic(np.concatenate(rows))
    if not (np.isfinite(value) and np.isfinite(resampled_R).all()):
        raise RunError(
            "the statistic is not finite on some resample of the takes",
            expected="a number for any non-empty set of segments",
            found=f"{int((~np.isfinite(resampled_R)).sum())} of {num_resamples} resamples are not finite",
        )
    return _interval(value, resampled_R, num_takes, level)


def number_takes(takes: Sequence[str], num_segments: int) -> tuple[NDArray[np.int64], int]:
    """The number 0..P-1 of each segment's take, in alphabetical order, and P.

    Raises:
        DataError: no segments, or not one take a segment.
    """
    if num_segments == 0:
        raise DataError("an interval needs segments", expected="at least one", found="none")
    if len(takes) != num_segments:
        raise DataError(
            "values and takes are not of the same segments",
            expected=f"{num_segments} takes, one a segment",
            found=f"{len(takes)} takes",
        )
    names, take_of_S = np.unique(np.asarray(takes, dtype=object).astype(str), return_inverse=True)
    return take_of_S.astype(np.int64), len(names)


def draw_takes(num_takes: int, num_resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each take is drawn in each resample, [num_resamples, num_takes]."""
    return rng.multinomial(num_takes, np.full(num_takes, 1 / num_takes), size=num_resamples)


def _interval(value: float, resampled_R: NDArray[np.float64], num_takes: int, level: float) -> Interval:
    if num_takes < 2:
        return Interval(value, None, None, level, num_takes)
    # A plain percentile interval is too narrow by sqrt((n-1)/n) and by normal against t quantiles.
    t_quantile = stats.t.ppf((1 - level) / 2, num_takes - 1)
    tail = stats.norm.cdf(np.sqrt(num_takes / (num_takes - 1)) * t_quantile)
    low, high = np.quantile(resampled_R, [tail, 1 - tail])
    return Interval(value, float(low), float(high), level, num_takes)
