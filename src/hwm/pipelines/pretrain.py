"""`hwm pretrain CONFIG`: stage 1, the gaze-conditioned world model.

Videos → frozen encoder and Gazelle (or an eye tracker's files) → tokens → the predictor learns the next latents
(teacher-forced and rolled out). Only the predictor, its scene projection and its gate are trained. Validation is on
other videos and is told as skill: 1 − error / error of copying the last step.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hwm.config import ClipDataConfig, PretrainConfig
from hwm.data.batches import StepBatches
from hwm.data.clips import ClipPlan, VideoSet, find_videos, fixed_box
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_files import GazeFiles
from hwm.data.video import VideoInfo
from hwm.engine.assemble import (
    CHECKPOINTS,
    PREDICTOR,
    Seer,
    load_frozen_encoder,
    new_world,
    predictor_hash,
    shared_hash,
)
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.mean_scene import load_mean_scene, mean_scene_hash, save_mean_scene
from hwm.engine.optim import adamw, clip_gradients, raise_if_not_finite, scheduled_lr, set_lr
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, start
from hwm.engine.waiting import Waited
from hwm.errors import DataError
from hwm.evaluation.collapse import collapse_monitors
from hwm.losses import PredictorLosses
from hwm.models.objectives import drop_gaze, predictor_losses
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.pipelines.validation import forecast_gaze, validate, with_targets
from hwm.pipelines.validation_gaze import validation_source
from hwm.tokens.controls import (
    ControlledSource,
    control_facts,
    fixed_clips,
    mean_scene,
    with_gaze_control,
)
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
        world.predictor.stack.recompute = config.runtime.recompute_activations
        log.record(weights=weights, **control_facts(config.gaze_control))
        source = _token_source(config, world, weights, fabric)
        targets = _target_source(config, fabric)

        # Data
        train, val = load_videos(config, log, [source] + ([targets] if targets else []))
        if isinstance(source, MeasuredSource | ControlledSource):
            source.record(log, {"train": train, "val": val})
        plan = ClipPlan(
            train, config.data.fps, config.data.num_steps, config.data.augment, config.seed, config.tokens.views
        )
        fixed = ClipPlan(val, config.data.fps, config.data.num_steps, None, config.seed).validation()

        held_out = validation_source(config, world, weights, source, val, log, fabric.device)
        truths = _gaze_truths(source, config, world, (*train, *val))

        # Optimiser, resume
        log.record(initial_sha256=shared_hash(world.predictor))
        optimizer = adamw(world.predictor, config.optim.lr, config.optim.weight_decay, config.optim.betas)
        store = CheckpointStore(log.folder / CHECKPOINTS, config.keep_last, is_writer=fabric.is_global_zero)
        first_step = log.resume_from(store, {PREDICTOR: world.predictor}, optimizer)
        _set_mean_scene(world, source, train, log, is_new=first_step == 0, is_writer=fabric.is_global_zero)
        training, fabric_optimizer = fabric.setup(Stage1Training(world.predictor, config), optimizer)
        assert isinstance(fabric_optimizer, torch.optim.Optimizer)

        # Loop
        num_steps = config.optim.num_steps
        batches = StepBatches(
            plan, config.optim.batch_size, first_step, num_steps, fabric.global_rank, fabric.world_size
        )
        tokens = Waited(with_targets(source, targets, batches))
        watch = CollapseWatch(world.predictor, log)
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
                done = step + 1
                named = {f"train/{name}": value.item() for name, value in losses._asdict().items()}
                named |= {"train/gradient_norm": norm, "train/gate": world.predictor.gate.item()}
                is_logged = done % config.log_every == 0 or done == num_steps
                if is_logged:
                    named |= watch.look(done, batch, target, known, bar)
                log.add(done, named)
                bar.advance(loss=named["train/total"])
                if is_logged:
                    log.flush(done)
                    log.write_timings(done, {"train/data_wait": tokens.share()})
                if done % config.validate_every == 0 or done == num_steps:
                    validation = validate(world, held_out, targets, fixed, config)
                    log.write(done, {f"val/{name}": value for name, value in validation.items()})
                stopping = stop.agreed(fabric)
                if done % config.save_every == 0 or done == num_steps or stopping:
                    log.save(store, done, {PREDICTOR: world.predictor}, optimizer)
                if stopping and done < num_steps:
                    raise SystemExit(EXIT_STOPPED)
        digest = predictor_hash(world.predictor)
        if not validation:  # the run was already whole
            validation = validate(world, held_out, targets, fixed, config)
        forecasts = forecast_gaze(world, source, truths, fixed_clips(train, config.data.fps), fixed, config)
        log.record(predictor_sha256=digest, validation=validation, gaze_forecast=forecasts)
        return PretrainResult(log.folder, validation, digest)


class CollapseWatch:
    """Looks for collapse of the predictor in training, and says so once for each monitor.

    Args:
        predictor: the model.
        log: gets the warnings.
    """

    def __init__(self, predictor: GazePredictor, log: RunLog) -> None:
        self._predictor, self._log = predictor, log
        self._told: set[str] = set()

    @torch.no_grad()
    def look(
        self, step: int, batch: TokenBatch, target_BTND: Tensor, known_BT: Tensor, bar: Progress
    ) -> dict[str, float]:
        """The monitors of one batch, as metrics; below its bound one warns on the terminal and in `run.json`."""
        said, _ = self._predictor.teacher_forced(batch.z_BTND, batch.scene_BTNG, known_BT, batch.valid_BT)
        predicted_LD, target_LD = said.z_BTND[:, :-1].flatten(0, 2), target_BTND[:, 1:].flatten(0, 2)
        monitors = collapse_monitors(predicted_LD, target_LD)
        for name, text in monitors.alarms().items():
            if name not in self._told:
                self._told.add(name)
                self._log.warn(f"step {step}: {text}")
                bar.warn(f"step {step}: {text}")
        return {f"train/{name}": value for name, value in monitors._asdict().items()}


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
    # Means and read-outs of gaze are taken over the training videos' centre squares, whatever the clips' crops are.
    always = centre_only if config.gaze != "none" else lambda _: ()
    return lambda video: tuple(
        dict.fromkeys((*always(video), *(fixed_box(video, augment, seed, view) for view in range(num_views))))
    )


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


def _token_source(config: PretrainConfig, world: WorldModel, weights: Mapping[str, str], fabric: Fabric) -> TokenSource:
    """Latents and what the predictor is conditioned on: estimated, measured, or a control in their place."""
    source = open_source(config.tokens, world.observer, world.grid, weights, fabric.device, config.runtime.num_workers)
    if config.gaze == "measured":
        assert config.gaze_files.folder is not None, "the configuration lets no measured gaze pass without a folder"
        files = GazeFiles(config.gaze_files.folder, config.gaze_files)
        source = MeasuredSource(source, files, world, scene=True, point=True)
    return with_gaze_control(source, world, "none", config.seed)


def _gaze_truths(
    source: TokenSource, config: PretrainConfig, world: WorldModel, videos: Sequence[VideoInfo]
) -> dict[str, TokenSource]:
    """Sources whose gaze weights are the clips' own: Gazelle's, and an eye tracker's where there are files.

    Raises:
        DataError: a gaze file is damaged, or the folder is not there.
        ConfigError: as `GazeFiles.track`.
    """
    own = source.uncontrolled if isinstance(source, ControlledSource) else source
    if config.gaze != "estimated":
        return {} if config.gaze == "none" else {"measured": own}
    if config.gaze_files.folder is None:
        return {"estimated": own}
    files = GazeFiles(config.gaze_files.folder, config.gaze_files)
    for video in videos:  # what cannot be read is told before the training, not after it
        files.track(video)
    return {"estimated": own, "measured": MeasuredSource(own, files, world, scene=False, point=True)}


def _set_mean_scene(
    world: WorldModel, source: TokenSource, train: Sequence[VideoInfo], log: RunLog, *, is_new: bool, is_writer: bool
) -> None:
    """The mean scene token of the training videos, for the control `mean`: taken once, kept in the run folder."""
    if world.grid.gaze_control != "mean":
        return
    if not is_new:
        recorded = json.loads((log.folder / "run.json").read_text(encoding="utf-8")).get("mean_scene_sha256")
        load_mean_scene(log.folder, world.mean_scene_NG, recorded)
        return
    assert isinstance(source, ControlledSource), "the mean is a control"
    clips = fixed_clips(train, world.grid.fps)
    mean_NG = mean_scene(source.uncontrolled, clips, world.predictor.spec.scene_normed)
    world.mean_scene_NG.copy_(mean_NG)
    if is_writer:
        save_mean_scene(log.folder, mean_NG)
    log.record(mean_scene_sha256=mean_scene_hash(mean_NG))


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
