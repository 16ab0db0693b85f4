"""The world model as a `Foresight`: steps seen one by one, then rolled out to the start of the key step."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hwm.config import AnticipateConfig, HwmBackboneConfig, ProbeConfig
from hwm.data.exclusions import Exclusion
from hwm.data.seen_videos import SeenVideos
from hwm.data.video import VideoInfo
from hwm.engine.assemble import Stage1, load_stage1, predictor_hash, probe_seer
from hwm.engine.compiling import compile_blocks
from hwm.engine.runlog import RunLog
from hwm.errors import ConfigError
from hwm.tokens.controls import ControlledSource, control_facts, with_gaze_control
from hwm.tokens.features import FeatureRequest, Features, RolloutKind, compute_features, future_room, patches_read
from hwm.tokens.measured import MeasuredSource, with_measured_gaze
from hwm.tokens.source import TokenSource, open_source


class WorldForesight:
    """See `Foresight`.

    Args:
        stage1: the frozen world model, on its device.
        source: tokens on that device.
        weights: sha256 of the weight files behind the tokens, by name.
        probe: what the probe reads, and how many samples make a batch.
        rollout: what stands at the steps to come.
    """

    def __init__(
        self, stage1: Stage1, source: TokenSource, weights: Mapping[str, str], probe: ProbeConfig, rollout: RolloutKind
    ) -> None:
        self._stage1, self._source, self._weights, self._probe = stage1, source, dict(weights), probe
        self._rollout: RolloutKind = rollout

    @property
    def fps(self) -> float:
        """Latent steps a second, as in stage 1."""
        return self._stage1.world.grid.fps

    @property
    def facts(self) -> dict[str, Any]:
        """Weight files, stage 1's checkpoint and its predictor's hash."""
        return {
            "weights": self._weights,
            "backbone": {"kind": "hwm", "padding": "masked", "rollout": self._rollout},
            **control_facts(self._stage1.world.grid.gaze_control, self._probe.gaze_point_control),
            "stage1": {"source": str(self._stage1.source), "predictor_sha256": self._stage1.predictor_sha256},
        }

    def compile(self, warn: Callable[[str], None]) -> None:
        """See `Foresight`."""
        compile_blocks(self._stage1.world, warn)

    @property
    def seen(self) -> SeenVideos | None:
        """Stage 1's training videos."""
        return self._stage1.seen

    @property
    def trained_steps(self) -> int | None:
        """`data.num_steps` of stage 1, where the probe reads what is rolled out."""
        rolled_out = self._rollout == "imagined" and self._probe.inputs != "context"
        return self._stage1.num_steps if rolled_out else None

    def prepare(self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None]) -> tuple[Exclusion, ...]:
        """See `TokenSource`."""
        return self._source.prepare(videos, on_progress)

    def record(self, log: RunLog, videos: Mapping[str, Sequence[VideoInfo]]) -> None:
        """See `Foresight`: stage 1's warnings, and what is known of measured and mean gaze, where they are used."""
        for text in self._stage1.warnings:
            log.warn(text)
        if isinstance(self._source, MeasuredSource | ControlledSource):
            self._source.record(log, videos)

    def features(
        self,
        sets: Mapping[str, Sequence[FeatureRequest]],
        folder: Path,
        on_progress: Callable[[int], None],
        num_slots: int | None = None,
    ) -> dict[str, Features]:
        """See `Foresight`; there are as many future steps as the farthest key step of all sets needs."""
        probe, done, features = self._probe, 0, {}
        max_future = max(request.num_future for requests in sets.values() for request in requests)
        if num_slots is not None:
            num_context = next(requests[0].clip.num_steps for requests in sets.values())
            max_future = future_room(probe.inputs, num_context, max_future, num_slots)
        for name, requests in sets.items():
            features[name] = compute_features(
                self._stage1.world,
                self._source,
                requests,
                probe.inputs,
                probe.gaze_point != "none",
                max_future,
                folder / f"features-{name}.npy",
                probe.batch_size,
                lambda count, before=done: on_progress(before + count),
                self._rollout,
                patches_read(probe.pooler),
            )
            done += len(requests)
        return features

    def frozen_sha256(self) -> dict[str, str]:
        """Hash of the predictor."""
        return {"predictor": predictor_hash(self._stage1.world.predictor)}


def open_world_foresight(config: AnticipateConfig, device: torch.device) -> WorldForesight:
    """The world model of a configuration's checkpoint.

    Raises:
        ConfigError: no checkpoint, a gaze point without a Gazelle, or measured gaze in an exo view.
        DataError: the folder of gaze files is not there.
        RunError: the checkpoint is no stage 1, or its weight files have changed.
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    if config.checkpoint is None:
        raise ConfigError("no stage-1 checkpoint was given", fix="hwm anticipate CONFIG --checkpoint runs/NAME")
    stage1 = load_stage1(config.checkpoint)
    stage1.world.to(device)
    seer = probe_seer(stage1, config.probe.gaze_point, config.gazelle)
    source = open_source(
        config.tokens, seer.observer.to(device), seer.grid, seer.weights, device, config.runtime.num_workers
    )
    source = with_measured_gaze(source, config, stage1.world)
    source = with_gaze_control(source, stage1.world, config.probe.gaze_point_control, config.seed)
    assert isinstance(config.backbone, HwmBackboneConfig), "the world model is the backbone hwm"
    return WorldForesight(stage1, source, seer.weights, config.probe, config.backbone.rollout)
