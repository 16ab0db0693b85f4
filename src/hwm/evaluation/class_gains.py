"""The gain of one model over another by class, with the number of examples behind it.

In: logits and labels of the same segments. Out: one `ClassGain` a class. A class-mean weighs a class of one segment
like one of a hundred: the support belongs beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.differences import Difference, difference_of
from hwm.evaluation.metrics import top_k_hits
from hwm.evaluation.statistics import draw_takes, number_takes


class ClassGain(NamedTuple):
    """One class: its recall by both models and the difference."""

    label: int
    support: int
    """Segments of this class."""
    recall_a: float
    recall_b: float
    difference: Difference
    """a - b, over the takes that hold the class; no adjustment for the number of classes."""


def class_gains(
    logits_a: Sequence[Tensor],
    logits_b: Sequence[Tensor],
    labels_N: Int[Tensor, " n"],
    takes: Sequence[str],
    k: int,
    rng: np.random.Generator,
    num_resamples: int = 2000,
) -> tuple[ClassGain, ...]:
    """The gain in recall at k of every class present, most frequent first.

    A class is judged on the takes that hold it, which are resampled as a whole; a class of one take has no interval.

    Args:
        logits_a: logits [N, C] of model a, one tensor a seed.
        logits_b: logits [N, C] of model b, the same seeds in the same order.
        labels_N: true class 0..C-1 of each segment.
        takes: the take of each segment.
        k: guesses allowed.
        rng: source of the resamples.
        num_resamples: resamples drawn for each class.

    Raises:
        DataError: not the same seeds or segments, no segments, labels out of range.
        RunError: a logit is not finite.
    """
    if len(logits_a) != len(logits_b) or not logits_a:
        raise DataError(
            "a paired comparison needs the same seeds of both models", found=f"{len(logits_a)}, {len(logits_b)}"
        )
    number_takes(takes, num_segments=len(labels_N))
    hits = [
        torch.stack([top_k_hits(logits_NC, labels_N, k) for logits_NC in logits], dim=1).double().numpy()
        for logits in (logits_a, logits_b)
    ]
    support_C = labels_N.long().bincount()
    gains = []
    for label in support_C.argsort(descending=True, stable=True).tolist():
        rows = np.flatnonzero((labels_N == label).numpy())
        if not len(rows):
            break
        a_SJ, b_SJ = (hits_NJ[rows] for hits_NJ in hits)
        difference = _difference(a_SJ - b_SJ, [takes[row] for row in rows.tolist()], rng, num_resamples)
        gains.append(ClassGain(label, len(rows), float(a_SJ.mean()), float(b_SJ.mean()), difference))
    return tuple(gains)


def _difference(gain_SJ: np.ndarray, takes: Sequence[str], rng: np.random.Generator, num_resamples: int) -> Difference:
    take_of_S, num_takes = number_takes(takes, num_segments=len(gain_SJ))
    draws_RP = draw_takes(num_takes, num_resamples, rng).astype(np.float64)
    total_PJ = np.zeros((num_takes, gain_SJ.shape[1]))
    np.add.at(total_PJ, take_of_S, gain_SJ)
    size_P = np.bincount(take_of_S, minlength=num_takes)
    return difference_of(gain_SJ.mean(axis=0), draws_RP @ total_PJ / (draws_RP @ size_P)[:, None], num_takes)
