"""Whether a classifier's probabilities mean what they say: reliability, ECE, Brier, likelihood, risk and coverage.

In: logits [N, C] and labels [N]. Out: plain numbers and curves. Probabilities are the softmax of the logits, or, where
a loss asked the classes apart (sigmoid focal loss), each class's own sigmoid; confidence is the highest of them, and a
segment is right as in Top-1 (ties: lower class index). Nothing forces a probe to be calibrated: measure it first.

Sources: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017) for the expected calibration error (ECE)
and temperature scaling; Brier, Monthly Weather Review, 1950; Geifman and El-Yaniv, "Selective Classification for Deep
Neural Networks" (NeurIPS 2017) for risk and coverage.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from hwm.errors import DataError, RunError
from hwm.evaluation.metrics import check_scored, top_k_hits

NUM_BINS = 15


class Reliability(NamedTuple):
    """Non-empty bins of segments by confidence, ascending."""

    confidence: tuple[float, ...]
    """Mean confidence of each bin."""
    accuracy: tuple[float, ...]
    """Share right of each bin."""
    num_segments: tuple[int, ...]
    """Segments in each bin."""

    @property
    def expected_calibration_error(self) -> float:
        """Mean over segments of |accuracy - confidence| of their bin, 0..1."""
        gaps = [abs(a - c) * n for c, a, n in zip(self.confidence, self.accuracy, self.num_segments, strict=True)]
        return sum(gaps) / sum(self.num_segments)


class RiskCoverage(NamedTuple):
    """Answering only the most confident segments: for n = 1..N answers, the share answered and the share wrong."""

    coverage: NDArray[np.float64]
    """n / N."""
    risk: NDArray[np.float64]
    """Share wrong among the n most confident; where a tie is cut, the mean over all ways to cut it."""

    @property
    def area(self) -> float:
        """Area under the curve (AURC): the mean risk over all coverages; lower is better."""
        return float(self.risk.mean())

    def selective_accuracy(self, coverage: float) -> float:
        """Share right when (at least) this share of the segments is answered.

        Raises:
            DataError: the coverage is not in (0, 1].
        """
        if not 0 < coverage <= 1:
            raise DataError("coverage is a share of the segments", expected="above 0, at most 1", found=f"{coverage}")
        return 1 - float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])


class Calibration(NamedTuple):
    """The calibration scores of one model on one set of segments; lower is better."""

    ece_equal_width: float
    ece_equal_mass: float
    brier: float
    """0..2."""
    negative_log_likelihood: float
    """Nats a segment; ln C is what a uniform guess earns."""
    risk_coverage_area: float
    num_segments: int


def calibration(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], num_bins: int = NUM_BINS) -> Calibration:
    """All calibration scores; arguments and errors as in `reliability_equal_width`."""
    return Calibration(
        ece_equal_width=reliability_equal_width(logits_NC, labels_N, num_bins).expected_calibration_error,
        ece_equal_mass=reliability_equal_mass(logits_NC, labels_N, num_bins).expected_calibration_error,
        brier=brier_score(logits_NC, labels_N),
        negative_log_likelihood=negative_log_likelihood(logits_NC, labels_N),
        risk_coverage_area=risk_coverage(logits_NC, labels_N).area,
        num_segments=len(labels_N),
    )


def reliability_equal_width(
    logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], num_bins: int = NUM_BINS
) -> Reliability:
    """Confidence against accuracy in bins of equal width: bin i is [i/B, (i+1)/B), and 1 belongs to the last.

    Args:
        logits_NC: scores over C classes, one row a segment.
        labels_N: true class of each segment, 0..C-1.
        num_bins: B, at least 1.

    Raises:
        DataError: no segments, labels out of range, no bins.
        RunError: a logit is not finite.
    """
    confidence_N, right_N = confidence_and_hits(logits_NC, labels_N)
    return reliability_of(confidence_N, right_N, num_bins)


def reliability_of(
    confidence_N: Float[np.ndarray, " n"], right_N: Bool[np.ndarray, " n"], num_bins: int = NUM_BINS
) -> Reliability:
    """As `reliability_equal_width`, from what `confidence_and_hits` returns."""
    return _reliability(confidence_N, right_N, bin_of_equal_width(confidence_N, num_bins))


def reliability_equal_mass(
    logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], num_bins: int = NUM_BINS
) -> Reliability:
    """Confidence against accuracy in bins of equally many segments (give or take one; equal ones stay together).

    Arguments and errors as in `reliability_equal_width`.
    """
    confidence_N, right_N = confidence_and_hits(logits_NC, labels_N)
    ordered_N = np.sort(confidence_N)
    first_N = np.searchsorted(ordered_N, confidence_N, side="left")  # equal confidence, equal place
    return _reliability(confidence_N, right_N, first_N * _positive(num_bins) // len(confidence_N))


def brier_score(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"]) -> float:
    """Mean squared distance 0..2 of the probabilities to the one-hot truth, summed over classes; errors as above."""
    return float(squared_distance(logits_NC, labels_N).mean())


def squared_distance(
    logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"], asked_apart: bool = False
) -> NDArray[np.float64]:
    """Squared distance of each segment's probabilities to its one-hot truth: 0..2, or 0..C; errors as above."""
    check_scored(logits_NC, labels_N)
    probability_NC = probabilities(logits_NC, asked_apart)
    probability_NC[torch.arange(len(labels_N)), labels_N.long()] -= 1
    return probability_NC.square().sum(dim=1).cpu().numpy()


