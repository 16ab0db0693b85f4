"""Further tests of a paired difference, and Holm's correction for a family of them.

In: a per-segment difference of two models (for example of hits, averaged over seeds) and the take of each segment.
Out: p values. Takes are the unit of both tests; neither knows of seeds, so that with several seeds they say whether
*these* models differ on other takes. The answer that includes seeds is `differences.Difference`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hwm.errors import DataError
from hwm.evaluation.statistics import number_takes


class SignTest(NamedTuple):
    """On how many takes each model is ahead."""

    num_ahead: int
    num_behind: int
    num_equal: int
    """Takes without a difference; not part of the test."""
    p_value: float
    """Two-sided, exact; 1 where every take is equal."""


def sign_test(values_N: NDArray[np.floating] | Sequence[float], takes: Sequence[str]) -> SignTest:
    """Exact binomial test of "ahead on as many takes as behind".

    A take counts by the sign of the sum over its segments. Fewer than six unequal takes can never reach p < .05.

    Raises:
        DataError: no segments, or not one take a segment.
    """
    # Sums of averages over seeds: a tie of 1/3 + 1/3 - 2/3 must not be decided by rounding.
    signs_P = np.sign(_totals(values_N, takes).round(9))
    ahead, behind = int((signs_P > 0).sum()), int((signs_P < 0).sum())
    p_value = float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0
    return SignTest(ahead, behind, len(signs_P) - ahead - behind, p_value)


def permutation_test(
    values_N: NDArray[np.floating] | Sequence[float],
    takes: Sequence[str],
    rng: np.random.Generator,
    num_resamples: int = 9999,
) -> float:
    """Two-sided p of the mean difference when the two models are swapped take by take, at random.

    Exact for few takes (all 2^P swaps where there are no more than `num_resamples` of them).

    Raises:
        DataError: no segments, or not one take a segment.
    """
    totals_P = _totals(values_N, takes)
    if len(totals_P) < 2:
        return 1.0
    result = stats.permutation_test(
        (totals_P,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=num_resamples, rng=rng,
    )  # fmt: skip
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics, 1979), in the order given.

    The smallest of n is multiplied by n, the next by n - 1, and so on; each is at least the one before it and at most
    1. An adjusted value below α is significant, with a chance below α of even one false claim in the family.

    Raises:
        DataError: a p value is not in 0..1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("p values are probabilities", expected="numbers 0..1", found=str(list(p_values)))
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return tuple(adjusted.tolist())


def _totals(values_N: NDArray[np.floating] | Sequence[float], takes: Sequence[str]) -> NDArray[np.float64]:
    values_N = np.asarray(values_N, dtype=np.float64)
    take_of_N, num_takes = number_takes(takes, num_segments=len(values_N))
    return np.bincount(take_of_N, weights=values_N, minlength=num_takes).astype(np.float64)
