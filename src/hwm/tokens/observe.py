"""Frames to tokens: the pixels of a clip request, and the chunked pass of the frozen observer over them.

A step i of the grid lies at i / fps seconds. `step: frame` reads the frame on screen then; `step: tubelet` also the one
half a step before it. Both views (encoder, Gazelle) come from one crop box. Steps before time 0 are padding: zeros, and
false in `valid`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import ClipRequest
from hwm.data.open_readers import OpenReaders
from hwm.data.transforms import normalise
from hwm.errors import DataError
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid

STEPS_PER_CHUNK = 64
"""Steps encoded at once: bounds the memory of a long clip, large enough to keep the matrix products busy."""
STEPS_PER_CPU_CHUNK = 4
"""The same on a CPU: rows enough for its matrix products, and what Gazelle makes of its 4,100 tokens is still small
enough for the system to hand out the same memory again; of 8 frames it comes page by page: 2.5 to 4 % of the time."""

_LEAVE_OUT = (
    "leave it out of the list or the annotations; tokens.source=cached leaves out by itself what cannot be decoded "
    "whole, and hwm data check CONFIG writes a manifest (data.manifest=..., in stage 2 annotations.manifest=...) "
    "without videos whose first, middle or last frame is broken"
)


class StepPixels(NamedTuple):
    """uint8 pixels of S steps, channels last, as the decoder gives them."""

    frames_SFYXR: Tensor
    gaze_frames_SYXR: Tensor | None


class StepTokens(NamedTuple):
    """Layer-normed tokens of S steps on the patch grid."""

    z_SND: Tensor
    scene_SNG: Tensor | None
    gaze_SN: Tensor | None
    """How much each patch is looked at; see `hwm.models.observer.gaze_weights`."""


def step_offsets(grid: TimeGrid) -> tuple[float, ...]:
    """Seconds from a step's own time to each frame it holds, oldest first; none is positive."""
    return (0.0,) if grid.step == "frame" else (-0.5 / grid.fps, 0.0)


def view_sizes(grid: TimeGrid) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of the views to read: the encoder's, then Gazelle's where there is one."""
    sides = [grid.encoder_resolution] + ([grid.gazelle_resolution] if grid.gazelle_resolution else [])
    return tuple((side, side) for side in sides)


def split_views(views: tuple[np.ndarray, ...], frames_per_step: int) -> StepPixels:
    """Sort the decoder's views [S·F, Y, X, R] into steps; Gazelle sees the last frame of each step."""
    frames = torch.from_numpy(views[0]).unflatten(0, (-1, frames_per_step))
    gaze = torch.from_numpy(views[1])[frames_per_step - 1 :: frames_per_step] if len(views) > 1 else None
    return StepPixels(frames, gaze)


def read_pixels(request: ClipRequest, grid: TimeGrid, readers: OpenReaders) -> tuple[StepPixels, Tensor]:
    """Decode one clip with the open reader of its video.

    Returns:
        The pixels of all its steps (zeros where padded) and `valid` [T], false for steps before time 0.

    Raises:
        DataError: the video cannot be read, or the clip runs past its end.
    """
    offsets = step_offsets(grid)
    steps = range(request.first_step, request.first_step + request.num_steps)
    num_padded = sum(step < 0 for step in steps)
    times = [max(0.0, step / grid.fps + offset) for step in steps if step >= 0 for offset in offsets]
    try:
        views = readers.get(request.video.path).read(times, view_sizes(grid), request.box).views
    except DataError as error:
        readers.forget(request.video.path)
        mended = f"{error.fix}; or {_LEAVE_OUT}" if error.fix else _LEAVE_OUT
        raise DataError(error.problem, expected=error.expected, found=error.found, fix=mended) from error
    padded = tuple(np.pad(view, ((num_padded * len(offsets), 0), (0, 0), (0, 0), (0, 0))) for view in views)
    return split_views(padded, len(offsets)), torch.tensor([step >= 0 for step in steps])


def encode_pixels(observer: Observer, pixels: StepPixels, device: torch.device) -> StepTokens:
    """Run the frozen observer over S steps in chunks; memory does not grow with S beyond the tokens themselves."""
    parts: list[StepTokens] = []
    size = STEPS_PER_CPU_CHUNK if device.type == "cpu" else STEPS_PER_CHUNK
    for first in range(0, pixels.frames_SFYXR.shape[0], size):
        chunk = slice(first, first + size)
        frames = _to_device(pixels.frames_SFYXR[chunk], device)
        gaze = None if pixels.gaze_frames_SYXR is None else _to_device(pixels.gaze_frames_SYXR[chunk], device)
        observed = observer(frames, gaze)
        parts.append(StepTokens(observed.z_SND, observed.scene_SNG, observed.gaze_SN))
    return join_steps(parts)


def _to_device(view: Tensor, device: torch.device) -> Tensor:
    """Bytes go over, numbers are made there; nobody waits if the pixels lie in pinned memory."""
    return normalise(view.to(device, non_blocking=True))


def join_steps(parts: Sequence[StepTokens]) -> StepTokens:
    """Chunks of steps one after another; all have a Gazelle or none has."""
    return StepTokens(
        torch.cat([part.z_SND for part in parts]),
        _joined([part.scene_SNG for part in parts]),
        _joined([part.gaze_SN for part in parts]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Optional tensors joined: None where none is there; all or none must be."""
    given = [part for part in parts if part is not None]
    assert len(given) in (0, len(parts)), "some chunks have gaze and some have not"
    return torch.cat(given) if given else None
