"""Interleaved timing, the figures that come of it, and the check that both sides computed the same thing.

Two functions are called in turn, round after round, so that whatever else the machine does slows both. A ratio is taken
within each round; reported are the median over rounds and the quartiles.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hwm.errors import RunError

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a quantity over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: short and stable, `benchmark/figure`.
        what: what is compared with what, at which size.
        value: the figure; a ratio unless `unit` says otherwise.
        bar: the least (or, with `at_most`, the most) that is asked for; None where there is no bar.
        unit: `×` for ratios.
        at_most: the bar is an upper one.
        agreement: what was checked to be equal, and how equal it was.
        note: why a bar is missed, or what is special about the figure.
        details: further numbers, for the JSON.
    """

    name: str
    what: str
    value: Spread
    bar: float | None = None
    unit: str = "×"
    at_most: bool = False
    agreement: str = ""
    note: str = ""
    details: Mapping[str, float | str | list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the bar; None without a bar."""
        if self.bar is None:
            return None
        return self.value.median <= self.bar if self.at_most else self.value.median >= self.bar

    def record(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self) | {"met": self.met}


@dataclass(frozen=True)
class Skipped:
    """A figure that could not be measured here, and why."""

    name: str
    what: str
    reason: str

    def record(self) -> dict[str, object]:
        """As JSON."""
        return {"name": self.name, "what": self.what, "skipped": self.reason}


Outcome = Figure | Skipped


class NotEqualError(RunError):
    """Two computations that must agree do not; a ratio of their times would say nothing."""


def check_equal(what: str, ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """Refuse results that differ; returns a sentence with the difference.

    Args:
        what: named in the error.
        ours: the faster computation's result.
        theirs: the peer's result, of the same shape.
        tolerance: largest difference over the largest magnitude of `theirs`; 0 asks for the same bits.

    Raises:
        NotEqualError: the shapes differ, a number is not finite, or the difference is larger.
    """
    if ours.shape != theirs.shape:
        raise NotEqualError(f"{what}: shapes differ", expected=str(tuple(theirs.shape)), found=str(tuple(ours.shape)))
    ours, theirs = ours.detach().double(), theirs.detach().double()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    if not difference <= tolerance:
        raise NotEqualError(
            f"{what}: results differ", expected=f"at most {tolerance:g} relative", found=f"{difference:g}"
        )
    return f"{difference:.0e} ≤ {tolerance:g}" if tolerance else "same bits"


class Timed(NamedTuple):
    """Seconds of each call in each round, and what its first call, which is not timed, returned."""

    seconds: dict[str, list[float]]
    results: dict[str, Any]


def interleaved(calls: Mapping[str, Call], rounds: int) -> Timed:
    """Call every function once untimed, then all of them in turn for `rounds` rounds."""
    results = {name: call() for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return Timed(seconds, results)


def ratio(seconds: Mapping[str, Sequence[float]], theirs: str, ours: str) -> Spread:
    """How many times as fast `ours` is, round by round."""
    return Spread.of([slow / fast for slow, fast in zip(seconds[theirs], seconds[ours], strict=True)])


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float | str | list[float]]:
    """Median seconds of each call, for `Figure.details`."""
    return {f"{name}_sec": round(statistics.median(values), 6) for name, values in seconds.items()}
