"""Calibration scores by hand and against torchmetrics; risk and coverage; a temperature only from other takes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from hwm.errors import DataError, RunError
from hwm.evaluation.calibration import (
    brier_score,
    calibration,
    fit_temperature,
    negative_log_likelihood,
    reliability_equal_mass,
    reliability_equal_width,
    risk_coverage,
)
from hwm.evaluation.calibration_figures import reliability_diagram, selective_accuracy_curves
from hwm.evaluation.drawing import Line


def two_classes(confidence: list[float], right: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose first class has this probability (at least one half), and labels that make it right or wrong."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1), torch.tensor([0 if r else 1 for r in right])


CONFIDENCE = [0.55, 0.55, 0.75, 0.8, 0.95, 0.95]
RIGHT = [True, False, True, False, True, True]


def test_reliability_by_hand():
    logits, labels = two_classes(CONFIDENCE, RIGHT)
    bins = reliability_equal_width(logits, labels, 5)  # edges 0, .2, .4, .6, .8, 1: .8 opens the last bin
    assert bins.num_segments == (2, 1, 3)
    assert bins.confidence == pytest.approx((0.55, 0.75, 0.9))
    assert bins.accuracy == pytest.approx((0.5, 1, 2 / 3))
    expected = (2 * 0.05 + 1 * 0.25 + 3 * (0.9 - 2 / 3)) / 6
    assert bins.expected_calibration_error == pytest.approx(expected)
    mass = reliability_equal_mass(logits, labels, 3)
    assert mass.num_segments == (2, 2, 2)
    assert mass.accuracy == (0.5, 0.5, 1)
    assert mass.confidence == pytest.approx((0.55, 0.775, 0.95))
    rising = two_classes([0.51 + 0.04 * place for place in range(12)], [True] * 12)
    assert reliability_equal_mass(*rising, 3).num_segments == (4, 4, 4)


def test_equal_confidence_stays_in_one_bin_and_full_confidence_in_the_last():
    logits, labels = two_classes([0.9] * 7, [True] * 3 + [False] * 4)
    assert reliability_equal_mass(logits, labels, 3).num_segments == (7,)
    sure = torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    bins = reliability_equal_width(sure, torch.tensor([0, 1]), 10)
    assert (bins.confidence, bins.accuracy, bins.num_segments) == ((1,), (0.5,), (2,))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 200), st.integers(2, 9), st.integers(1, 20), st.integers(0, 10_000))
def test_the_error_of_equal_width_bins_is_that_of_torchmetrics(num_segments, num_classes, num_bins, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_segments, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_segments,), generator=generator)
    theirs = multiclass_calibration_error(logits.softmax(1), labels, num_classes, n_bins=num_bins, norm="l1").item()
    ours = reliability_equal_width(logits, labels, num_bins)
    assert ours.expected_calibration_error == pytest.approx(theirs, abs=2e-6)
    assert sum(ours.num_segments) == sum(reliability_equal_mass(logits, labels, num_bins).num_segments) == num_segments


def test_brier_and_likelihood_by_hand():
    logits, labels = two_classes([0.8, 0.6], [True, False])
    assert brier_score(logits, labels) == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert negative_log_likelihood(logits, labels) == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2)
    uniform = torch.zeros(3, 4)
    assert negative_log_likelihood(uniform, torch.tensor([0, 1, 2])) == pytest.approx(math.log(4))
    assert brier_score(uniform, torch.tensor([0, 1, 2])) == pytest.approx(0.75)


def test_a_model_that_samples_its_own_labels_is_calibrated_and_a_sharper_one_is_not():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 6, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    honest, sharp = calibration(logits, labels), calibration(3 * logits, labels)
    assert max(honest.ece_equal_width, honest.ece_equal_mass) < 0.02
    assert min(sharp.ece_equal_width, sharp.ece_equal_mass) > 0.1
    assert honest.brier < sharp.brier
    assert honest.negative_log_likelihood < sharp.negative_log_likelihood
    takes = ["held out"] * 20_000
    assert fit_temperature(3 * logits, labels, takes, ["scored"]) == pytest.approx(3, rel=0.03)


def test_risk_and_coverage_by_hand():
    logits, labels = two_classes([0.95, 0.9, 0.8, 0.7], [True, False, True, False])
    curve = risk_coverage(logits, labels)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert [curve.selective_accuracy(c) for c in (0.2, 0.25, 0.6, 1)] == pytest.approx([1, 1, 2 / 3, 1 / 2])
    for wrong in (0, 1.01, math.nan):
        with pytest.raises(DataError, match="coverage"):
            curve.selective_accuracy(wrong)


def test_ties_of_confidence_do_not_depend_on_the_order_of_the_segments():
    logits, labels = two_classes([0.9, 0.8, 0.8, 0.8, 0.6], [True, True, False, True, False])
    curve = risk_coverage(logits, labels)
    assert curve.risk == pytest.approx([0, 1 / 6, 2 / 9, 1 / 4, 2 / 5])
    order = torch.tensor([4, 2, 3, 0, 1])
    assert risk_coverage(logits[order], labels[order]).risk == pytest.approx(curve.risk)
    flat = risk_coverage(torch.zeros(8, 4), torch.arange(8) % 4)
    assert flat.risk == pytest.approx([0.75] * 8)


def test_a_temperature_comes_from_other_takes_and_from_data_that_have_one():
    logits, labels = two_classes(CONFIDENCE, RIGHT)
    takes = ["a", "b"] * 3
    assert 0.01 < fit_temperature(logits, labels, takes, ["c"]) < 100
    with pytest.raises(DataError, match=r"e\.g\. b"):
        fit_temperature(logits, labels, takes, ["b", "c"])
    with pytest.raises(DataError, match="same segments"):
        fit_temperature(logits, labels, takes[:2], ["c"])
    with pytest.raises(RunError, match="no temperature"):
        fit_temperature(logits, torch.zeros(6, dtype=torch.long), takes, ["c"])  # all right: the surer the better


def test_wrong_input_is_refused():
    logits, labels = two_classes(CONFIDENCE, RIGHT)
    for bins in (reliability_equal_width, reliability_equal_mass):
        with pytest.raises(DataError, match="needs bins"):
            bins(logits, labels, 0)
    for of in (brier_score, negative_log_likelihood, risk_coverage, calibration):
        with pytest.raises(DataError, match="nothing to score"):
            of(logits[:0], labels[:0])
        with pytest.raises(RunError, match="not finite"):
            of(logits * math.nan, labels)


def test_figures_hold_their_numbers():
    logits, labels = two_classes(CONFIDENCE, RIGHT)
    bins = reliability_equal_width(logits, labels, 5)
    figure = reliability_diagram("reliability", {"gaze, probe": bins})
    assert figure.csv.splitlines()[0] == "model,confidence,accuracy,num_segments,low,high"
    assert len(figure.csv.splitlines()) == 1 + len(bins.num_segments)
    assert figure.csv.splitlines()[1].startswith('"gaze, probe",0.55')
    assert figure.svg.lstrip().startswith("<?xml")
    assert figure.png.startswith(b"\x89PNG")
    many = risk_coverage(torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)), torch.arange(3000) % 4)
    bounded = reliability_diagram("reliability", {"m": bins}, {"m": (bins.accuracy, bins.accuracy)})
    assert [row.split(",")[4] for row in bounded.csv.splitlines()[1:]] == [str(share) for share in bins.accuracy]
    line = Line("model", [0.5, 1.0], [0.75, 0.5], [0.7, 0.4], [0.8, 0.6])
    curve = selective_accuracy_curves("selective", [line])
    assert curve.csv.splitlines()[1:] == ["model,0.5,0.75,0.7,0.8", "model,1.0,0.5,0.4,0.6"]
    assert curve == selective_accuracy_curves("selective", [line])
    with pytest.raises(RunError, match="nothing to draw"):
        reliability_diagram("reliability", {})
    assert np.isfinite(many.area)
