"""Calibration on thousands of resamples of the takes at once: the same numbers as `calibration`, without a loop.

In: logits [N, C] and labels [N], the take of each segment, how often each take is drawn in each resample [R, P] (as for
`resampled`). Out: the score on each resample [R]. A segment of a take that is drawn twice counts twice.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import NDArray
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.calibration import NUM_BINS, bin_of_equal_width, confidence_and_hits, squared_distance

CalibrationName = Literal["ece", "brier", "surest_half"]
CALIBRATIONS: tuple[CalibrationName, ...] = get_args(CalibrationName)
"""Expected calibration error over bins of equal width; Brier score; Top-1 of the surest half of the segments."""
COVERAGES = tuple(round(0.05 * step, 2) for step in range(1, 21))
"""Shares of the segments that are answered, for a curve of selective accuracy."""
_WEIGHTS_AT_ONCE = 1 << 18
"""Weights of segments in resamples at a time, 2 MB: larger arrays come from the system page by page, each anew."""


def resampled_calibration(
    name: CalibrationName,
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    take_of_N: Int[np.ndarray, " n"],
    draws_RP: Num[np.ndarray, "r p"],
    asked_apart: bool = False,
) -> Float[np.ndarray, " r"]:
    """A calibration score on each resample; a row of ones in `draws_RP` gives that of all segments.

    Args:
        name: one of `CALIBRATIONS`.
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.
        take_of_N: number 0..P-1 of each segment's take.
        draws_RP: how often each take is drawn; no row is all zero.
        asked_apart: whether the logits are read as sigmoids, see `calibration.probabilities`.

    Raises:
        DataError: no segments, or labels out of range.
        RunError: a logit is not finite.
    """
    if name == "surest_half":
        return resampled_selective_accuracy(logits_NC, labels_N, take_of_N, draws_RP, (0.5,), asked_apart)[:, 0]
    draws_RP = draws_RP.astype(np.float64)
    total_R = draws_RP @ np.bincount(take_of_N, minlength=draws_RP.shape[1])
    if name == "brier":
        distance_N = squared_distance(logits_NC, labels_N, asked_apart)
        return draws_RP @ np.bincount(take_of_N, weights=distance_N, minlength=draws_RP.shape[1]) / total_R
    confidence_N, right_N = confidence_and_hits(logits_NC, labels_N, asked_apart)
    gap_PB = _by_take_and_bin(right_N - confidence_N, confidence_N, take_of_N, draws_RP.shape[1])
    return np.abs(draws_RP @ gap_PB).sum(axis=1) / total_R


def resampled_selective_accuracy(
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    take_of_N: Int[np.ndarray, " n"],
    draws_RP: Num[np.ndarray, "r p"],
    coverages: Sequence[float],
    asked_apart: bool = False,
) -> Float[np.ndarray, "r k"]:
    """Top-1 on each resample when (at least) a share of its segments is answered, the most confident first.

    Where a tie is cut, the mean over all ways to cut it, as in `RiskCoverage`. Arguments and errors as above.

    Args:
        logits_NC: as above.
        labels_N: as above.
        take_of_N: as above.
        draws_RP: as above.
        coverages: K shares in (0, 1].
        asked_apart: as above.

    Raises:
        DataError: a coverage is not in (0, 1].
    """
    if not coverages or min(coverages) <= 0 or max(coverages) > 1:
        raise DataError("a coverage is a share of the segments", expected="in (0, 1]", found=str(coverages))
    confidence_N, right_N = confidence_and_hits(logits_NC, labels_N, asked_apart)
    order_N = np.argsort(-confidence_N, kind="stable")
    ordered_N = confidence_N[order_N]
    first_of_tie = np.flatnonzero(np.diff(ordered_N, prepend=np.inf))
    chunks = []
    rows = max(1, _WEIGHTS_AT_ONCE // len(order_N))
    for start in range(0, len(draws_RP), rows):
        weight_RN = draws_RP[start : start + rows][:, take_of_N[order_N]].astype(np.float64)
        size_RG = np.add.reduceat(weight_RN, first_of_tie, axis=1)
        hits_RG = np.add.reduceat(weight_RN * right_N[order_N], first_of_tie, axis=1)
        chunks.append(_answered(size_RG, hits_RG, coverages))
    return np.concatenate(chunks)


def resampled_reliability(
    confidence_N: Float[np.ndarray, " n"],
    right_N: Bool[np.ndarray, " n"],
    take_of_N: Int[np.ndarray, " n"],
    draws_RP: Num[np.ndarray, "r p"],
) -> Float[np.ndarray, "r b"]:
    """The share right in each of `NUM_BINS` bins of equal width on each resample; NaN where the bin is empty in it.

    The first two arguments are what `calibration.confidence_and_hits` returns.
    """
    draws_RP = draws_RP.astype(np.float64)
    num_takes = draws_RP.shape[1]
    size_RB = draws_RP @ _by_take_and_bin(np.ones(len(right_N)), confidence_N, take_of_N, num_takes)
    hits_RB = draws_RP @ _by_take_and_bin(right_N.astype(np.float64), confidence_N, take_of_N, num_takes)
    return np.where(size_RB > 0, hits_RB / np.maximum(size_RB, 1), np.nan)


def _answered(
    size_RG: NDArray[np.float64], hits_RG: NDArray[np.float64], coverages: Sequence[float]
) -> NDArray[np.float64]:
    """Share right among the first ⌈c · total⌉ segments of each row, groups of equal confidence in order."""
    size_until_RG, hits_until_RG = size_RG.cumsum(axis=1), hits_RG.cumsum(axis=1)
    rows = np.arange(len(size_RG))
    shares = []
    for coverage in coverages:
        count_R = np.ceil(coverage * size_until_RG[:, -1] - 1e-9)
        group_R = (size_until_RG < count_R[:, None]).sum(axis=1)
        size_R, hits_R = size_RG[rows, group_R], hits_RG[rows, group_R]
        left_R = count_R - (size_until_RG[rows, group_R] - size_R)
        hits_before_R = hits_until_RG[rows, group_R] - hits_R
        shares.append((hits_before_R + left_R * hits_R / size_R) / count_R)
    return np.stack(shares, axis=1)


def _by_take_and_bin(
    values_N: NDArray[np.float64], confidence_N: NDArray[np.float64], take_of_N: NDArray[np.int64], num_takes: int
) -> NDArray[np.float64]:
    """Sums [P, B] of a value of each segment, by take and bin of confidence."""
    cell_N = take_of_N * NUM_BINS + bin_of_equal_width(confidence_N, NUM_BINS)
    sums = np.bincount(cell_N, weights=values_N, minlength=num_takes * NUM_BINS).astype(np.float64)
    return sums.reshape(num_takes, NUM_BINS)
