"""The two baselines that look at no video, on counts small enough to do by hand."""

import pytest
import torch

from hwm.errors import DataError
from hwm.evaluation.baselines import majority_logits, previous_step_logits
from hwm.evaluation.metrics import score


def test_majority_is_the_smoothed_training_frequency_in_every_row():
    logits = majority_logits([2, 2, 2, 0], num_classes=4, num_segments=3)
    assert logits.shape == (3, 4)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0].exp(), torch.tensor([2.0, 1.0, 4.0, 1.0]) / 8)
    assert torch.equal(logits[0], logits[2])


def test_majority_scores_exactly_the_share_of_its_class():
    labels = torch.tensor([2, 2, 0, 1])
    assert score(majority_logits([2, 2, 0], 3, 4), labels).top1 == pytest.approx(0.5)


def test_previous_step_counts_each_row_apart_and_first_segments_too():
    pairs = [(None, 0), (0, 1), (1, 2), (None, 0), (0, 1), (0, 2)]
    logits = previous_step_logits(pairs, [0, None, 1], num_classes=3)
    assert logits.argmax(dim=1).tolist() == [1, 0, 2]
    frequency = torch.tensor([2 + 1, 2 + 1, 2 + 1]) / 9
    expected = (torch.tensor([0.0, 2.0, 1.0]) + frequency) / 4
    torch.testing.assert_close(logits[0].exp(), expected)


def test_a_previous_step_never_seen_falls_back_on_the_majority():
    pairs = [(None, 3), (3, 3), (3, 1), (1, 3)]
    logits = previous_step_logits(pairs, [0], num_classes=4)
    torch.testing.assert_close(logits, majority_logits([3, 3, 1, 3], 4, 1))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(1))


def test_no_previous_step_is_not_confused_with_any_class():
    pairs = [(None, 0)] * 5 + [(c, 1) for c in range(3)] * 5
    logits = previous_step_logits(pairs, [None, 0, 1, 2], num_classes=3)
    assert logits.argmax(dim=1).tolist() == [0, 1, 1, 1]


def test_empty_training_and_unknown_classes_are_refused():
    with pytest.raises(DataError, match="needs training segments"):
        majority_logits([], 3, 1)
    with pytest.raises(DataError, match="training label"):
        majority_logits([3], 3, 1)
    with pytest.raises(DataError, match="to predict from"):
        previous_step_logits([(None, 0)], [-1], 3)
    with pytest.raises(DataError, match="in training"):
        previous_step_logits([(7, 0)], [0], 3)
