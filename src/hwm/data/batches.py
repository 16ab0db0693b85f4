"""Which clips make up the batch of each optimiser step: a function of (plan, step), so a resumed run goes on exactly.

Samples are numbered through all epochs: number n is the clip at place n mod V of epoch n // V. Step s takes the numbers
s·B … s·B + B − 1, and process r of W every W-th of them. No sample is dropped at the end of an epoch.
"""

from collections.abc import Sequence
from typing import overload

from hwm.data.clips import ClipPlan, ClipRequest
from hwm.errors import ConfigError


class StepBatches(Sequence[list[ClipRequest]]):
    """The batches of steps `first_step` … `num_steps` − 1 for one process.

    Args:
        plan: clips as functions of (epoch, index).
        batch_size: clips a step over all processes.
        first_step: the step to start (or resume) at.
        num_steps: steps of the whole run.
        rank: this process.
        world_size: processes.

    Raises:
        ConfigError: the batch does not divide over the processes.
    """

    def __init__(
        self, plan: ClipPlan, batch_size: int, first_step: int, num_steps: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(
                f"optim.batch_size={batch_size} does not divide over {world_size} processes",
                fix=f"optim.batch_size={batch_size // world_size * world_size or world_size}",
            )
        self._plan, self._batch_size, self._first, self._end = plan, batch_size, first_step, num_steps
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return max(0, self._end - self._first)

    @overload
    def __getitem__(self, index: int) -> list[ClipRequest]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[ClipRequest]]: ...
    def __getitem__(self, index: int | slice) -> list[ClipRequest] | list[list[ClipRequest]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = (self._first + index % len(self)) * self._batch_size
        numbers = range(first + self._rank, first + self._batch_size, self._world_size)
        orders = {epoch: self._plan.order(epoch) for epoch in {n // len(self._plan) for n in numbers}}
        return [
            self._plan.request(n // len(self._plan), int(orders[n // len(self._plan)][n % len(self._plan)]))
            for n in numbers
        ]
