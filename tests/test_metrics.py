"""The scores equal the upstream harness' (golden file) and torchmetrics', and wrong input is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_average_precision,
    multiclass_recall,
)

from hwm.errors import DataError, RunError
from hwm.evaluation.metrics import (
    class_mean_recall,
    mean_average_precision,
    per_class_recall,
    score,
    sigmoid_focal_loss_sum,
    top_k_accuracy,
    top_k_hits,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    return load_file(GOLDEN / "metrics.safetensors"), json.loads((GOLDEN / "metrics.json").read_text())


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("classes", ["all", "valid"])
def test_recall_and_accuracy_equal_the_golden_values(golden, k, classes):
    tensors, percent = golden
    valid = tensors["valid_classes"] if classes == "valid" else None
    recall = class_mean_recall(tensors["logits"], tensors["labels"], k, valid)
    accuracy = top_k_accuracy(tensors["logits"], tensors["labels"], k, valid)
    assert 100 * recall == pytest.approx(percent[f"class_mean_recall@{k}/{classes}"], abs=2e-5)
    assert 100 * accuracy == pytest.approx(percent[f"accuracy@{k}/{classes}"], abs=2e-5)


def test_average_precision_and_focal_loss_equal_the_golden_values(golden):
    tensors, values = golden
    logits, labels = tensors["logits"], tensors["labels"]
    expected = values["mean_average_precision_softmax_present_classes"]
    assert 100 * mean_average_precision(logits, labels) == pytest.approx(expected, abs=2e-5)
    assert sigmoid_focal_loss_sum(logits, labels).item() == pytest.approx(values["sigmoid_focal_loss_sum"], rel=1e-6)


def test_score_gathers_the_single_metrics_as_fractions(golden):
    tensors, _ = golden
    logits, labels = tensors["logits"], tensors["labels"]
    metrics = score(logits, labels)
    assert metrics.top1 == top_k_accuracy(logits, labels, 1)
    assert metrics.top5 == top_k_accuracy(logits, labels, 5)
    assert metrics.class_mean_recall_at_1 == class_mean_recall(logits, labels, 1)
    assert metrics.class_mean_recall_at_5 == class_mean_recall(logits, labels, 5)
    assert metrics.mean_average_precision == mean_average_precision(logits, labels)
    assert (metrics.num_segments, metrics.num_classes_present) == (90, len(set(labels.tolist())))
    assert all(0 <= value <= 1 for value in metrics[:5])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 10_000))
def test_distinct_scores_agree_with_torchmetrics(num_segments, num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_segments, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_segments,), generator=generator)
    for k in {1, min(5, num_classes)}:
        theirs = multiclass_accuracy(logits, labels, num_classes, top_k=k, average="micro").item()
        assert top_k_accuracy(logits, labels, k) == pytest.approx(theirs, abs=1e-6)
    per_class = multiclass_recall(logits, labels, num_classes, average=None)
    present = labels.unique()
    assert class_mean_recall(logits, labels, 1) == pytest.approx(per_class[present].mean().item(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_the_first_guess_agrees_with_torchmetrics_with_ties_and_absent_classes(num_segments, classes, levels, seed):
    # Ties at k = 1 go to the lower class index in both; at k > 1 torchmetrics leaves them to topk, which does not say.
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (num_segments, classes), generator=generator).float()
    labels = torch.randint(max(classes - 1, 1), (num_segments,), generator=generator)
    assert top_k_accuracy(logits, labels, 1) == pytest.approx(
        multiclass_accuracy(logits, labels, classes, average="micro").item(), abs=1e-6
    )
    recall, support = per_class_recall(logits, labels, 1)
    theirs = multiclass_recall(logits, labels, classes, average=None)
    assert recall[support > 0].tolist() == pytest.approx(theirs[support > 0].tolist(), abs=1e-6)
    assert recall[support == 0].isnan().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_ties_at_any_k_go_to_the_lower_class_as_in_a_stable_sort(num_segments, num_classes, k, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (num_segments, num_classes), generator=generator).float()
    labels = torch.randint(max(num_classes - 1, 1), (num_segments,), generator=generator)
    guesses = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :k]
    hits = (guesses == labels.numpy()[:, None]).any(axis=1)
    assert top_k_hits(logits, labels, k).tolist() == hits.tolist()
    assert k < num_classes or hits.all()
    by_class = [hits[labels.numpy() == label].mean() for label in labels.unique().tolist()]
    assert class_mean_recall(logits, labels, k) == pytest.approx(np.mean(by_class), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 9), st.integers(1, 9), st.integers(0, 10_000))
def test_class_recall_at_k_agrees_with_torchmetrics_up_to_all_classes(num_segments, num_classes, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_segments, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_segments,), generator=generator)
    allowed = min(k, num_classes)  # torchmetrics refuses more guesses than classes; here they all hit
    theirs = multiclass_accuracy(logits, labels, num_classes, top_k=allowed, average=None)
    assert isinstance(theirs, torch.Tensor)
    expected = theirs[labels.unique()].mean().item()
    assert class_mean_recall(logits, labels, k) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(2, 6), st.integers(1, 4), st.integers(0, 10_000))
@pytest.mark.filterwarnings("ignore:Average precision score for one or more classes was", "ignore:No positive samples")
def test_average_precision_agrees_with_torchmetrics_with_ties_and_absent_classes(segments, classes, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(levels, (segments, classes), generator=generator).float()
    labels = torch.randint(max(classes - 1, 1), (segments,), generator=generator)
    theirs = multiclass_average_precision(logits.softmax(1), labels, classes, average=None)
    assert isinstance(theirs, torch.Tensor)
    expected = theirs[labels.unique()].mean().item()
    assert mean_average_precision(logits, labels) == pytest.approx(expected, abs=1e-5)


def test_average_precision_of_tied_segments_enters_together():
    # Class 1: scores .5 (true), .5 (false), .1 (true). scikit-learn: 1/2 at recall 1/2, then 2/3 at recall 1.
    probability = torch.tensor([0.5, 0.5, 0.1])
    logits = torch.stack([(1 - probability).log(), probability.log()], dim=1)
    labels = torch.tensor([1, 0, 1])
    of_class_1 = 0.5 * 0.5 + 0.5 * 2 / 3
    of_class_0 = 1 / 3  # its one segment ties for rank 2 behind a false one: 1 hit among 3
    assert mean_average_precision(logits, labels) == pytest.approx((of_class_0 + of_class_1) / 2)


def test_a_constant_prediction_earns_what_its_fixed_guess_earns():
    labels = torch.tensor([0, 1, 2, 2, 3])
    logits = torch.zeros(5, 4)
    assert top_k_accuracy(logits, labels, 1) == pytest.approx(1 / 5)
    assert top_k_accuracy(logits, labels, 2) == pytest.approx(2 / 5)
    assert mean_average_precision(logits, labels) == pytest.approx((1 / 5 + 1 / 5 + 2 / 5 + 1 / 5) / 4)


def test_absent_classes_do_not_enter_the_class_mean():
    logits = torch.eye(6)[[0, 0, 3, 1]]
    labels = torch.tensor([0, 0, 3, 3])
    assert class_mean_recall(logits, labels, 1) == pytest.approx((1 + 0.5) / 2)
    recall, support = per_class_recall(logits, labels, 1)
    assert support.tolist() == [2, 0, 0, 2, 0, 0]
    assert [recall[0].item(), recall[3].item()] == [1, 0.5]
    assert all(math.isnan(recall[c].item()) for c in (1, 2, 4, 5))


def test_more_guesses_than_classes_always_hit():
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    assert top_k_accuracy(logits, labels, 5) == 1.0
    assert class_mean_recall(logits, labels, 5) == 1.0


def test_a_label_outside_the_valid_classes_is_a_miss_at_any_k():
    logits = torch.tensor([[9.0, 1.0, 0.0], [9.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1])
    valid = torch.tensor([1, 2])
    assert top_k_hits(logits, labels, 1, valid).tolist() == [False, True]
    assert top_k_hits(logits, labels, 5, valid).tolist() == [False, True]


def test_hits_do_not_depend_on_a_shift_of_the_logits_or_the_dtype():
    generator = torch.Generator().manual_seed(3)
    logits, labels = torch.randn(40, 11, generator=generator), torch.randint(11, (40,), generator=generator)
    shifted = logits + torch.randn(40, 1, generator=generator)
    assert torch.equal(top_k_hits(logits, labels, 3), top_k_hits(shifted, labels, 3))
    assert torch.equal(top_k_hits(logits, labels, 3), top_k_hits(logits.double(), labels.int(), 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = torch.zeros(4, 3)
    logits[2, 1] = bad
    with pytest.raises(RunError, match="first is row 2"):
        score(logits, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "nothing to score"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "0..2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "do not fit"),
    ],
)
def test_wrong_input_is_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        score(logits, labels)


def test_zero_guesses_and_valid_classes_out_of_range_are_refused():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(DataError, match="at least one guess"):
        top_k_accuracy(logits, labels, 0)
    with pytest.raises(DataError, match="valid classes"):
        top_k_accuracy(logits, labels, 1, torch.tensor([3]))
    with pytest.raises(DataError, match="empty"):
        top_k_accuracy(logits, labels, 1, torch.zeros(0, dtype=torch.long))


def test_focal_loss_has_a_gradient_and_stays_finite_for_extreme_logits():
    logits = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 0.0]], requires_grad=True)
    loss = sigmoid_focal_loss_sum(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1, 0] < 0  # the wrong answer is pushed up
