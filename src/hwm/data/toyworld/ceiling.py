"""The best possible Top-1 on a toy world, with and without knowing the gaze, computed exactly from its rules.

Inputs: the scripts of a split. Outputs: a `Ceiling` a horizon.

The question is the one of the protocol `start-minus-tau/v1`: name step k from the frames up to the last grid time
`t_last = floor((start_k - τ) · fps) / fps`. A frame shown then is the last video frame at or before it.

What the observer is granted (a grant can only raise the ceiling, so no honest model can pass it but by luck):

- it knows the recipe, its task graph and all probabilities;
- it knows every step that has started by the last observed frame, from its reach's first frame on;
- it knows the horizon, and how many steps start between the last observed frame and step k. Where τ + 1/fps is at most
  1.7 s (the shortest time between two starts) that is no grant: the answer is always "none". At longer horizons it is
  one, so the ceiling there is an upper bound that may not be reached;
- *with gaze* it also knows the gaze target from the first frame drawn after a turn has begun. No more than one turn
  can be ahead of the last started step, since a step's turn begins after the start of the step before.

So, with a the last started step, j the number of starts up to and including step k, P the recipe's matrix: without
gaze the best guess is right with probability `max_s P^j[a, s]`. With gaze, the turn to the next step b has been seen
with probability `v = P(start_b - lead < t_last)`, over the law of the lead and not its realised value, and the best
guess is right with probability `v · Σ_b P[a, b] · max_s P^(j-1)[b, s] + (1 - v) · max_s P^j[a, s]`. Where gaze is
uninformative both are the same. The ceiling is the mean of these over the segments of the split, given the times and
the steps that came before each.

A frame within the turn shows a gaze between two objects, from which few readers will tell the second one. *With gaze at
rest* the observer learns the target only from the first frame drawn after the turn has ended: what is left where each
frame is read for what is looked at in it.

"Without gaze" means from the history of steps alone. The pixels of both views show where the head points, so a model
that is given no gaze may still read it there and pass this number; it cannot pass the number with gaze.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hwm.data.toyworld.rules import LEAD_SEC, RECIPES, TURN_SEC, Script

HORIZONS_SEC = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


class Ceiling(NamedTuple):
    """Best possible Top-1 at one horizon, shares of 1."""

    horizon_sec: float
    num_segments: int
    """Segments that start no earlier than the horizon."""
    without_gaze: float
    with_gaze: float
    with_gaze_at_rest: float
    """The same where the target counts as seen only once the turn has ended."""
    realised_without_gaze: float
    """What the best observer scores on these very segments, as they happened to be drawn."""
    realised_with_gaze: float


class Moment(NamedTuple):
    """What lies between the last observed frame and the step that is asked for."""

    started: int
    """Steps that have started by then; step number `started` (from 0) is the next to start."""
    ahead: int
    """j: starts from then up to and including the step asked for, at least 1."""
    seen_sec: float
    """Time of the last video frame that the observer is shown."""


def observed_moment(script: Script, index: int, horizon_sec: float, fps: float, video_fps: float) -> Moment | None:
    """The moment before step `index` (its place in the script), or None where the horizon reaches before time 0."""
    last = script.starts_sec[index] - horizon_sec
    if last < 0:
        return None
    # 1e-6 steps of tolerance: times are multiples of 10 microseconds, and 1.3 * 4 must not fall below a grid line.
    seen = math.floor(math.floor(last * fps + 1e-6) / fps * video_fps + 1e-6) / video_fps
    started = bisect_right(script.starts_sec, seen)
    return Moment(started, index - started + 1, seen)


def turn_probability(script: Script, moment: Moment, since_sec: float = 0.0) -> float:
    """Probability, over the law of the lead, that the turn before the next step has begun before the last frame.

    With `since_sec`, that it began more than so long before.
    """
    low, high = LEAD_SEC
    distance = script.starts_sec[moment.started] - moment.seen_sec + since_sec
    return min(max((high - distance) / (high - low), 0.0), 1.0)


class _Ahead(NamedTuple):
    """Looking j steps ahead from each step of a recipe; the last entry of each list is the start of the take."""

    best: list[float]
    """max_s P^j[a, s]"""
    guess: list[int]
    """argmax_s P^j[a, s]"""
    told: list[float]
    """Σ_b P[a, b] · max_s P^(j-1)[b, s]: the same where the next step is known."""


def _look_ahead(recipe_index: int, farthest: int) -> list[_Ahead]:
    """Entry j looks j steps ahead; entry 0 is the step itself (its `told` has no meaning)."""
    recipe = RECIPES[recipe_index]
    size = len(recipe.steps) + 1
    matrix = np.zeros((size, size))
    matrix[:-1, :-1] = recipe.follow
    matrix[-1, :-1] = recipe.start
    powers = [np.linalg.matrix_power(matrix, power) for power in range(farthest + 1)]
    told = [powers[0].max(axis=1)] + [matrix @ power.max(axis=1) for power in powers[:-1]]
    return [
        _Ahead(power.max(axis=1).tolist(), power.argmax(axis=1).tolist(), known.tolist())
        for power, known in zip(powers, told, strict=True)
    ]


def ceiling(scripts: Sequence[Script], informative: bool, horizon_sec: float, fps: float, video_fps: float) -> Ceiling:
    """The ceiling of a set of takes at one horizon.

    Args:
        scripts: the takes.
        informative: whether the gaze goes to the object that will be used.
        horizon_sec: τ.
        fps: steps a second of the observer's grid.
        video_fps: frames a second of the videos.
    """
    longest = max(len(script.steps) for script in scripts)
    ahead = [_look_ahead(index, longest) for index in range(len(RECIPES))]
    rows: list[tuple[float, float, float, bool, bool]] = []
    for script in scripts:
        for index, truth in enumerate(script.steps):
            moment = observed_moment(script, index, horizon_sec, fps, video_fps)
            if moment is not None:
                rows.append(_segment(script, moment, truth, informative, ahead[script.recipe]))
    if not rows:
        return Ceiling(horizon_sec, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    means = np.array(rows, dtype=np.float64).mean(axis=0)
    return Ceiling(horizon_sec, len(rows), *(float(value) for value in means))


def _segment(
    script: Script, moment: Moment, truth: int, informative: bool, ahead: list[_Ahead]
) -> tuple[float, float, float, bool, bool]:
    """Chance to be right without gaze, with it, with it at rest; and whether the best is right, without and with."""
    before = script.steps[moment.started - 1] if moment.started else -1
    table = ahead[moment.ahead]
    without, guess = table.best[before], table.guess[before]
    if not informative:
        return without, without, without, guess == truth, guess == truth
    seen, rested = (turn_probability(script, moment, since_sec) for since_sec in (0.0, TURN_SEC))
    told = table.told[before]
    target = script.steps[moment.started]
    has_turned = script.starts_sec[moment.started] - script.leads_sec[moment.started] < moment.seen_sec
    gaze_guess = ahead[moment.ahead - 1].guess[target] if has_turned else guess
    with_gaze, at_rest = (chance * told + (1 - chance) * without for chance in (seen, rested))
    return without, with_gaze, at_rest, guess == truth, gaze_guess == truth


def ceilings(scripts: Sequence[Script], informative: bool, fps: float, video_fps: float) -> tuple[Ceiling, ...]:
    """The ceilings of a set of takes at all of `HORIZONS_SEC`."""
    return tuple(ceiling(scripts, informative, horizon, fps, video_fps) for horizon in HORIZONS_SEC)
