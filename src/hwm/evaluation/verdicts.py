"""What a paired comparison says, in words: better, worse, no difference within a bound, or not decided.

In: a `Difference`, the bound within which a difference does not matter, and (in a family of metrics) the p value after
Holm's correction. Out: a `Decision`. A pure function: the same numbers give the same words.
"""

from enum import StrEnum
from typing import NamedTuple

from hwm.evaluation.differences import Difference

MIN_TAKES = 6
"""Fewer takes decide nothing: if one model wins all of five, the sign test still says p = .06."""


class Outcome(StrEnum):
    """The four answers."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "no difference"
    UNDECIDED = "not decided"


class Decision(NamedTuple):
    """An answer and the sentence that tells it."""

    outcome: Outcome
    text: str


def decide(
    difference: Difference, bound: float | None, adjusted_p: float | None = None, level: float = 0.95
) -> Decision:
    """The verdict on model a against model b, for a metric where more is better.

    - No difference: it is within ± bound by two one-sided tests. It may be seen not to be zero; the text then says so.
    - Better or worse: otherwise, if the interval excludes zero, and so does the adjusted p value where there is one.
    - Not decided: otherwise, and always below `MIN_TAKES` takes. The text says what could have been seen.

    Args:
        difference: of a fraction 0..1; told in percentage points.
        bound: differences smaller than this do not matter; None claims no equivalence.
        adjusted_p: the p value after Holm, where several metrics were asked.
        level: 1 - the error rate of each claim.

    Raises:
        DataError: the bound is not above 0.
    """
    interval = difference.interval(level).within(-1.0, 1.0)
    seeds = "" if difference.num_seeds > 1 else "; one seed: about these two trained models, not about training again"
    if interval.low is None or interval.high is None:
        text = f"not decided: an interval needs at least two takes, found {difference.num_takes}"
        return Decision(Outcome.UNDECIDED, text)
    if difference.num_takes < MIN_TAKES:
        text = f"not decided: {difference.num_takes} takes are too few for any claim, it needs {MIN_TAKES}"
        return Decision(Outcome.UNDECIDED, text)
    told = f"{_points(interval.value)} ({round(100 * level)} % interval {_range(interval.low, interval.high)})"
    is_seen = interval.excludes_zero and (adjusted_p is None or adjusted_p < 1 - level)
    if bound is not None and difference.is_within(bound, level):
        what = "a difference too small to matter" if is_seen else "no difference"
        return Decision(Outcome.EQUIVALENT, f"{what}, within ±{_size(bound)}: {told}{seeds}")
    if is_seen:
        outcome = Outcome.BETTER if difference.value > 0 else Outcome.WORSE
        return Decision(outcome, f"{outcome} by {told}{seeds}")
    visible = difference.smallest_detectable(level=level)
    assert visible is not None  # there is an interval
    holm = "; its interval alone excludes zero, the family of metrics does not" if interval.excludes_zero else ""
    text = f"not decided: the smallest difference this comparison could see is {_size(visible)}; {told}{holm}{seeds}"
    return Decision(Outcome.UNDECIDED, text)


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"


def _size(share: float) -> str:
    return f"{100 * share:.1f} points"


def _range(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"
