"""Where gaze, hands, objects and distractors are at any time of a take, as continuous functions of the script.

Inputs: a `Script`, a `Look` (`look.py`) and times [S] in seconds. Outputs: arrays with one row a time. Positions are
in units of the frame height; exo x and y start at the left and top of the central square, ego x and y at the left and
top of the ego frame when it does not pan. Nothing here knows pixels, and nothing at time t looks past t but the turn
that the script puts at or before t.
"""

from typing import NamedTuple

import numpy as np

from hwm.data.toyworld.look import EGO_SPOT, EXO_SPOT, Look
from hwm.data.toyworld.rules import CHANGE_AT, RECIPES, TURN_SEC, Script

REACH_SEC = 0.3
"""Time a hand takes from where it is to the object."""
CARRY_SEC = 0.3
"""Time the object then takes to the working place, and back at the end of the step."""
RETURN_SEC = 0.35
"""Time a hand takes back to its resting place."""


class GazeState(NamedTuple):
    """Where the person looks."""

    object_index: np.ndarray
    """[S] int64: index of the target among the take's objects, -1 for the neutral place; changes as the turn begins."""
    turned: np.ndarray
    """[S] bool: the gaze rests on an object (False at the neutral place and within a turn)."""
    exo: np.ndarray
    """[S, 2] float64: attended point, exo units, with fixation jitter."""
    ego: np.ndarray
    """[S, 2] float64: attended point, ego units before panning, with fixation jitter."""
    head: np.ndarray
    """[S, 2] float64: attended point, exo units, without jitter: the head does not tremble."""
    pan: np.ndarray
    """[S, 2] float64: displacement of the ego camera, ego units."""


class ObjectState(NamedTuple):
    """How far each object is from its place: 0 but for the one in use."""

    exo: np.ndarray
    """[S, objects, 2] float64, exo units."""
    ego: np.ndarray
    """[S, objects, 2] float64, ego units."""


class HandState(NamedTuple):
    """Where the two hands are; hand 0 is on the left of the exo view (the person's right hand)."""

    exo: np.ndarray
    """[S, 2 hands, 2] float64, exo units."""
    ego: np.ndarray
    """[S, 2 hands, 2] float64, ego units before panning."""
    tools: tuple[tuple[str, str], ...]
    """[S][2 hands]: what each hand holds while it works: `spoon`, `knife` or nothing."""


def smooth(progress: np.ndarray) -> np.ndarray:
    """Ease in and out: 0 at 0 and below, 1 at 1 and above."""
    clipped = np.clip(progress, 0.0, 1.0)
    return clipped * clipped * (3.0 - 2.0 * clipped)


def waves(times_sec: np.ndarray, phases: np.ndarray, rates_hz: tuple[float, ...]) -> np.ndarray:
    """Sum of sines, [S, 2], of unit size: a jitter that is a function of time, not of the frame count."""
    angles = 2 * np.pi * times_sec[:, None, None] * np.array(rates_hz) + phases[None]
    return np.sin(angles).mean(axis=-1)


def objects_at(script: Script, look: Look, times_sec: np.ndarray) -> ObjectState:
    """Where the objects are: each step brings its own to the working place and puts it back."""
    carried = np.zeros((len(times_sec), len(look.kinds)))
    for item, start, end in zip(script.steps, script.starts_sec, script.ends_sec, strict=True):
        there = smooth((times_sec - start - REACH_SEC) / CARRY_SEC)
        carried[:, item] += there - smooth((times_sec - end + CARRY_SEC) / CARRY_SEC)
    exo, ego = (np.array(spot) - base for spot, base in ((EXO_SPOT, look.exo_base), (EGO_SPOT, look.ego_base)))
    return ObjectState(carried[..., None] * exo, carried[..., None] * ego)


