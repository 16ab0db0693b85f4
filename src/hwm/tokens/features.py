"""What the probe reads: observed and imagined latents of each segment, computed once by the frozen world model.

    clip requests + number of steps to imagine → features [S, T, N, D] float16 on disk, valid and gaze known [S, T]

T = context steps (if asked for) and then future steps (if asked for), each right-aligned: the last context slot is the
last observed step, the last future slot the last imagined one, where the key step starts or some seconds beyond. Unused
slots are zero and invalid.
N counts the patches of a step, or one token with their mean where the probe reads no more, and then the gaze point.
The array is memory-mapped, so that its size is bounded by the disk; its size is known before it is computed.
"""

import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hwm.data.clips import ClipRequest
from hwm.errors import ConfigError, RunError, naming
from hwm.models.step_probe import Pooler
from hwm.models.world_model import WorldModel
from hwm.terminal import readable_bytes
from hwm.tokens.source import TokenBatch, TokenSource

Inputs = Literal["context", "future", "context+future"]
RolloutKind = Literal["imagined", "copy-last"]
Patches = Literal["all", "mean"]

CPU_BATCH_NUMBERS = 1 << 21
"""Most numbers of a batch's observed latents on a CPU: 8 MB in float32. Larger arrays leave the caches, and the system
hands out their memory page by page, anew for each."""


class FeatureRequest(NamedTuple):
    """One sample: the observed clip and how far ahead of it the future is foreseen."""

    clip: ClipRequest
    num_future: int
    """Steps of the time grid from the clip's last step to the last one that is foreseen."""
    ahead_sec: float
    """The clip's last step lies at least this long before that: τ, and what is foreseen beyond the start."""


class Features(NamedTuple):
    """Features of S samples; `tokens` is a float16 memory map."""

    tokens_STND: np.ndarray
    valid_ST: np.ndarray
    gaze_known_ST: np.ndarray
    """Steps whose gaze point is known; false everywhere without a gaze point."""


class FeaturePart(NamedTuple):
    """Features of some samples: their rows, tokens, which steps count and whose gaze point is known."""

    rows: list[int]
    tokens_BTND: Tensor
    valid_BT: Tensor
    gaze_known_BT: Tensor


def future_room(inputs: Inputs, num_context: int, needed: int, num_slots: int) -> int:
    """Future slots of a trained probe that reads `num_slots` steps; `needed` where it reads no future.

    Raises:
        ConfigError: the probe was trained for a shorter horizon.
    """
    if inputs == "context":
        return needed
    room = num_slots - (num_context if inputs == "context+future" else 0)
    if room < needed:
        raise ConfigError(
            "the saved probe was trained for a shorter horizon",
            expected=f"at most {room} imagined steps",
            found=str(needed),
            fix="lower protocol.horizon_sec, or train a probe with a wider protocol.train_horizon_sec",
        )
    return room


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
    rollout: RolloutKind = "imagined",
    patches: Patches = "all",
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
        batch_size: most samples a batch; on a CPU also bounded by `CPU_BATCH_NUMBERS`.
        on_progress: called with the number of samples done.
        rollout: `copy-last` puts the last observed latents at the steps to come, and imagines nothing.
        patches: `mean` keeps one token in the place of a step's patches.
    """
    by_length = sorted(range(len(requests)), key=lambda index: requests[index].num_future)
    batches = _equal_runs(by_length, requests, min(batch_size, _most_at_once(world, requests[0].clip.num_steps)))

    def parts() -> Iterator[FeaturePart]:
        plan = [[requests[i].clip for i in group] for group in batches]
        for group, batch in zip(batches, source.batches(plan), strict=True):
            num_future = requests[group[0]].num_future
            yield FeaturePart(
                group, *_read_out(world, batch, inputs, gaze_point, num_future, max_future, rollout, patches)
            )

    return store_features(path, len(requests), parts(), on_progress)


def store_features(
    path: Path, num_samples: int, parts: Iterable[FeaturePart], on_progress: Callable[[int], None]
) -> Features:
    """Write the features of all samples to a memory-mapped file as they are made.

    Args:
        path: file to write (.npy).
        num_samples: S; the rows of the parts are 0..S-1, each once.
        parts: features in any order of the rows, all of one shape [·, T, N, D].
        on_progress: called with the number of samples done.

    Raises:
        RunError: a value is not finite in float16, or the disk has no room for the file.
    """
    tokens: np.ndarray | None = None
    valid_ST, known_ST = (np.zeros((num_samples, 0), dtype=bool) for _ in range(2))
    done = 0
    for rows, tokens_BTND, valid_BT, known_BT in parts:
        if tokens is None:
            shape = (num_samples, *tokens_BTND.shape[1:])
            valid_ST, known_ST = (np.zeros(shape[:2], dtype=bool) for _ in range(2))
            with naming(path):
                tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            _reserve(path)
        half_BTND = tokens_BTND.to(torch.float16)
        if not torch.isfinite(half_BTND).all():
            raise RunError(
                "the frozen backbone gave values that float16 cannot hold",
                expected="finite latents below 65504",
                found=f"largest {tokens_BTND.abs().max().item():g} in samples {rows[0]}..{rows[-1]}",
                fix="check the weights: they may be damaged, or of another model; "
                "and the cache, if there is one: hwm extract CONFIG --verify",
            )
        tokens[rows] = half_BTND.cpu().numpy()
        valid_ST[rows], known_ST[rows] = valid_BT.cpu().numpy(), known_BT.cpu().numpy()
        done += len(rows)
        on_progress(done)
    assert tokens is not None, "there are no samples"
    tokens.flush()
    return Features(tokens, valid_ST, known_ST)


def _reserve(path: Path) -> None:
    """Take a new file's place on the disk: in a mapped file, a page that finds none would kill the process."""
    needed = path.stat().st_size
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, needed)
    except OSError as error:
        path.unlink()
        raise RunError(
            f"the features of stage 2 ({path}) cannot be written: {error.strerror}",
            expected=f"{readable_bytes(needed)} free",
            found=readable_bytes(shutil.disk_usage(path.parent).free),
            fix="free some space, or set probe.num_views lower or folder=... (of hwm predict: TMPDIR) to another disk",
        ) from error