def negative_log_likelihood(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"]) -> float:
    """Mean of -ln p(true class), in nats; errors as above."""
    check_scored(logits_NC, labels_N)
    return cross_entropy(logits_NC.double(), labels_N.long()).item()


def risk_coverage(logits_NC: Float[Tensor, "n c"], labels_N: Int[Tensor, " n"]) -> RiskCoverage:
    """Share wrong among the most confident segments, for every number of them; errors as above."""
    confidence_N, right_N = confidence_and_hits(logits_NC, labels_N)
    _, tie_of_N, size_of_tie = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    wrong_of_tie = np.bincount(tie_of_N, weights=1.0 - right_N)
    wrong_N = np.repeat(wrong_of_tie / size_of_tie, size_of_tie)  # most confident first
    answered_N = np.arange(1, len(wrong_N) + 1)
    return RiskCoverage(answered_N / len(wrong_N), np.cumsum(wrong_N) / answered_N)


def fit_temperature(
    logits_NC: Float[Tensor, "n c"],
    labels_N: Int[Tensor, " n"],
    takes: Sequence[str],
    scored_takes: Sequence[str],
) -> float:
    """The temperature T whose logits / T have the highest likelihood, from held-out takes of *training*.

    Dividing by T changes no ranking within a segment: Top-k stays, confidence changes. Fitted on the takes that are
    scored it would tell how well one can be calibrated with the answers at hand; this is an error here.

    Args:
        logits_NC: logits of held-out training segments.
        labels_N: their true classes, 0..C-1.
        takes: their takes.
        scored_takes: every take whose segments the temperature will be used on.

    Raises:
        DataError: a take is in both, no segments, labels out of range, or not one take a segment.
        RunError: a logit is not finite, or no temperature in 1/1000..1000 is best (the logits carry no information).
    """
    check_scored(logits_NC, labels_N)
    if len(takes) != len(labels_N):
        raise DataError(
            "takes and labels are not of the same segments", expected=str(len(labels_N)), found=str(len(takes))
        )
    both = sorted(set(takes) & set(scored_takes))
    if both:
        raise DataError(
            "a temperature may not be fitted on takes that are scored",
            expected="held-out takes of the training part",
            found=f"{len(both)} takes in both, e.g. {both[0]}",
        )
    logits_NC = logits_NC.double()

    def loss(log_t: float) -> float:
        return negative_log_likelihood(logits_NC / math.exp(log_t), labels_N)

    reach = math.log(1000)
    found = minimize_scalar(loss, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-6})
    log_t = float(found.x)  # pyright: ignore[reportAttributeAccessIssue] - scipy types its result as object
    if loss(log_t) >= min(loss(-reach), loss(reach)):
        raise RunError(
            "no temperature is best",
            expected="a likelihood with a maximum at some temperature in 1/1000..1000",
            found="it is highest at an end of this range",
            fix="use more held-out takes; where all are right, or none is better than chance, there is nothing to fit",
        )
    return math.exp(log_t)


def probabilities(logits_NC: Float[Tensor, "... c"], asked_apart: bool) -> Float[Tensor, "... c"]:
    """What a probe says of each class, 0..1 (float64).

    Args:
        logits_NC: its scores, classes last.
        asked_apart: whether its loss asked the classes apart (`probe.loss=focal`): each class's own sigmoid, whose sum
            need not be 1. Otherwise their softmax.
    """
    return logits_NC.double().sigmoid() if asked_apart else logits_NC.double().softmax(dim=-1)


def confidence_and_hits(
    logits_NC: Tensor, labels_N: Tensor, asked_apart: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The highest of the `probabilities` of each segment, and whether its first guess is right; errors as above."""
    right_N = top_k_hits(logits_NC, labels_N, 1)
    return probabilities(logits_NC, asked_apart).amax(dim=1).cpu().numpy(), right_N.cpu().numpy()


def bin_of_equal_width(confidence_N: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """The bin 0..B-1 of each confidence; see `reliability_equal_width`."""
    edges = np.linspace(0, 1, _positive(num_bins) + 1)
    return np.minimum(np.searchsorted(edges, confidence_N, side="right") - 1, num_bins - 1)


def _reliability(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_], bin_of_N: NDArray[np.int64]
) -> Reliability:
    _, bin_of_N, count = np.unique(bin_of_N, return_inverse=True, return_counts=True)
    confidence = np.bincount(bin_of_N, weights=confidence_N) / count
    accuracy = np.bincount(bin_of_N, weights=right_N.astype(np.float64)) / count
    return Reliability(tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(count.tolist()))


def _positive(num_bins: int) -> int:
    if num_bins < 1:
        raise DataError("a reliability diagram needs bins", expected="at least 1", found=f"{num_bins}")
    return num_bins
