"""Whose gaze a clip's steps get under a control: a function of (seed, videos, clip).

    shuffled        a clip of another video, drawn
    time-shuffled   the same clip, its steps in another order
    future          the same clip one step later

Pictures are not read here; `tokens.controls` reads the lent clips beside the plan's own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from hwm.config import GazeControl
from hwm.data.clips import ClipRequest
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.runtime import rng_for
from hwm.errors import DataError
from hwm.terminal import counted
from hwm.tokens.source import Plan

LENT_CONTROLS: tuple[GazeControl, ...] = ("shuffled", "time-shuffled", "future")
"""Controls that give a clip's steps the gaze of other steps."""


class Lent(NamedTuple):
    """Where the gaze of a clip's steps comes from."""

    clip: ClipRequest
    steps_T: np.ndarray
    """For each step the step of `clip` whose gaze it gets; −1 where there is none."""


class GazeLender:
    """Says whose gaze a clip gets.

    Args:
        fps: steps a second.
        seed: of the drawn clips and orders.
    """

    def __init__(self, fps: float, seed: int) -> None:
        self._fps, self._seed = fps, seed
        self._pools: list[tuple[VideoInfo, ...]] = []
        self._place: dict[Path, tuple[int, int]] = {}
        self._files: dict[Path, Path] = {}

    def add(self, videos: Sequence[VideoInfo]) -> None:
        """Let the clips of these videos get gaze of one another."""
        for index, video in enumerate(videos):
            self._place[video.path] = (len(self._pools), index)
            self._files[video.path] = video.path.resolve()
        self._pools.append(tuple(videos))

    def lend(self, control: GazeControl, request: ClipRequest) -> Lent:
        """Whose gaze the steps of a clip get, under one of `LENT_CONTROLS`.

        Raises:
            DataError: no other video is long enough.
        """
        steps_T = np.arange(request.num_steps)
        if control == "shuffled":
            return Lent(self._of_another_video(request), steps_T)
        if control == "future":
            if request.first_step + request.num_steps < num_grid_steps(request.video.duration_sec, self._fps):
                return Lent(request._replace(first_step=request.first_step + 1), steps_T)
            return Lent(request, np.append(steps_T[1:], -1))  # the video ends with the clip
        if control != "time-shuffled":
            raise ValueError(f"{control} takes no gaze from other steps")
        num_padded = min(max(0, -request.first_step), request.num_steps)
        order = num_padded + self._rng("time-shuffled gaze", request).permutation(request.num_steps - num_padded)
        steps_T[order] = np.roll(order, 1) if len(order) > 1 else -1  # one cycle: no step keeps its own
        return Lent(request, steps_T)

    def _of_another_video(self, request: ClipRequest) -> ClipRequest:
        pool, own = self._place[request.video.path]
        rng, num_steps = self._rng("shuffled gaze", request), request.num_steps
        for index in rng.permutation(len(self._pools[pool])):
            other = self._pools[pool][index]
            num_starts = num_grid_steps(other.duration_sec, self._fps) - num_steps + 1
            if num_starts > 0 and index != own and self._files[other.path] != self._files[request.video.path]:
                return ClipRequest(other, int(rng.integers(0, num_starts)), num_steps, centre_square(other))
        raise DataError(
            f"there is no other video whose gaze {request.video.path} could get",
            expected=f"two videos or more of {num_steps} steps at {self._fps:g} a second",
            found=counted(len(self._pools[pool]), "video"),
            fix="give more videos, or another control than shuffled",
        )

    def _rng(self, what: str, request: ClipRequest) -> np.random.Generator:
        """By a video's place among the others and not by its path, which differs between machines."""
        pool, index = self._place[request.video.path]
        return rng_for(self._seed, what, pool, index, request.first_step, request.num_steps)


class LentPlan(Sequence[list[ClipRequest]]):
    """A plan whose batches hold, after their own clips, those whose gaze they get; each clip once."""

    def __init__(self, plan: Plan, lender: GazeLender, controls: Sequence[GazeControl]) -> None:
        self._plan, self._lender = plan, lender
        self._controls: list[GazeControl] = [control for control in LENT_CONTROLS if control in controls]

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> list[ClipRequest]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[ClipRequest]]: ...
    def __getitem__(self, index: int | slice) -> list[ClipRequest] | list[list[ClipRequest]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        requests = self._plan[index]
        lent = [self._lender.lend(control, request).clip for control in self._controls for request in requests]
        return list(dict.fromkeys([*requests, *lent]))