def _most_at_once(world: WorldModel, num_steps: int) -> int:
    """Samples of a batch under `CPU_BATCH_NUMBERS`; another device takes what is asked."""
    if next(world.parameters()).device.type != "cpu":
        return sys.maxsize
    spec, side = world.observer.encoder.spec, world.grid.encoder_resolution
    return max(1, CPU_BATCH_NUMBERS // (num_steps * math.prod(spec.grid(side, side)) * spec.width))


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
    world: WorldModel,
    batch: TokenBatch,
    inputs: Inputs,
    gaze_point: bool,
    num_future: int,
    max_future: int,
    rollout: RolloutKind,
    patches: Patches,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots [B, T, N, D] of one batch, their validity [B, T], and where their gaze point is known [B, T]."""
    parts, valid, known = [], [], []
    assert not gaze_point or batch.gaze_BTN is not None, "a gaze point was asked of tokens without gaze"
    gaze = batch.gaze_BTN if gaze_point else None
    gaze_known_BT = batch.gaze_known_BT & gaze_point
    scene_BTNG = batch.scene_BTNG if world.has_gaze else None  # gaze may be there for the probe alone
    if inputs != "future":
        parts.append(tokens_read(batch.z_BTND, gaze, patches))
        valid.append(batch.valid_BT)
        known.append(gaze_known_BT)
    if inputs != "context":
        if rollout == "copy-last":
            imagined = batch.z_BTND[:, -1:].expand(-1, num_future, -1, -1)
        else:
            imagined = world.imagine(
                batch.z_BTND, scene_BTNG, num_future, known_BT=batch.scene_known_BT, valid_BT=batch.valid_BT
            ).z_BKND
        imagined = tokens_read(imagined, None if gaze is None else gaze[:, -1:], patches)
        missing = max_future - num_future
        parts.append(torch.nn.functional.pad(imagined, (0, 0, 0, 0, missing, 0)))
        present = torch.arange(max_future, device=imagined.device) >= missing
        valid.append(present.expand(imagined.shape[0], -1))
        known.append(valid[-1] & gaze_known_BT[:, -1:])
    return torch.cat(parts, dim=1), torch.cat(valid, dim=1), torch.cat(known, dim=1)


def tokens_read(
    z_BTND: Float[Tensor, "b t n d"], gaze_BTN: Float[Tensor, "b #t n"] | None, patches: Patches = "all"
) -> Float[Tensor, "b t n_out d"]:
    """What a probe reads of each step: its latents or their mean; with weights then their mean by where people look."""
    read_BTND = z_BTND if patches == "all" else z_BTND.mean(dim=2, keepdim=True)
    if gaze_BTN is None:
        return read_BTND
    return torch.cat([read_BTND, gaze_BTN[:, :, None] @ z_BTND], dim=2)


def patches_read(pooler: Pooler) -> Patches:
    """What a probe with this pooler reads of a step's patches."""
    return "all" if pooler == "attentive" else "mean"
