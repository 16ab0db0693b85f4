"""`hwm pretrain CONFIG`: stage 1, the gaze-conditioned world model.

Videos → frozen encoder and Gazelle (or an eye tracker's files) → tokens → the predictor learns the next latents
(teacher-forced and rolled out). Only the predictor, its scene projection and its gate are trained. Validation is on
other videos and is told as skill: 1 − error / error of copying the last step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hwm.config import ClipDataConfig, PretrainConfig
from hwm.data.batches import StepBatches
from hwm.data.clips import ClipPlan, ClipRequest, VideoSet, find_videos, fixed_box
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_files import GazeFiles
from hwm.data.video import VideoInfo
from hwm.engine.assemble import CHECKPOINTS, PREDICTOR, Seer, load_frozen_encoder, new_world, predictor_hash
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.optim import adamw, clip_gradients, raise_if_not_finite, scheduled_lr, set_lr
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, start
from hwm.engine.waiting import Waited
from hwm.errors import DataError
from hwm.losses import PredictorLosses
from hwm.models.objectives import drop_gaze, predictor_losses
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.tokens.extraction import Crops, centre_only
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import TokenBatch, TokenSource, open_source


class PretrainResult(NamedTuple):
    """What stage 1 made."""

    folder: Path
    validation: dict[str, float]
    predictor_sha256: str


class Stage1Training(nn.Module):
    """The predictor and its loss as one forward pass, which is what data parallelism can wrap."""

    def __init__(self, predictor: GazePredictor, config: PretrainConfig) -> None:
        super().__init__()
        self.predictor = predictor
        self._loss = config.loss

    def forward(self, batch: TokenBatch, target_BTND: Tensor, known_BT: Tensor) -> PredictorLosses:
        """Stage-1 losses of a batch; see `predictor_losses`."""
        return predictor_losses(
            self.predictor,
            batch.z_BTND,
            target_BTND,
            batch.scene_BTNG,
            known_BT,
            batch.valid_BT,
            rollout_steps=self._loss.rollout_steps,
            rollout_weight=self._loss.rollout_weight,
            scene_weight=self._loss.scene_weight,
        )


def run(config: PretrainConfig, resume: bool = True) -> PretrainResult:
    """Train, or go on training, the world model of one configuration.

    Args:
        config: the run; its folder is `config.folder / config.name`.
        resume: go on from the newest checkpoint of the folder if there is one; else start anew.

    Raises:
        HwmError: videos, weights or settings that cannot be used; a loss that is not finite; a damaged run folder.
    """
    # Runtime and run folder
    fabric = start(config.runtime)
    with RunLog.open(config, "pretrain", resume=resume, is_writer=fabric.is_global_zero) as log, StopFlag() as stop:
        # Frozen encoders and the predictor
        world, weights = new_world(config)
        world.to(fabric.device)
        log.record(weights=weights)
        source = open_source(
            config.tokens, world.observer, world.grid, weights, fabric.device, config.runtime.num_workers
        )
        if config.gaze == "measured":
            source = _measured(source, config, world)
        targets = _target_source(config, fabric)

        # Data
        train, val = load_videos(config, log, [source] + ([targets] if targets else []))
        if isinstance(source, MeasuredSource):
            source.record(log, {"train": train, "val": val})
        plan = ClipPlan(
            train, config.data.fps, config.data.num_steps, config.data.augment, config.seed, config.tokens.views
        )
        fixed = ClipPlan(val, config.data.fps, config.data.num_steps, None, config.seed).validation()

        # Optimiser, resume
        optimizer = adamw(world.predictor, config.optim.lr, config.optim.weight_decay, config.optim.betas)
        store = CheckpointStore(log.folder / CHECKPOINTS, config.keep_last, is_writer=fabric.is_global_zero)
        first_step = log.resume_from(store, {PREDICTOR: world.predictor}, optimizer)
        training, fabric_optimizer = fabric.setup(Stage1Training(world.predictor, config), optimizer)
        assert isinstance(fabric_optimizer, torch.optim.Optimizer)

        # Loop
        num_steps = config.optim.num_steps
        batches = StepBatches(
            plan, config.optim.batch_size, first_step, num_steps, fabric.global_rank, fabric.world_size
        )
        tokens = Waited(_with_targets(source, targets, batches))
        validation: dict[str, float] = {}
        with Progress(f"stage 1 {config.name}", total=num_steps, done=first_step) as bar:
            for step, (batch, target) in enumerate(tokens, start=first_step):
                set_lr(fabric_optimizer, scheduled_lr(config.optim, step))
                rng = rng_for(config.seed, "gaze dropout", step, fabric.global_rank)
                known = drop_gaze(batch.scene_known_BT, config.loss.gaze_dropout, rng)
                losses: PredictorLosses = training(batch, target, known)
                fabric.backward(losses.total)
                raise_if_not_finite(world.predictor, losses.total, f"step {step}")
                norm = clip_gradients(world.predictor, config.optim.clip_norm, f"step {step}")
                fabric_optimizer.step()
                fabric_optimizer.zero_grad(set_to_none=True)
                named = {f"train/{name}": value.item() for name, value in losses._asdict().items()}
                log.add(step + 1, named | {"train/gradient_norm": norm, "train/gate": world.predictor.gate.item()})
                bar.advance(loss=named["train/total"])
                done = step + 1
                if done % config.log_every == 0 or done == num_steps:
                    log.flush(done)
                    log.write_timings(done, {"train/data_wait": tokens.share()})
                if done % config.validate_every == 0 or done == num_steps:
                    validation = validate(world.predictor, source, targets, fixed, config)
                    log.write(done, {f"val/{name}": value for name, value in validation.items()})
                stopping = stop.agreed(fabric)
                if done % config.save_every == 0 or done == num_steps or stopping:
                    log.save(store, done, {PREDICTOR: world.predictor}, optimizer)
                if stopping and done < num_steps:
                    raise SystemExit(EXIT_STOPPED)
        digest = predictor_hash(world.predictor)
        if not validation:  # the run was already whole
            validation = validate(world.predictor, source, targets, fixed, config)
        log.record(predictor_sha256=digest, validation=validation)
        return PretrainResult(log.folder, validation, digest)


def load_videos(
    config: PretrainConfig, log: RunLog, sources: Sequence[TokenSource]
) -> tuple[tuple[VideoInfo, ...], tuple[VideoInfo, ...]]:
    """Training and validation videos that every source can use; what is left out is recorded with its reason.

    Raises:
        DataError: none is left, a video is in both, or the data are not those of the manifest.
    """
    found = find_parts(config.data, log)
    crops = training_crops(config)
    return _prepared("train", found["train"], log, sources, crops), _prepared("val", found["val"], log, sources)


def find_parts(data: ClipDataConfig, log: RunLog) -> dict[str, VideoSet]:
    """The videos of `data.train` and `data.val`.

    Raises:
        DataError: none is left, a video is in both, or the data are not those of the manifest.
    """
    hold_to_manifest(data.manifest, log)
    shortest = (data.num_steps - 1) / data.fps
    found = {part: find_videos(getattr(data, part), data.glob, shortest, data.manifest) for part in ("train", "val")}
    both = sorted(
        {str(v.path.resolve()) for v in found["train"].videos} & {str(v.path.resolve()) for v in found["val"].videos}
    )
    if both:
        raise DataError(
            f"{len(both)} videos are in data.train and in data.val",
            expected="validation on other videos",
            found=", ".join(both[:3]),
            fix="take them out of one of the two lists",
        )
    return found


def training_crops(config: PretrainConfig) -> Crops:
    """The crops of a training video that a cache must hold: its augmented views, or else the centre square."""
    augment, seed, num_views = config.data.augment, config.seed, config.tokens.views
    if augment is None or not num_views:
        return centre_only
    return lambda video: tuple(dict.fromkeys(fixed_box(video, augment, seed, view) for view in range(num_views)))


def _prepared(
    part: str, found: VideoSet, log: RunLog, sources: Sequence[TokenSource], crops: Crops = centre_only
) -> tuple[VideoInfo, ...]:
    unusable: dict[str, Exclusion] = {}
    for source in sources:
        with Progress(f"{part} videos", total=len(found.videos)) as bar:
            unusable |= {exclusion.item: exclusion for exclusion in source.prepare(found.videos, bar.set, crops)}
    videos = tuple(video for video in found.videos if str(video.path) not in unusable)
    excluded = [*found.excluded, *unusable.values()]
    log.record_coverage(f"{part} videos", expected=found.expected, used=len(videos), excluded=excluded)
    if not videos:
        raise DataError(f"no {part} video can be decoded", found="; ".join(e.reason for e in excluded[:3]))
    return videos


def _measured(source: TokenSource, config: PretrainConfig, world: WorldModel) -> MeasuredSource:
    assert config.gaze_files.folder is not None, "the configuration lets no measured gaze pass without a folder"
    files = GazeFiles(config.gaze_files.folder, config.gaze_files)
    return MeasuredSource(source, files, world, scene=True, point=False)


def target_seer(config: PretrainConfig) -> Seer | None:
    """What turns frames into targets; None where the encoder is its own target.

    Raises:
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    if config.target_encoder is None or config.target_encoder == config.encoder:
        return None
    loaded = load_frozen_encoder(config.target_encoder)
    grid = TimeGrid(config.data.fps, config.data.step, config.target_encoder.resolution, None)
    return Seer(Observer(loaded.module, None), grid, {"encoder": loaded.sha256})


