"""What was left out and why: every reader returns these beside what it could use, so nothing is dropped in silence.

In: nothing. Out: `Exclusion` records and their counts by reason. The rule everywhere: expected = used + excluded.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hwm.errors import DataError


class Exclusion(NamedTuple):
    """One thing that was expected and is not used."""

    item: str
    """What: a file, or a row such as `keystep_val.json#<take_uid>[3]`."""
    reason: str
    """Why, in a few words that are the same for the same cause (they are counted)."""


def summarise(exclusions: Iterable[Exclusion]) -> dict[str, int]:
    """Count by reason, most frequent first, then by the reason's letters."""
    counts = Counter(exclusion.reason for exclusion in exclusions)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def most_frequent(exclusions: Sequence[Exclusion], limit: int = 3) -> str:
    """A line for people: the most frequent reasons with their counts, and how many are left out for others."""
    counts = list(summarise(exclusions).items())
    told = [f"{count} × {reason}" for reason, count in counts[:limit]]
    others = sum(count for _, count in counts[limit:])
    return ", ".join([*told, *([f"{others} for other reasons"] if others else [])])


def with_examples(exclusions: Sequence[Exclusion]) -> str:
    """For an error: every reason with its count and the first thing that it holds for; empty without exclusions."""
    first = {exclusion.reason: exclusion.item for exclusion in reversed(exclusions)}
    return "; ".join(f"{count} × {reason} ({first[reason]})" for reason, count in summarise(exclusions).items())


def check_coverage(what: str, expected: int, num_used: int, num_excluded: int) -> None:
    """Hold the rule expected = used + excluded.

    Raises:
        DataError: something was lost without a reason (a fault of this program, not of the data).
    """
    if expected != num_used + num_excluded:
        raise DataError(
            f"{what} lost track of items",
            expected=f"used + excluded = {expected}",
            found=f"{num_used} + {num_excluded}",
            fix="please report this as a bug",
        )
