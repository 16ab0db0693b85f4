"""Tests over takes, Holm's correction, and every branch of the verdict."""

import math

import numpy as np
import pytest
from scipy import stats

from hwm.errors import DataError
from hwm.evaluation.differences import Difference, difference_of
from hwm.evaluation.tests_of_difference import holm, permutation_test, sign_test
from hwm.evaluation.verdicts import MIN_TAKES, Outcome, decide


def test_the_sign_test_counts_takes_and_is_exact():
    values = [1, 1, -1, 1, 0, -1, 1, 1, 1]
    takes = ["a", "a", "a", "b", "c", "d", "e", "f", "g"]
    result = sign_test(values, takes)
    assert (result.num_ahead, result.num_behind, result.num_equal) == (5, 1, 1)
    assert result.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    assert sign_test([0.0, 0.0], ["a", "b"]).p_value == 1
    third = 1 / 3
    assert sign_test([third, third, -2 * third], ["a"] * 3).num_equal == 1
    assert sign_test([0.2, 0.4, -0.6], ["a"] * 3).num_equal == 1  # of five seeds; in floats 1.1e-16 is left


def test_the_permutation_test_is_exact_for_few_takes_and_near_t_for_many():
    # Six takes all ahead: 2 of 64 swaps are as extreme.
    assert permutation_test(np.ones(6), list("abcdef"), np.random.default_rng(0)) == pytest.approx(2 / 64)
    assert permutation_test([1.0], ["a"], np.random.default_rng(0)) == 1
    values = np.random.default_rng(1).normal(0.3, 1, 60)
    expected = stats.ttest_1samp(values, 0).pvalue
    found = permutation_test(values, [str(i) for i in range(60)], np.random.default_rng(2))
    assert found == pytest.approx(expected, abs=0.01)


def test_holm_by_hand_is_monotone_and_keeps_the_order_given():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # .02 · 1 would be below the .03 of the smaller ones.
    assert holm([0.02, 0.015, 0.01]) == pytest.approx([0.03, 0.03, 0.03])
    assert holm([0.9, 0.8]) == (1, 1)
    assert holm([]) == ()
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(DataError, match="probabilities"):
            holm([wrong])


def test_holm_holds_the_error_rate_of_the_family():
    p = np.random.default_rng(0).random((2000, 5))
    assert np.mean([min(holm(row)) < 0.05 for row in p.tolist()]) == pytest.approx(0.05, abs=0.015)


def difference(value: float, error: float, takes: int = 40, seeds: int = 3) -> Difference:
    return Difference(value, (value,) * seeds, error, takes - 1.0, takes)


@pytest.mark.parametrize(
    ("given", "bound", "adjusted_p", "outcome", "words"),
    [
        (difference(0.05, 0.01), 0.02, None, Outcome.BETTER, "better by +5.0 points (95 % interval +3.0 to +7.0)"),
        (difference(-0.05, 0.01), 0.02, None, Outcome.WORSE, "worse by -5.0 points (95 % interval -7.0 to -3.0)"),
        (difference(0.05, 0.01), None, 0.01, Outcome.BETTER, "better by +5.0 points (95 % interval +3.0 to +7.0)"),
        (difference(0.01, 0.004), 0.02, None, Outcome.EQUIVALENT,
         "a difference too small to matter, within ±2.0 points: +1.0 points (95 % interval +0.2 to +1.8)"),
        (difference(0.001, 0.005), 0.02, None, Outcome.EQUIVALENT,
         "no difference, within ±2.0 points: +0.1 points (95 % interval -0.9 to +1.1)"),
        (difference(0.01, 0.02), 0.02, None, Outcome.UNDECIDED,
         "not decided: the smallest difference this comparison could see is 5.7 points; "
         "+1.0 points (95 % interval -3.0 to +5.0)"),
        (difference(0.001, 0.005), None, None, Outcome.UNDECIDED,
         "not decided: the smallest difference this comparison could see is 1.4 points; "
         "+0.1 points (95 % interval -0.9 to +1.1)"),
        (difference(0.05, 0.02), 0.02, 0.06, Outcome.UNDECIDED,
         "not decided: the smallest difference this comparison could see is 5.7 points; "
         "+5.0 points (95 % interval +1.0 to +9.0); its interval alone excludes zero, the family of metrics does not"),
        (difference(0.01, 0.004), 0.02, 0.06, Outcome.EQUIVALENT,
         "no difference, within ±2.0 points: +1.0 points (95 % interval +0.2 to +1.8)"),
        (difference(0.05, 0.01, seeds=1), 0.02, None, Outcome.BETTER,
         "better by +5.0 points (95 % interval +3.0 to +7.0); "
         "one seed: about these two trained models, not about training again"),
        (difference(0.5, 0.01, takes=MIN_TAKES - 1), 0.02, None, Outcome.UNDECIDED,
         "not decided: 5 takes are too few for any claim, it needs 6"),
        (Difference(0.5, (0.5,), None, 0, 1), 0.02, None, Outcome.UNDECIDED,
         "not decided: an interval needs at least two takes, found 1"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_numbers_allow(given, bound, adjusted_p, outcome, words):
    decision = decide(given, bound, adjusted_p)
    assert (decision.outcome, decision.text) == (outcome, words)


def test_seeds_that_disagree_leave_a_clear_gain_over_takes_undecided():
    noise = np.random.default_rng(0).normal(0, 0.01, (2000, 1))
    alike, apart = np.array([0.04, 0.05, 0.06]), np.array([0.0, 0.05, 0.1])
    assert decide(difference_of(alike, alike + noise, 40), 0.02).outcome is Outcome.BETTER
    assert decide(difference_of(apart, apart + noise, 40), 0.02).outcome is Outcome.UNDECIDED
