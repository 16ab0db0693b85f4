"""What may be seen before a key step, and how far ahead it must be named: all observed clips of stage 2 come from here.

In: start and end of a segment, a horizon τ and a time grid (step i is at i / fps seconds). Out: an `Observation`, the
grid steps that are seen, or an `Exclusion`. `start-minus-tau/v1` guards every sample: last observed time <= start - τ.
`legacy-end-minus-tau` reproduces the released V-JEPA 2 harness, whose clips end τ before the action's *end* and so
show the action (upstream issue 173); `shows_action` says so for each sample.
"""

import math
from typing import NamedTuple

import numpy as np

from hwm.data.exclusions import Exclusion
from hwm.errors import DataError

START_MINUS_TAU = "start-minus-tau/v1"
LEGACY_END_MINUS_TAU = "legacy-end-minus-tau"
PROTOCOLS = (START_MINUS_TAU, LEGACY_END_MINUS_TAU)
"""Ids that are stamped into every result."""


class Observation(NamedTuple):
    """The grid steps that are seen: first_step..last_step, both included."""

    first_step: int
    """Negative where the window begins before the video: those steps are padding and must be masked."""
    num_steps: int
    last_step: int
    last_time_sec: float
    """last_step / fps: nothing later is seen."""
    num_future: int
    """K: steps to imagine, from last_step to the step's start (legacy: its end) or some seconds beyond; at least 1."""
    shows_action: bool
    """True if frames of the step itself may be seen: never under `start-minus-tau/v1`."""

    @property
    def num_padded(self) -> int:
        """Steps before time 0, 0..num_steps - 1."""
        return max(0, -self.first_step)


def observe_before(
    start_sec: float,
    end_sec: float,
    horizon_sec: float,
    fps: float,
    num_steps: int,
    protocol: str,
    item: str = "segment",
    beyond_sec: float = 0.0,
) -> Observation | Exclusion:
    """The steps that may be seen before a segment.

    Args:
        start_sec: when the key step starts.
        end_sec: when it ends; used by `legacy-end-minus-tau` only.
        horizon_sec: τ > 0.
        fps: grid steps a second.
        num_steps: steps in the window.
        protocol: an id of `PROTOCOLS`.
        item: what the segment is called in an `Exclusion` or an error.
        beyond_sec: how far past the start imagination goes on, >= 0; nothing more is seen.

    Returns:
        The observation; an `Exclusion` where nothing at all may be seen, because the anchor lies before time 0.

    Raises:
        DataError: an unknown protocol, senseless numbers, or (the guard) an observed time after the anchor.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"unknown protocol {protocol!r}", expected=" or ".join(PROTOCOLS))
    finite = all(math.isfinite(sec) for sec in (start_sec, end_sec, beyond_sec))
    if not (finite and horizon_sec > 0 and fps > 0 and num_steps >= 1 and beyond_sec >= 0):
        raise DataError(
            f"cannot place an observation before {item}",
            expected="horizon > 0, fps > 0, num_steps >= 1, beyond >= 0 and finite times",
            found=f"horizon {horizon_sec}, fps {fps}, num_steps {num_steps}, start {start_sec}, end {end_sec}, "
            f"beyond {beyond_sec}",
        )
    named_sec = start_sec if protocol == START_MINUS_TAU else end_sec
    anchor_sec = named_sec - horizon_sec
    if anchor_sec < 0:
        side = "starts" if protocol == START_MINUS_TAU else "ends"
        return Exclusion(item, f"{side} before the horizon")
    last_step = last_step_at(anchor_sec, fps)
    last_time_sec = last_step / fps
    # Half up, not Python's half to even, so that K does not depend on whether the step's number is odd. A horizon below
    # half a step would round to 0: one step is imagined then, because the future is what the probe reads.
    num_future = max(1, math.floor((named_sec + beyond_sec - last_time_sec) * fps + 0.5))
    observation = Observation(
        first_step=last_step - num_steps + 1,
        num_steps=num_steps,
        last_step=last_step,
        last_time_sec=last_time_sec,
        num_future=num_future,
        shows_action=last_time_sec > start_sec,
    )
    guard(observation, start_sec, end_sec, horizon_sec, protocol, item)
    return observation


def guard(
    observation: Observation, start_sec: float, end_sec: float, horizon_sec: float, protocol: str, item: str = "segment"
) -> None:
    """Refuse an observation that sees more than its protocol allows. Cheap; call it wherever a sample is made.

    Raises:
        DataError: the last observed time is after start - τ (legacy: after end - τ).
    """
    named_sec = start_sec if protocol == START_MINUS_TAU else end_sec
    if not observation.last_time_sec <= named_sec - horizon_sec:
        raise DataError(
            f"the observation of {item} looks into the future",
            expected=f"frames up to {named_sec - horizon_sec:.6f} s (protocol {protocol}, horizon {horizon_sec:g} s)",
            found=f"frames up to {observation.last_time_sec:.6f} s",
            fix="please report this as a bug",
        )


def last_step_at(time_sec: float, fps: float) -> int:
    """The largest i >= 0 with i / fps <= time_sec, exactly so in floats (time_sec * fps may round past an integer)."""
    step = math.floor(time_sec * fps)
    while step > 0 and step / fps > time_sec:
        step -= 1
    while (step + 1) / fps <= time_sec:
        step += 1
    return step


def draw_horizon(horizon_range_sec: tuple[float, float], seed: int, epoch: int, index: int) -> float:
    """τ of a training sample, uniform in a range: a pure function of (seed, epoch, index)."""
    low, high = horizon_range_sec
    # A fifth word keeps the stream apart from those of `hwm.data.clips`.
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, index, 0, 1]))
    return float(rng.uniform(low, high))
