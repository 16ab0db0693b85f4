"""Scores of a classifier over segments: top-k accuracy, class-mean recall, mean average precision, focal loss.

Inputs are logits [N, C] of N segments over C classes and labels [N]; outputs are fractions 0..1 (never percent).
Conventions follow the released V-JEPA 2 anticipation harness, whose own numbers are percent:

- A hit at k means that fewer than k classes come before the true one. Ties go to the lower class index, as argmax does,
  so a constant prediction earns what its fixed guess earns and no more. With k >= C every segment is a hit.
- `valid_classes` takes the other classes out of the ranking; a segment whose label is outside is a miss, not dropped.
- A class-mean is taken over the classes present in the labels; classes that never occur have no recall.
- Average precision is the step-wise sum over distinct scores, as in scikit-learn: tied segments enter together.

Wrong input (no segments, labels out of range, non-finite logits) is an error: its score would mean nothing.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from hwm.errors import DataError, RunError


class Metrics(NamedTuple):
    """The scores of one model on one set of segments; all shares are fractions 0..1."""

    top1: float
    """Share of segments whose first guess is the true class."""
    top5: float
    """Share of segments whose true class is among the first five guesses."""
    mean_average_precision: float
    """Macro mean over the classes present of the average precision of their softmax scores."""
    class_mean_recall_at_1: float
    """Mean over the classes present of the share of their segments hit at 1."""
    class_mean_recall_at_5: float
    """Mean over the classes present of the share of their segments hit at 5."""
    num_segments: int
    """Segments scored."""
    num_classes_present: int
    """Classes that occur among the labels: what the class-means are taken over."""


def score(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"]) -> Metrics:
    """All headline scores of one model.

    Args:
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.

    Raises:
        DataError: no segments, or labels that do not fit the logits.
        RunError: a logit is not finite.
    """
    return Metrics(
        top1=top_k_accuracy(logits_NC, labels_N, k=1),
        top5=top_k_accuracy(logits_NC, labels_N, k=5),
        mean_average_precision=mean_average_precision(logits_NC, labels_N),
        class_mean_recall_at_1=class_mean_recall(logits_NC, labels_N, k=1),
        class_mean_recall_at_5=class_mean_recall(logits_NC, labels_N, k=5),
        num_segments=int(labels_N.shape[0]),
        num_classes_present=int(labels_N.unique().numel()),
    )


def top_k_hits(
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    k: int,
    valid_classes: Int[Tensor, " v"] | None = None,
) -> Bool[Tensor, " n"]:
    """Whether each segment's true class is among its k highest logits (ties: lower index first).

    Args:
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.
        k: number of guesses, at least 1; may exceed C.
        valid_classes: indices of the only classes that may be guessed; None allows all.

    Raises:
        DataError: no segments, labels or valid classes out of range, k < 1.
        RunError: a logit is not finite.
    """
    check_scored(logits_NC, labels_N)
    if k < 1:
        raise DataError("top-k needs at least one guess", expected="k >= 1", found=f"k = {k}")
    num_classes = logits_NC.shape[1]
    allowed_C = torch.ones(num_classes, dtype=torch.bool, device=logits_NC.device)
    if valid_classes is not None:
        _check_range("valid classes", valid_classes, num_classes)
        allowed_C.zero_()
        allowed_C[valid_classes.long()] = True
    labels_N1 = labels_N.long()[:, None]
    true_N1 = logits_NC.gather(1, labels_N1)
    lower_C = torch.arange(num_classes, device=logits_NC.device)
    before_NC = (logits_NC > true_N1) | ((logits_NC == true_N1) & (lower_C < labels_N1))
    rank_N = (before_NC & allowed_C).sum(dim=1)
    return (rank_N < k) & allowed_C[labels_N.long()]


def top_k_accuracy(
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    k: int,
    valid_classes: Int[Tensor, " v"] | None = None,
) -> float:
    """Share 0..1 of segments hit at k; arguments and errors as in `top_k_hits`."""
    return top_k_hits(logits_NC, labels_N, k, valid_classes).double().mean().item()


def class_mean_recall(
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    k: int,
    valid_classes: Int[Tensor, " v"] | None = None,
) -> float:
    """Mean, over the classes present, of the share 0..1 of their segments hit at k; see `top_k_hits` for the rest."""
    hits_N = top_k_hits(logits_NC, labels_N, k, valid_classes)
    present, class_of_N = labels_N.unique(return_inverse=True)
    hits_C = torch.zeros(present.numel(), dtype=torch.float64, device=hits_N.device)
    hits_C.index_add_(0, class_of_N, hits_N.double())
    return (hits_C / class_of_N.bincount(minlength=present.numel())).mean().item()


def per_class_recall(
    logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " c"], Int[Tensor, " c"]]:
    """Recall 0..1 of every class (NaN where the class never occurs) and its number of segments.

    Arguments and errors as in `top_k_hits`.
    """
    hits_N = top_k_hits(logits_NC, labels_N, k)
    num_classes = logits_NC.shape[1]
    support_C = labels_N.long().bincount(minlength=num_classes)
    hits_C = torch.zeros(num_classes, dtype=torch.float64, device=hits_N.device)
    hits_C.index_add_(0, labels_N.long(), hits_N.double())
    return hits_C / support_C, support_C


def mean_average_precision(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"]) -> float:
    """Macro mean, over the classes present, of the average precision of the softmax scores (0..1).

    For one class the segments are ordered by its probability; precision is summed over the steps of recall, one step
    for each distinct probability, with no interpolation.

    Args:
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.

    Raises:
        DataError: no segments, or labels that do not fit the logits.
        RunError: a logit is not finite.
    """
    check_scored(logits_NC, labels_N)
    # float32 on purpose, as upstream: in float64, logits that differ in the last bit would no longer tie.
    probabilities_NC = logits_NC.float().softmax(dim=1)
    present = labels_N.unique()
    precisions = [_average_precision(probabilities_NC[:, c], labels_N == c) for c in present.tolist()]
    return sum(precisions) / len(precisions)


def sigmoid_focal_loss_sum(
    logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss of C independent yes/no questions a segment, summed over segments and classes.

    Args:
        logits_NC: scores over C classes, one row a segment; gradients flow to them.
        labels_N: true class of each segment, 0..C-1: its target is 1, all others 0.
        alpha: weight of the true class; the others weigh 1 - alpha.
        gamma: how strongly answers that are already right are played down; 0 gives weighted cross-entropy.
    """
    return _focal_terms(logits_NC, labels_N, alpha, gamma).sum()


