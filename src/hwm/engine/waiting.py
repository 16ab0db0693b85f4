"""How much of a loop's time goes by before its next value is there.

batches = Waited(source.batches(plan))
for batch in batches: ...
batches.share()      0..1 since the last call: 0 where data are always ready, near 1 where nothing else takes time
"""

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Waited(Iterator[_Value], Generic[_Value]):
    """The same values, with the time that each was waited for."""

    def __init__(self, values: Iterable[_Value]) -> None:
        self._values = iter(values)
        self._since, self._waited = time.monotonic(), 0.0

    def __next__(self) -> _Value:
        asked = time.monotonic()
        try:
            return next(self._values)
        finally:
            self._waited += time.monotonic() - asked

    def share(self) -> float:
        """Time waited over time passed since the last call, or since the start."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        return share
