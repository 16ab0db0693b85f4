"""Predictions that look at no video: what a key-step anticipator must beat.

Inputs are class labels of training segments; outputs are logits [S, C] (log probabilities) that go through the same
scoring as a model's. Everything is counted on training segments only.

- Majority: the overall frequency of each step, the same for every segment.
- Previous step: a first-order Markov chain, P(step | the step before it in the take). It reads the *true* previous
  step, which a model that sees only pixels must infer: in the literature it is a strong baseline.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hwm.errors import DataError


def majority_logits(train_labels: Sequence[int], num_classes: int, num_segments: int) -> Tensor:
    """Log frequency of each class in training, repeated for every segment.

    Add-one smoothing: a class that never occurs in training keeps a small probability.

    Args:
        train_labels: class 0..C-1 of each training segment.
        num_classes: C.
        num_segments: S, rows wanted.

    Returns:
        float32 [S, C]; each row is a normalised log distribution.

    Raises:
        DataError: no training segment, or a label out of range.
    """
    frequency_C = _frequency(train_labels, num_classes)
    return torch.from_numpy(np.log(frequency_C)).float().repeat(num_segments, 1)


def previous_step_logits(
    train_pairs: Sequence[tuple[int | None, int]], val_previous: Sequence[int | None], num_classes: int
) -> Tensor:
    """Log probability of each class given the class of the segment before it in the take.

    One row of counts for each previous class and one more for "no previous step" (the first segment of a take).
    Add-one smoothing: each row gets one more observation, spread over the classes by their overall frequency. So a
    previous step that training never saw falls back on the majority prediction, and equal counts are ordered by it.

    Args:
        train_pairs: (previous class or None, class) of each training segment.
        val_previous: previous class or None of each of the S segments to predict.
        num_classes: C.

    Returns:
        float32 [S, C]; each row is a normalised log distribution.

    Raises:
        DataError: no training segment, or a class out of range.
    """
    frequency_C = _frequency([label for _, label in train_pairs], num_classes)
    _check_range([p for p, _ in train_pairs if p is not None], num_classes, "previous step in training")
    _check_range([p for p in val_previous if p is not None], num_classes, "previous step to predict from")
    no_previous = num_classes
    counts_PC = np.zeros((num_classes + 1, num_classes))
    for previous, label in train_pairs:
        counts_PC[no_previous if previous is None else previous, label] += 1
    counts_PC += frequency_C
    log_PC = np.log(counts_PC / counts_PC.sum(axis=1, keepdims=True))
    rows = np.array([no_previous if previous is None else previous for previous in val_previous], dtype=np.int64)
    return torch.from_numpy(log_PC[rows]).float()


def _frequency(labels: Sequence[int], num_classes: int) -> np.ndarray:
    if len(labels) == 0:
        raise DataError("a baseline needs training segments", expected="at least one", found="none")
    _check_range(labels, num_classes, "training label")
    counts_C = np.bincount(np.asarray(labels, dtype=np.int64), minlength=num_classes) + 1.0
    return counts_C / counts_C.sum()


def _check_range(classes: Sequence[int], num_classes: int, what: str) -> None:
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong:
        raise DataError(
            f"a {what} is not in the class table", expected=f"an index 0..{num_classes - 1}", found=str(wrong[0])
        )