def _focal_terms(logits_NC: Tensor, labels_N: Tensor, alpha: float, gamma: float) -> Tensor:
    # float32 also under autocast: (1 - p)^gamma underflows in half precision for confident answers.
    logits_NC = logits_NC.float()
    target_NC = one_hot(labels_N.long(), logits_NC.shape[1]).to(logits_NC.dtype)
    cross_entropy_NC = binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none")
    sigmoid_NC = logits_NC.sigmoid()
    doubt_NC = target_NC * (1 - sigmoid_NC) + (1 - target_NC) * sigmoid_NC
    weight_NC = target_NC * alpha + (1 - target_NC) * (1 - alpha)
    return weight_NC * doubt_NC**gamma * cross_entropy_NC


def _average_precision(score_N: Tensor, is_true_N: Tensor) -> float:
    order_N = score_N.argsort(descending=True)
    score_N, is_true_N = score_N[order_N], is_true_N[order_N].double()
    last_of_tie_N = torch.ones_like(score_N, dtype=torch.bool)
    last_of_tie_N[:-1] = score_N[:-1] != score_N[1:]
    found = is_true_N.cumsum(0)[last_of_tie_N]
    ranks = torch.arange(1, score_N.numel() + 1, device=score_N.device)[last_of_tie_N]
    new_recall = found.diff(prepend=found.new_zeros(1)) / is_true_N.sum()
    return (new_recall * found / ranks).sum().item()


def check_scored(logits_NC: Tensor, labels_N: Tensor) -> None:
    """What every score asks of logits [N, C] and labels [N].

    Raises:
        DataError: no segments, or labels that do not fit the logits.
        RunError: a logit is not finite.
    """
    num_segments, num_classes = logits_NC.shape
    if labels_N.shape[0] != num_segments:
        raise DataError(
            "logits and labels are not of the same segments",
            expected=f"{num_segments} labels, one a row of logits",
            found=f"{labels_N.shape[0]} labels",
        )
    if num_segments == 0:
        raise DataError(
            "there is nothing to score",
            expected="at least one segment",
            found="0 segments",
            fix="see the table of excluded segments: it names the reason for each",
        )
    _check_range("labels", labels_N, num_classes)
    bad_rows = (~logits_NC.isfinite()).any(dim=1).nonzero()[:, 0]
    if bad_rows.numel():
        raise RunError(
            "the logits hold values that are not finite",
            expected="finite numbers (to rule classes out, pass valid_classes)",
            found=f"{bad_rows.numel()} of {num_segments} rows, the first is row {int(bad_rows[0])}",
            fix="lower the learning rate of this probe, or train in float32",
        )


def _check_range(what: str, classes: Tensor, num_classes: int) -> None:
    if classes.numel() == 0:
        raise DataError(f"the list of {what} is empty", expected="at least one class index", found="none")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"the {what} do not fit the logits",
            expected=f"class indices 0..{num_classes - 1}",
            found=f"{low}..{high}",
            fix="score with the class table that the probe was trained with",
        )