def _target_source(config: PretrainConfig, fabric: Fabric) -> TokenSource | None:
    """Latents of another target encoder; None where the encoder is its own target."""
    seer = target_seer(config)
    if seer is None:
        return None
    observer = seer.observer.to(fabric.device)
    return open_source(config.tokens, observer, seer.grid, seer.weights, fabric.device, config.runtime.num_workers)


def _with_targets(
    source: TokenSource, targets: TokenSource | None, batches: Sequence[list[ClipRequest]]
) -> "zip[tuple[TokenBatch, Tensor]]":
    """Batches and the latents that are to be predicted."""
    if targets is None:
        pairs = ((batch, batch.z_BTND) for batch in source.batches(batches))
        return pairs  # type: ignore[return-value]
    return zip(source.batches(batches), (batch.z_BTND for batch in targets.batches(batches)), strict=True)


@torch.no_grad()
def validate(
    predictor: GazePredictor,
    source: TokenSource,
    targets: TokenSource | None,
    requests: Sequence[ClipRequest],
    config: PretrainConfig,
) -> dict[str, float]:
    """Errors on fixed clips of other videos, beside those of copying the last step.

    Returns:
        `l1`, `copy_l1` and `skill` one step ahead with the true past; `skill_k` for each step k of a roll-out over
        the second half of the clip. Skill is 1 − error / error of the copy.
    """
    predictor.eval()
    batch_size = config.optim.batch_size
    chunks = [list(requests[first : first + batch_size]) for first in range(0, len(requests), batch_size)]
    observed = config.data.num_steps - config.data.num_steps // 2
    horizon = config.data.num_steps - observed
    sums = {name: torch.zeros(horizon + 1, dtype=torch.float64) for name in ("error", "copy")}
    for batch, target in _with_targets(source, targets, chunks):
        z, scene, _, valid, scene_known, _ = batch
        forced, _ = predictor.teacher_forced(z, scene, scene_known, valid)
        past = (x[:, :observed] if x is not None else None for x in (z, scene, scene_known, valid))
        z_past, scene_past, known, valid_past = past
        assert z_past is not None
        rolled = predictor.rollout(z_past, scene_past, horizon, known, valid_past)
        error = (rolled.z_BKND - target[:, observed:]).abs().mean(dim=(0, 2, 3))
        copied = (target[:, observed - 1 : observed] - target[:, observed:]).abs().mean(dim=(0, 2, 3))
        one_step = (forced.z_BTND[:, :-1] - target[:, 1:]).abs().mean(), (target[:, :-1] - target[:, 1:]).abs().mean()
        for name, rolled_sum, single in (("error", error, one_step[0]), ("copy", copied, one_step[1])):
            sums[name] += len(z) * torch.cat([single[None], rolled_sum]).double().cpu()
    predictor.train()
    error, copied = (sums[name] / len(requests) for name in ("error", "copy"))
    skill = 1 - error / copied
    result = {"l1": float(error[0]), "copy_l1": float(copied[0]), "skill": float(skill[0])}
    return result | {f"skill_{k}": float(skill[k]) for k in range(1, horizon + 1)}