def _attended(points: np.ndarray, shifts: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The point [S, 2] of one object a time (-1: the neutral place), wherever the object is by then."""
    shifts = np.concatenate([shifts, np.zeros_like(shifts[:, :1])], axis=1)
    return points[index] + shifts[np.arange(len(index)), index]


def gaze_at(script: Script, look: Look, times_sec: np.ndarray) -> GazeState:
    """Gaze target and point at each time."""
    turns = script.turns_sec
    # A turn shows from the first moment *after* it begins.
    count = np.searchsorted(turns, times_sec, side="left")
    objects = np.array((-1, *script.gaze_objects))
    now, before = objects[count], objects[np.maximum(count - 1, 0)]
    begun = np.concatenate([[-np.inf], turns])[count]
    progress = smooth((times_sec - begun) / TURN_SEC)[:, None]
    shifts = objects_at(script, look, times_sec)
    views = ((look.exo_points, shifts.exo), (look.ego_points, shifts.ego))
    old, new = ([_attended(points, shift, index) for points, shift in views] for index in (before, now))
    head, ego = (start + progress * (goal - start) for start, goal in zip(old, new, strict=True))
    jitter = look.gaze_jitter * waves(times_sec, look.gaze_phases, (0.7, 1.9, 3.1))
    pan = look.ego_follow * (ego - look.ego_points[-1]) + look.ego_sway * waves(times_sec, look.ego_phases, (0.3, 0.8))
    turned = (now >= 0) & (times_sec - begun >= TURN_SEC)
    return GazeState(now, turned, head + jitter, ego + jitter, head, pan)


def _motion(kind: str, seconds: np.ndarray) -> np.ndarray:
    """Periodic movement of a working hand around its place, [S, 2] of unit size."""
    turn = 2 * np.pi * seconds
    if kind == "stir":
        return np.stack([np.cos(2.0 * turn), 0.5 * np.sin(2.0 * turn)], axis=-1)
    if kind == "cut":
        return np.stack([0.2 * np.sin(2.4 * turn), np.sin(2.4 * turn)], axis=-1)
    return np.stack([0.9 * np.sin(1.2 * turn), -0.6 * np.abs(np.sin(1.2 * turn))], axis=-1)


def _hand_track(
    script: Script, look: Look, hand: int, rest: np.ndarray, grips: np.ndarray, shifts: np.ndarray, size: float,
    times_sec: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """One hand in one view, [S, 2]: rest, reach from wherever it is, fetch, work, put back, return."""
    steps = RECIPES[script.recipe].steps
    position = np.broadcast_to(rest, (len(times_sec), 2)).copy()
    origin, last_end, last_place = rest, -np.inf, rest
    for index, item in enumerate(script.steps):
        if look.hand_of[item] != hand:
            continue
        start, end = script.starts_sec[index], script.ends_sec[index]
        back = float(smooth(np.array([(start - last_end) / RETURN_SEC]))[0])
        origin = last_place + back * (rest - last_place)
        at_work = end - start - REACH_SEC - 2 * CARRY_SEC
        worked = np.clip(times_sec - start - REACH_SEC - CARRY_SEC, 0.0, at_work)
        work = size * _motion(steps[item].motion, worked)
        at_rest = _motion(steps[item].motion, np.zeros(1))[0] * size
        reach = smooth((times_sec - start) / REACH_SEC)[:, None]
        place = grips[item] + shifts[:, item] + work - at_rest
        last_place = grips[item] + size * _motion(steps[item].motion, np.array([at_work]))[0] - at_rest
        leave = smooth((times_sec - end) / RETURN_SEC)[:, None]
        track = origin + reach * (place - origin) + leave * (rest - place)
        position = np.where((times_sec >= start)[:, None], track, position)
        last_end = end
    return position


def hands_at(script: Script, look: Look, times_sec: np.ndarray) -> HandState:
    """Both hands in both views at each time."""
    shifts = objects_at(script, look, times_sec)
    views = ((look.exo_rest, look.exo_grips, shifts.exo, 0.028), (look.ego_rest, look.ego_grips, shifts.ego, 0.034))
    exo, ego = (
        [_hand_track(script, look, hand, rest[hand], grips, shift, size, times_sec) for hand in (0, 1)]
        for rest, grips, shift, size in views
    )
    return HandState(np.stack(exo, axis=1), np.stack(ego, axis=1), _tools(script, look, times_sec))


def _tools(script: Script, look: Look, times_sec: np.ndarray) -> tuple[tuple[str, str], ...]:
    held = np.full((len(times_sec), 2), "", dtype="<U5")
    for item, start, end in zip(script.steps, script.starts_sec, script.ends_sec, strict=True):
        tool = RECIPES[script.recipe].steps[item].tool
        at_work = (times_sec >= start + REACH_SEC + CARRY_SEC) & (times_sec < end - CARRY_SEC)
        held[at_work, look.hand_of[item]] = tool
    return tuple((str(left), str(right)) for left, right in held)


def looks_at(script: Script, num_objects: int, times_sec: np.ndarray) -> np.ndarray:
    """Look of each object, [S, objects] bool: it changes at 60 % of each step that uses it."""
    changed = np.zeros((len(times_sec), num_objects), dtype=bool)
    for item, start, end in zip(script.steps, script.starts_sec, script.ends_sec, strict=True):
        changed[:, item] ^= times_sec >= start + CHANGE_AT * (end - start)
    return changed


def step_at(script: Script, times_sec: np.ndarray) -> np.ndarray:
    """Index in the recipe of the step that is going on, [S] int64, -1 between steps."""
    current = np.full(len(times_sec), -1)
    for item, start, end in zip(script.steps, script.starts_sec, script.ends_sec, strict=True):
        current[(times_sec >= start) & (times_sec < end)] = item
    return current
