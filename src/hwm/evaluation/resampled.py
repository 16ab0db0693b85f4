"""A metric on thousands of resamples of the takes at once: the same numbers as `metrics`, without a loop.

In: logits [N, C] and labels [N] of N segments, the take 0..P-1 of each segment, and how often each take is drawn in
each of R resamples [R, P]. Out: the metric on each resample [R]. Every metric here is a function of counts, and a drawn
take only adds its own counts, so that R resamples are a matrix product of draws and counts by take.
"""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.metrics import check_scored, top_k_hits

MetricName = Literal[
    "top1", "top5", "mean_average_precision", "class_mean_recall_at_1", "class_mean_recall_at_5"
]  # fmt: skip
METRICS: tuple[MetricName, ...] = get_args(MetricName)
"""Names as in `metrics.Metrics`."""
_CHUNK = 256
"""Resamples at a time: bounds the memory for many segments and classes."""

_Counter = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def resampled_metric(
    metric: MetricName,
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    take_of_N: Int[np.ndarray, " n"],
    draws_RP: Num[np.ndarray, "r p"],
) -> Float[np.ndarray, " r"]:
    """The metric on each resample; a row of ones in `draws_RP` gives the metric of all segments.

    Args:
        metric: one of `METRICS`; classes that are absent from a resample do not enter its class mean.
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.
        take_of_N: number 0..P-1 of each segment's take; every take has a segment.
        draws_RP: how often each take is drawn; no row is all zero.

    Raises:
        DataError: no segments, labels out of range, takes that are not 0..P-1, an unknown metric, an empty resample.
        RunError: a logit is not finite.
    """
    check_scored(logits_NC, labels_N)
    num_takes = draws_RP.shape[1]
    if (np.bincount(take_of_N, minlength=num_takes) == 0).any() or take_of_N.max() >= num_takes:
        raise DataError("takes and draws do not fit", expected=f"segments in each of the takes 0..{num_takes - 1}")
    if (draws_RP.sum(axis=1) <= 0).any():
        raise DataError("a resample holds no take", expected="at least one take in each row of draws")
    draws_RP = draws_RP.astype(np.float64)
    on_draws = _counter(metric, logits_NC.cpu(), labels_N.cpu().long(), take_of_N, num_takes)
    chunks = [on_draws(draws_RP[start : start + _CHUNK]) for start in range(0, len(draws_RP), _CHUNK)]
    return np.concatenate(chunks).astype(np.float64)


def _counter(
    metric: str, logits_NC: Tensor, labels_N: Tensor, take_of_N: NDArray[np.int64], num_takes: int
) -> _Counter:
    if metric == "mean_average_precision":
        return _average_precision(logits_NC, labels_N, take_of_N, num_takes)
    if metric in ("top1", "top5"):
        hits_N = top_k_hits(logits_NC, labels_N, int(metric[3:])).numpy()
        return _class_mean(hits_N, np.zeros(len(hits_N), dtype=np.int64), take_of_N, num_takes)
    if metric in ("class_mean_recall_at_1", "class_mean_recall_at_5"):
        hits_N = top_k_hits(logits_NC, labels_N, int(metric[-1])).numpy()
        return _class_mean(hits_N, labels_N.numpy(), take_of_N, num_takes)
    raise DataError("this metric cannot be resampled", expected=", ".join(METRICS), found=metric)


def _class_mean(
    hits_N: NDArray[np.bool_], labels_N: NDArray[np.int64], take_of_N: NDArray[np.int64], num_takes: int
) -> _Counter:
    """Mean recall over the classes drawn; with one class for all, the share of hits."""
    present, class_of_N = np.unique(labels_N, return_inverse=True)
    cell_N = take_of_N * len(present) + class_of_N
    cells = num_takes * len(present)
    support_PC = np.bincount(cell_N, minlength=cells).reshape(num_takes, -1).astype(np.float64)
    hits_PC = np.bincount(cell_N, weights=hits_N.astype(np.float64), minlength=cells).reshape(num_takes, -1)

    def on_draws(draws_RP: NDArray[np.float64]) -> NDArray[np.float64]:
        support_RC = draws_RP @ support_PC
        recall_RC = (draws_RP @ hits_PC) / np.maximum(support_RC, 1)
        return recall_RC.sum(axis=1) / (support_RC > 0).sum(axis=1)

    return on_draws


def _average_precision(logits_NC: Tensor, labels_N: Tensor, take_of_N: NDArray[np.int64], num_takes: int) -> _Counter:
    """Each true segment i of a class adds its precision: true ones at or above its score, among all at or above.

    This is the step-wise sum over distinct scores: the true segments of a tie share one precision.
    """
    # float32, as in `mean_average_precision`: which segments tie must not depend on who asks.
    score_NC = logits_NC.float().softmax(dim=1).numpy()
    above_PN = np.empty((num_takes, len(take_of_N)), dtype=np.float32)
    true_above_PN = np.empty_like(above_PN)
    columns, first_of_class = [], []
    start = 0
    for label, rows in _rows_of_class(labels_N.numpy()):
        score_N = score_NC[:, label]
        rows = rows[np.argsort(score_N[rows], kind="stable")]
        chosen = slice(start, start + len(rows))
        above_PN[:, chosen] = _at_or_above(score_N[rows], score_N, take_of_N, num_takes)
        true_above_PN[:, chosen] = _at_or_above(score_N[rows], score_N[rows], take_of_N[rows], num_takes)
        columns.append(rows)
        first_of_class.append(start)
        start += len(rows)
    take_of_column = take_of_N[np.concatenate(columns)]
    support_PC = np.stack([np.bincount(take_of_N[rows], minlength=num_takes) for rows in columns], axis=1)

    def on_draws(draws_RP: NDArray[np.float64]) -> NDArray[np.float64]:
        few_RP = draws_RP.astype(np.float32)  # counts are exact below 2^24
        drawn_RN = few_RP[:, take_of_column]
        precision_RN = (few_RP @ true_above_PN) / np.maximum(few_RP @ above_PN, 1)
        support_RC = draws_RP @ support_PC
        found_RC = np.add.reduceat(drawn_RN * precision_RN, first_of_class, axis=1, dtype=np.float64)
        return (found_RC / np.maximum(support_RC, 1)).sum(axis=1) / (support_RC > 0).sum(axis=1)

    return on_draws


def _at_or_above(
    cut_K: NDArray[np.float32], score_N: NDArray[np.float32], take_of_N: NDArray[np.int64], num_takes: int
) -> NDArray[np.int64]:
    """How many segments of each take score at or above each of K ascending cuts, [P, K]."""
    cuts_reached_N = np.searchsorted(cut_K, score_N, side="right")
    width = len(cut_K) + 1
    counts = np.bincount(take_of_N * width + cuts_reached_N, minlength=num_takes * width)
    return counts.reshape(num_takes, width)[:, :0:-1].cumsum(axis=1)[:, ::-1]


def _rows_of_class(labels_N: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for label in np.unique(labels_N):
        yield int(label), np.flatnonzero(labels_N == label)
