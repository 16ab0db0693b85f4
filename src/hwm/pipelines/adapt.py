"""`hwm adapt CONFIG`: make or adapt a V-JEPA 2 encoder by the masked-latent objective, without any label.

Videos → an encoder in `<folder>/<name>/encoder/` (the EMA target, which is what V-JEPA 2 evaluates). With `init` this
adapts a released encoder to egocentric video; without, it makes a small one from scratch, as the toy world's is.
Collapse is watched in every line of `metrics.jsonl`: deviation and effective rank of the layer-normed target features.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hwm.config import AdaptConfig
from hwm.data.batches import StepBatches
from hwm.data.clips import ClipPlan, ClipRequest, find_videos
from hwm.data.frame_bank import FrameBank
from hwm.data.masks import draw_masks
from hwm.data.open_readers import OpenReaders
from hwm.data.transforms import normalise
from hwm.engine.assemble import CHECKPOINTS, load_frozen_encoder
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.optim import adamw, clip_gradients, scheduled_lr, set_lr
from hwm.engine.progress import LateProgress, Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, seeded_weights, start
from hwm.losses import effective_rank
from hwm.models.masked_objective import MaskedLosses, masked_losses, update_target
from hwm.models.masked_predictor import MaskedPredictor, MaskedPredictorSpec
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder
from hwm.models.world_model import TimeGrid
from hwm.tokens.observe import read_pixels, step_offsets
from hwm.weights.load import save_model

MONITORED_TOKENS = 1024
"""Tokens that the effective rank is measured on: a singular value decomposition at each line of the log."""


class AdaptResult(NamedTuple):
    """The encoder that was made."""

    folder: Path
    encoder: Path


class Masked(nn.Module):
    """Everything that is trained, as one module; the target encoder follows and is saved with it."""

    def __init__(self, encoder: VJEPA2Encoder, config: AdaptConfig) -> None:
        super().__init__()
        spec, sizes = encoder.spec, config.predictor
        self.encoder = encoder
        self.predictor = MaskedPredictor(
            MaskedPredictorSpec(spec.width, sizes.width, sizes.depth, sizes.num_heads, mlp_ratio=sizes.mlp_ratio)
        )
        self.pixel_head = nn.Linear(spec.width, 3 * spec.tubelet_size * spec.patch_size**2)
        self.target = copy.deepcopy(encoder).requires_grad_(False)

    def losses(self, video_BRFYX: Tensor, keep_BL: Tensor, config: AdaptConfig) -> MaskedLosses:
        """See `masked_losses`."""
        return masked_losses(
            self.encoder,
            self.target,
            self.predictor,
            self.pixel_head,
            video_BRFYX,
            keep_BL,
            context_weight=config.context_weight,
            variance_weight=config.variance_weight,
            pixel_weight=config.pixel_weight,
        )


def run(config: AdaptConfig, resume: bool = True) -> AdaptResult:
    """Train, or go on training, an encoder.

    Args:
        config: the run; its folder is `config.folder / config.name`.
        resume: go on from the newest checkpoint of the folder if there is one; else start anew.

    Raises:
        HwmError: videos, weights or settings that cannot be used; a loss that is not finite; a damaged run folder.
    """
    fabric = start(config.runtime)
    device = fabric.device
    with RunLog.open(config, "adapt", resume=resume) as log, StopFlag() as stop:
        # Encoder
        encoder = _first_encoder(config, log)
        with seeded_weights(config.seed, "masked"):
            model = Masked(encoder, config).to(device)
        grid = model.encoder.spec.grid(config.resolution, config.resolution)

        # Data
        data = config.data
        hold_to_manifest(data.manifest, log, stop)
        shortest = (data.num_steps - 1) / data.fps
        with LateProgress("train videos probed") as told:
            found = find_videos(data.train, data.glob, shortest, data.manifest, stop.checked(told))
        log.record_coverage("train videos", expected=found.expected, used=len(found.videos), excluded=found.excluded)
        plan = ClipPlan(found.videos, data.fps, data.num_steps, data.augment, config.seed)
        read = _reader(config, plan)

        # Optimiser, resume
        optimizer = adamw(model, config.optim.lr, config.optim.weight_decay, config.optim.betas)
        store = CheckpointStore(log.folder / CHECKPOINTS, keep_last=1)
        first_step = log.resume_from(store, {"masked": model}, optimizer)

        # Loop
        num_steps = config.optim.num_steps
        batches = StepBatches(plan, config.optim.batch_size, first_step, num_steps)
        with Progress(f"adapt {config.name}", total=num_steps, done=first_step) as bar:
            for step, requests in enumerate(batches, start=first_step):
                video = _as_video(read(requests), device)
                rng = rng_for(config.seed, "masks", step)
                keep = draw_masks(len(requests), video.shape[2] // 2, grid, config.masks, rng).keep_BL
                set_lr(optimizer, scheduled_lr(config.optim, step))
                with fabric.autocast():
                    losses = model.losses(video, torch.from_numpy(keep).to(device), config)
                losses.total.backward()
                scalars = {name: value for name, value in losses._asdict().items() if value.ndim == 0}
                named = clip_gradients(model, scalars, config.optim.clip_norm, f"step {step}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                first, last = config.ema
                update_target(model.target, model.encoder, first + (last - first) * step / num_steps)
                done = step + 1
                log.add(done, {f"train/{name}": value for name, value in named.items()})
                bar.advance(loss=named["total"])
                if done % config.log_every == 0 or done == num_steps:
                    log.flush(done)
                    log.write(done, monitors(losses.target_BSD))
                stopping = stop.agreed(fabric)
                if done % config.save_every == 0 or done == num_steps or stopping:
                    log.save(store, done, {"masked": model}, optimizer)
                if stopping and done < num_steps:
                    raise SystemExit(EXIT_STOPPED)
        written = save_model(model.target, log.folder / "encoder", notes={"run": config.name, "steps": num_steps})
        log.record(encoder_sha256=written.sha256)
        return AdaptResult(log.folder, log.folder / "encoder")


def monitors(target_BSD: Tensor) -> dict[str, float]:
    """Collapse monitors: mean deviation of each feature over tokens (1 is healthy), and the effective rank."""
    tokens = target_BSD.detach().flatten(0, 1)
    return {
        "collapse/deviation": float(tokens.std(dim=0).mean()),
        "collapse/effective_rank": effective_rank(tokens[:MONITORED_TOKENS]),
    }


def _first_encoder(config: AdaptConfig, log: RunLog) -> VJEPA2Encoder:
    if config.init is not None:
        loaded = load_frozen_encoder(config.init)
        log.record(weights={"init": loaded.sha256})
        return loaded.module.requires_grad_(True).train()
    sizes = config.model
    with seeded_weights(config.seed, "encoder"):
        return VJEPA2Encoder(EncoderSpec(sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_ratio))


def _reader(config: AdaptConfig, plan: ClipPlan) -> Callable[[Sequence[ClipRequest]], Tensor]:
    """How the pixels [B, T, F, Y, X, R] of a batch are read: out of memory, or decoded clip by clip."""
    grid = TimeGrid(config.data.fps, config.data.step, config.resolution, None)
    if not config.in_memory:
        readers = OpenReaders()
        return lambda requests: torch.stack([read_pixels(r, grid, readers)[0].frames_SFYXR for r in requests])
    with Progress("decoding", total=len(plan.videos)) as bar:
        bank = FrameBank(plan.videos, grid.fps, grid.encoder_resolution, step_offsets(grid), bar.set)
    return lambda requests: torch.stack([torch.from_numpy(bank.read(request)) for request in requests])


def _as_video(pixels_BTFYXR: Tensor, device: torch.device) -> Tensor:
    """Normalised clips [B, R, 2T, Y, X]; a step of one frame shows it twice, which fills its tubelet."""
    frames = normalise(pixels_BTFYXR.to(device))
    if frames.shape[2] == 1:
        frames = frames.expand(-1, -1, 2, -1, -1, -1)
    return frames.flatten(1, 2).transpose(1, 2)
