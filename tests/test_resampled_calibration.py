"""Calibration on resamples: the same numbers as on the segments of the drawn takes, each as often as it is drawn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.calibration import (
    brier_score,
    confidence_and_hits,
    reliability_equal_width,
    reliability_of,
    risk_coverage,
)
from hwm.evaluation.resampled_calibration import (
    resampled_calibration,
    resampled_reliability,
    resampled_selective_accuracy,
)

TAKES, SEGMENTS, CLASSES = 5, 37, 4
COVERAGES = (0.05, 0.3, 0.5, 0.8, 1.0)


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Logits with many ties, labels, takes, and draws: all takes once, one take alone, takes drawn several times."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randint(0, 3, (SEGMENTS, CLASSES), generator=rng).float()
    labels = torch.randint(0, CLASSES, (SEGMENTS,), generator=rng)
    takes = np.random.default_rng(0).permutation(np.arange(SEGMENTS) % TAKES)
    draws = np.array([[1] * TAKES, [0, 5, 0, 0, 0], [2, 0, 1, 2, 0], [0, 0, 3, 1, 1]])
    return logits, labels, takes, draws


def repeated(takes: np.ndarray, draws_P: np.ndarray) -> np.ndarray:
    """Rows of the segments, each as often as its take is drawn."""
    return np.repeat(np.arange(len(takes)), draws_P[takes])


def test_scores_on_resamples_are_those_of_the_drawn_segments(
    drawn: tuple[Tensor, Tensor, np.ndarray, np.ndarray],
) -> None:
    logits, labels, takes, draws = drawn
    ece, brier, half = (resampled_calibration(name, *drawn) for name in ("ece", "brier", "surest_half"))
    selective = resampled_selective_accuracy(logits, labels, takes, draws, COVERAGES)
    for row, draws_P in enumerate(draws):
        rows = repeated(takes, draws_P)
        some = logits[rows], labels[rows]
        assert ece[row] == pytest.approx(reliability_equal_width(*some).expected_calibration_error)
        assert brier[row] == pytest.approx(brier_score(*some))
        curve = risk_coverage(*some)
        assert selective[row] == pytest.approx([curve.selective_accuracy(share) for share in COVERAGES])
        assert half[row] == pytest.approx(curve.selective_accuracy(0.5))


def test_bins_on_resamples_are_those_of_the_drawn_segments(
    drawn: tuple[Tensor, Tensor, np.ndarray, np.ndarray],
) -> None:
    logits, labels, takes, draws = drawn
    shares = resampled_reliability(*confidence_and_hits(logits, labels), takes, draws)
    for share_B, draws_P in zip(shares, draws, strict=True):
        rows = repeated(takes, draws_P)
        expected = reliability_equal_width(logits[rows], labels[rows]).accuracy
        assert share_B[~np.isnan(share_B)] == pytest.approx(expected)


def test_of_classes_asked_apart_a_probability_is_the_class_s_own_sigmoid(
    drawn: tuple[Tensor, Tensor, np.ndarray, np.ndarray],
) -> None:
    logits, labels, *_ = drawn
    sigmoid = 1 / (1 + np.exp(-logits.double().numpy()))
    truth = np.eye(CLASSES)[labels.numpy()]
    right = logits.argmax(1).numpy() == labels.numpy()
    ece, brier, half = (
        resampled_calibration(name, *drawn, asked_apart=True)[0] for name in ("ece", "brier", "surest_half")
    )
    assert brier == pytest.approx(((sigmoid - truth) ** 2).sum(1).mean())
    assert ece == pytest.approx(reliability_of(sigmoid.max(1), right).expected_calibration_error)
    # Softmax would rank by margin: here the sigmoid of the best class alone ranks, and three values of it tie.
    sure = np.sort(np.unique(sigmoid.max(1)))[::-1][0]
    among = right[sigmoid.max(1) == sure]
    assert len(among) > SEGMENTS / 2
    assert half == pytest.approx(among.mean())


def test_what_cannot_be_asked_is_refused(drawn: tuple[Tensor, Tensor, np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="share of the segments"):
        resampled_selective_accuracy(*drawn, (0.0, 0.5))
