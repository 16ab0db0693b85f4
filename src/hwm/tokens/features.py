"""What the probe reads: observed and imagined latents of each segment, computed once by the frozen world model.

    clip requests + number of steps to imagine → features [S, T, N, D] float16 on disk, valid and gaze known [S, T]

T = context steps (if asked for) and then future steps (if asked for), each right-aligned: the last context slot is the
last observed step, the last future slot is the step at which the key step starts. Unused slots are zero and invalid.
The array is memory-mapped, so that its size is bounded by the disk; its size is known before it is computed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hwm.data.clips import ClipRequest
from hwm.models.world_model import WorldModel
from hwm.tokens.source import TokenBatch, TokenSource

Inputs = Literal["context", "future", "context+future"]


class FeatureRequest(NamedTuple):
    """One sample: the observed clip and how many steps lie between its last step and the start of the key step."""

    clip: ClipRequest
    num_future: int


class Features(NamedTuple):
    """Features of S samples; `tokens` is a float16 memory map."""

    tokens_STND: np.ndarray
    valid_ST: np.ndarray
    gaze_known_ST: np.ndarray
    """Steps whose gaze point is known; false everywhere without a gaze point."""


def num_slots(inputs: Inputs, num_context: int, max_future: int) -> int:
    """Steps the probe reads: T of `Features`."""
    return {"context": num_context, "future": max_future, "context+future": num_context + max_future}[inputs]


def compute_features(
    world: WorldModel,
    source: TokenSource,
    requests: Sequence[FeatureRequest],
    inputs: Inputs,
    gaze_point: bool,
    max_future: int,
    path: Path,
    batch_size: int,
    on_progress: Callable[[int], None],
) -> Features:
    """Observe every sample, imagine its future, and write what the probe reads to `path` (.npy, memory-mapped).

    Samples are sorted by the number of steps to imagine, so that a batch rolls out one length; the result is in the
    order of `requests` and does not depend on the batch size beyond floating-point rounding.

    Args:
        world: the frozen world model.
        source: tokens on the model's device.
        requests: the samples; all clips have the same number of steps, `num_future` ≤ `max_future`.
        inputs: which latents to keep.
        gaze_point: append one token a step, the latents pooled by the gaze weights of that step (imagined steps: by
            those of the last observed step); the patch axis is then N + 1 long. Zeros where gaze is unknown.
        max_future: future slots.
        path: file to write.
        batch_size: samples a batch.
        on_progress: called with the number of samples done.
    """
    num_context = requests[0].clip.num_steps
    slots = num_slots(inputs, num_context, max_future)
    by_length = sorted(range(len(requests)), key=lambda index: requests[index].num_future)
    batches = [group for group in _equal_runs(by_length, requests, batch_size)]
    tokens: np.ndarray | None = None
    valid_ST, known_ST = (np.zeros((len(requests), slots), dtype=bool) for _ in range(2))
    done = 0
    for group, batch in zip(
        batches, source.batches([[requests[i].clip for i in group] for group in batches]), strict=True
    ):
        parts, valid, known = _read_out(world, batch, inputs, gaze_point, requests[group[0]].num_future, max_future)
        if tokens is None:
            shape = (len(requests), slots, *parts.shape[2:])
            tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        tokens[group] = parts.to(torch.float16).cpu().numpy()
        valid_ST[group], known_ST[group] = valid.cpu().numpy(), known.cpu().numpy()
        done += len(group)
        on_progress(done)
    assert tokens is not None
    tokens.flush()
    return Features(tokens, valid_ST, known_ST)


def _equal_runs(order: list[int], requests: Sequence[FeatureRequest], batch_size: int) -> list[list[int]]:
    """Cut an ordered list into batches of one `num_future`."""
    runs: list[list[int]] = []
    for index in order:
        last = runs[-1] if runs else []
        if last and len(last) < batch_size and requests[last[0]].num_future == requests[index].num_future:
            last.append(index)
        else:
            runs.append([index])
    return runs


def _read_out(
    world: WorldModel, batch: TokenBatch, inputs: Inputs, gaze_point: bool, num_future: int, max_future: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [B, T, N, D] of one batch, their validity [B, T], and where their gaze point is known [B, T]."""
    parts, valid, known = [], [], []
    assert not gaze_point or batch.gaze_BTN is not None, "a gaze point was asked of tokens without gaze"
    gaze = batch.gaze_BTN if gaze_point else None
    gaze_known_BT = batch.gaze_known_BT & gaze_point
    scene_BTNG = batch.scene_BTNG if world.has_gaze else None  # gaze may be there for the probe alone
    if inputs != "future":
        parts.append(with_gaze_point(batch.z_BTND, gaze))
        valid.append(batch.valid_BT)
        known.append(gaze_known_BT)
    if inputs != "context":
        imagined = world.imagine(
            batch.z_BTND, scene_BTNG, num_future, known_BT=batch.scene_known_BT, valid_BT=batch.valid_BT
        ).z_BKND
        imagined = with_gaze_point(imagined, None if gaze is None else gaze[:, -1:])
        missing = max_future - num_future
        parts.append(torch.nn.functional.pad(imagined, (0, 0, 0, 0, missing, 0)))
        present = torch.arange(max_future, device=imagined.device) >= missing
        valid.append(present.expand(imagined.shape[0], -1))
        known.append(valid[-1] & gaze_known_BT[:, -1:])
    return torch.cat(parts, dim=1), torch.cat(valid, dim=1), torch.cat(known, dim=1)


def with_gaze_point(
    z_BTND: Float[Tensor, "b t n d"], gaze_BTN: Float[Tensor, "b #t n"] | None
) -> Float[Tensor, "b t n_out d"]:
    """The latents with one more token a step: their mean weighted by where people look; unchanged without weights."""
    if gaze_BTN is None:
        return z_BTND
    point_BT1D = (z_BTND * gaze_BTN[..., None]).sum(dim=2, keepdim=True)
    return torch.cat([z_BTND, point_BT1D], dim=2)
