"""`hwm pretrain CONFIG`: stage 1, the gaze-conditioned world model.

Videos → frozen encoder and Gazelle (or an eye tracker's files) → tokens → the predictor learns the next latents
(teacher-forced and rolled out). Only the predictor, its scene projection and its gate are trained. Validation is on
other videos and is told as skill: 1 − error / error of copying the last step.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hwm.config import PretrainConfig
from hwm.engine.assemble import CHECKPOINTS, PREDICTOR, new_world, predictor_hash, shared_hash
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.logged import read_metrics
from hwm.engine.optim import adamw, clip_gradients, scheduled_lr, set_lr
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, start
from hwm.engine.waiting import Waited
from hwm.evaluation.collapse import collapse_monitors
from hwm.evaluation.skill_by_take import write_errors
from hwm.losses import PredictorLosses
from hwm.models.objectives import drop_gaze, predictor_losses
from hwm.models.predictor import GazePredictor
from hwm.pipelines.pretrain_data import open_data, record_training_videos, set_mean_scene
from hwm.pipelines.validation import Validation, forecast_gaze, validate
from hwm.terminal import counted
from hwm.tokens.controls import control_facts, fixed_clips
from hwm.tokens.source import TokenBatch


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
    fabric = start(config.runtime, divides=True)
    with RunLog.open(config, "pretrain", resume=resume, is_writer=fabric.is_global_zero) as log, StopFlag() as stop:
        # Frozen encoders, the predictor and the data
        world, weights = new_world(config)
        world.to(fabric.device)
        world.predictor.stack.recompute = config.runtime.recompute_activations
        log.record(weights=weights, **control_facts(config.gaze_control))
        data = open_data(config, world, weights, fabric, log, stop)

        # Optimiser, resume
        log.record(initial_sha256=shared_hash(world.predictor))
        optimizer = adamw(world.predictor, config.optim.lr, config.optim.weight_decay, config.optim.betas)
        store = CheckpointStore(log.folder / CHECKPOINTS, config.keep_last, is_writer=fabric.is_global_zero)
        first_step = log.resume_from(store, {PREDICTOR: world.predictor}, optimizer)
        record_training_videos(data, log, is_new=first_step == 0, is_writer=fabric.is_global_zero)
        set_mean_scene(world, data, log, is_new=first_step == 0, is_writer=fabric.is_global_zero)
        learner = Learner(world.predictor, optimizer, config, fabric)

        def validated(done: int) -> Validation:
            found = validate(world, data.held_out, data.targets, data.fixed, config)
            log.write(done, {f"val/{name}": value for name, value in found.scores.items()})
            return found

        # Loop
        num_steps = config.optim.num_steps
        tokens = Waited(data.train_batches(config, first_step, fabric))
        watch = CollapseWatch(world.predictor, log)
        validation: Validation | None = None
        if _validates(config, first_step) and not _was_validated(log.folder, first_step):
            validation = validated(first_step)
        with Progress(f"stage 1 {config.name}", total=num_steps, done=first_step) as bar:
            for step, (batch, target) in enumerate(tokens, start=first_step):
                rng = rng_for(config.seed, "gaze dropout", step, fabric.global_rank)
                known = drop_gaze(batch.scene_known_BT, config.loss.gaze_dropout, rng)
                named = learner.update(step, batch, target, known)
                done = step + 1
                is_logged = done % config.log_every == 0 or done == num_steps
                if is_logged:
                    named |= watch.look(done, batch, target, known)
                log.add(done, named)
                bar.advance(loss=named["train/total"])
                if is_logged:
                    log.flush(done)
                    log.write_timings(done, {"train/data_wait": tokens.share()})
                stopping = stop.agreed(fabric)
                if done % config.save_every == 0 or done == num_steps or stopping:
                    log.save(store, done, {PREDICTOR: world.predictor}, optimizer)
                if _validates(config, done):  # after saving, which its failure then leaves
                    validation = validated(done)
                if stopping and done < num_steps:
                    raise SystemExit(EXIT_STOPPED)

        # Scores
        digest = predictor_hash(world.predictor)
        if validation is None:  # the run was already whole
            validation = validate(world, data.held_out, data.targets, data.fixed, config)
        _warn_of_unknown_gaze(config, validation, len(data.fixed), log)
        for_readout = fixed_clips(data.train, config.data.fps)
        forecasts = forecast_gaze(world, data.source, data.gaze_truths, for_readout, data.fixed, config)
        scores_sha256 = write_errors(log.folder, validation.by_take) if fabric.is_global_zero else None
        log.record(
            predictor_sha256=digest, validation=validation.scores, gaze_forecast=forecasts,
            world_scores_sha256=scores_sha256,
        )  # fmt: skip
        return PretrainResult(log.folder, validation.scores, digest)


def _warn_of_unknown_gaze(config: PretrainConfig, validation: Validation, num_clips: int, log: RunLog) -> None:
    """Says so where skill was to be told by place, and no clip of the validation says where somebody looks."""
    wanted = config.gaze != "none" or config.validation_gaze is not None
    if (
        wanted
        and "skill_1" in validation.scores
        and not {"near/skill_1", "elsewhere/skill_1"} & validation.scores.keys()
    ):
        log.warn(
            "validation tells no skill near gaze and elsewhere: gaze is known at no imagined step of its "
            f"{counted(num_clips, 'clip')}"
        )


def _validates(config: PretrainConfig, done: int) -> bool:
    """Whether the run validates after so many steps."""
    return done > 0 and (done % config.validate_every == 0 or done == config.optim.num_steps)


def _was_validated(folder: Path, done: int) -> bool:
    """Whether a run that goes on was validated where it was saved; it may have ended between the two."""
    return any(line["step"] == done and "val/l1" in line for line in read_metrics(folder))


class Learner:
    """The predictor, its loss and its optimiser as one step at a time, on each process of a run.

    Args:
        predictor: what is trained.
        optimizer: made over its parameters.
        config: loss, schedule and clipping.
        fabric: where and on how many processes.
    """

    def __init__(
        self, predictor: GazePredictor, optimizer: torch.optim.Optimizer, config: PretrainConfig, fabric: Fabric
    ) -> None:
        self._predictor, self._optim, self._fabric = predictor, config.optim, fabric
        self._training, wrapped = fabric.setup(Stage1Training(predictor, config), optimizer)
        assert isinstance(wrapped, torch.optim.Optimizer)
        self._optimizer = wrapped

    def update(self, step: int, batch: TokenBatch, target_BTND: Tensor, known_BT: Tensor) -> dict[str, float]:
        """One optimiser step: its losses, the norm of its gradient before clipping, and the gate after it.

        Raises:
            RunError: the loss or a gradient is not finite (before the step that would spread it).
        """
        set_lr(self._optimizer, scheduled_lr(self._optim, step))
        losses: PredictorLosses = self._training(batch, target_BTND, known_BT)
        self._fabric.backward(losses.total)
        named = clip_gradients(self._predictor, losses._asdict(), self._optim.clip_norm, f"step {step}")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        named["gate"] = self._predictor.gate.item()
        return {f"train/{name}": value for name, value in named.items()}


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
    def look(self, step: int, batch: TokenBatch, target_BTND: Tensor, known_BT: Tensor) -> dict[str, float]:
        """The monitors of one batch, as metrics; below its bound one warns on the terminal and in `run.json`."""
        said, _ = self._predictor.teacher_forced(batch.z_BTND, batch.scene_BTNG, known_BT, batch.valid_BT)
        predicted_LD, target_LD = said.z_BTND[:, :-1].flatten(0, 2), target_BTND[:, 1:].flatten(0, 2)
        monitors = collapse_monitors(predicted_LD, target_LD)
        for name, text in monitors.alarms().items():
            if name not in self._told:
                self._told.add(name)
                self._log.warn(f"step {step}: {text}")
        return {f"train/{name}": value for name, value in monitors._asdict().items()}
