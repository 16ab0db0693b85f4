"""V-JEPA 2's own encoder and masked predictor as a `Foresight`: the baseline without gaze and without stage 1.

A clip of F frames is encoded as a whole; the masked predictor then names the latents at the start of the key step, or
some seconds beyond. Source: `AnticipativeWrapper` of facebookresearch/vjepa2 (`evals/action_anticipation_frozen`).
Features are its tokens: the encoder's latents as they are, then predictions in the layer-normed space. As there, frames
before the start of the video are its first frame, and they count like any other.

Encoding a clip as a whole lets every latent see the end of the clip. That is no peeking: the clip ends before the start
minus τ, and nothing but this clip is read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from hwm.config import AnticipateConfig, VJEPA2BackboneConfig
from hwm.data.exclusions import Exclusion
from hwm.data.transforms import normalise
from hwm.data.video import VideoInfo
from hwm.engine.assemble import VJEPA2Pair, load_vjepa2_pair
from hwm.engine.compiling import compile_blocks
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import check_precision
from hwm.errors import ConfigError
from hwm.models.masked_predictor import anticipate, predicted_steps, skipped_steps
from hwm.models.world_model import TimeGrid
from hwm.tokens.features import (
    FeaturePart,
    FeatureRequest,
    Features,
    Inputs,
    Patches,
    patches_read,
    store_features,
    tokens_read,
)
from hwm.tokens.source import decode_batches
from hwm.weights.files import hash_tensors


class VJEPA2Foresight:
    """See `Foresight`.

    Args:
        pair: the frozen models, on `device`.
        config: clip, mask token and positions.
        inputs: which steps the probe reads.
        patches: what it reads of their patches.
        batch_size: clips encoded at once.
        device: where the models are.
        num_workers: processes that decode ahead.
    """

    def __init__(
        self,
        pair: VJEPA2Pair,
        config: VJEPA2BackboneConfig,
        inputs: Inputs,
        patches: Patches,
        batch_size: int,
        device: torch.device,
        num_workers: int,
    ) -> None:
        if (pair.predictor is None) != (inputs == "context"):
            raise ValueError("there must be a masked predictor exactly where its predictions are read")
        self._pair, self._config, self._inputs = pair, config, inputs
        self._patches: Patches = patches
        self._batch_size, self._device, self._num_workers = batch_size, device, num_workers

    @property
    def fps(self) -> float:
        """Frames a second of a clip."""
        return self._config.fps

    @property
    def facts(self) -> dict[str, Any]:
        """Weight files, settings and the padding policy."""
        settings = self._config.model_dump(mode="json", exclude={"encoder", "predictor"})
        policies = {"inputs": self._inputs, "padding": "clamped to frame 0"}
        return {"weights": self._pair.weights, "backbone": settings | policies}

    def compile(self, warn: Callable[[str], None]) -> None:
        """See `Foresight`."""
        compile_blocks(self._pair.encoder, warn)
        if self._pair.predictor is not None:
            compile_blocks(self._pair.predictor, warn)

    @property
    def seen(self) -> None:
        """Not recorded: V-JEPA 2's training videos are not named."""
        return None

    @property
    def trained_steps(self) -> None:
        """Not recorded: the masked predictor fills places of one clip, whose length is the recipe's own."""
        return None

    def prepare(self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None]) -> tuple[Exclusion, ...]:
        """Nothing to do: clips are decoded when they are encoded."""
        on_progress(len(videos))
        return ()

    def record(self, log: RunLog, videos: Mapping[str, Sequence[VideoInfo]]) -> None:
        """Nothing to say of single videos."""

    def features(
        self,
        sets: Mapping[str, Sequence[FeatureRequest]],
        folder: Path,
        on_progress: Callable[[int], None],
        num_slots: int | None = None,
    ) -> dict[str, Features]:
        """See `Foresight`.

        Raises:
            DataError: a clip cannot be decoded; the message names the video.
            ConfigError: a clip does not divide into tubelets, a target lies beyond the predictor's positions, or the
                clips give other steps than `num_slots`.
        """
        done, features = 0, {}
        for name, requests in sets.items():
            features[name] = store_features(
                folder / f"features-{name}.npy",
                len(requests),
                self._parts(requests),
                lambda count, before=done: on_progress(before + count),
            )
            done += len(requests)
            found = features[name].tokens_STND.shape[1]
            if num_slots not in (None, found):
                raise ConfigError("the probe was trained on other steps", expected=str(num_slots), found=str(found))
        return features

    def frozen_sha256(self) -> dict[str, str]:
        """Hashes of the encoder and of the masked predictor, if there is one."""
        models = {"encoder": self._pair.encoder, "masked_predictor": self._pair.predictor}
        return {name: hash_tensors(model.state_dict()) for name, model in models.items() if model is not None}

    @torch.inference_mode()
    def read_out(
        self, video_BRFYX: Float[Tensor, "b 3 f y x"], horizons_sec: Sequence[float]
    ) -> Float[Tensor, "b t n d"]:
        """What the probe reads of normalised clips: F/2 encoded steps, then the predicted ones, as `probe.inputs` says.

        Raises:
            ConfigError: the clip does not divide into tubelets, or a target lies beyond the predictor's positions.
        """
        encoder, predictor = self._pair.encoder, self._pair.predictor
        rows, columns = encoder.spec.grid(*video_BRFYX.shape[-2:])
        tokens = z_BLD = encoder(video_BRFYX)
        if predictor is not None:
            self.check_positions(video_BRFYX.shape[2], max(horizons_sec))
            config = self._config
            tokens = anticipate(
                predictor,
                z_BLD,
                horizons_sec,
                config.fps,
                (rows, columns),
                encoder.spec.tubelet_size,
                config.num_output_frames,
                config.num_rounds,
                config.mask_index,
            )
        if self._inputs == "future":
            tokens = tokens[:, z_BLD.shape[1] :]
        return tokens.unflatten(1, (-1, rows * columns))

    def check_positions(self, num_frames: int, horizon_sec: float) -> None:
        """Refuse a target beyond the positions that the predictor was built for; upstream cannot reach those either.

        Args:
            num_frames: frames of the clip.
            horizon_sec: the longest horizon; a shorter one has nearer targets.

        Raises:
            ConfigError: a target lies beyond `position_frames`.
        """
        config, tubelet = self._config, self._pair.encoder.spec.tubelet_size
        skipped = skipped_steps(horizon_sec, config.fps, tubelet)
        steps = num_frames // tubelet + skipped + predicted_steps(config.num_output_frames, tubelet)
        if steps > config.position_frames // tubelet:
            raise ConfigError(
                "the masked predictor would be asked beyond the positions it was built for",
                expected=f"targets within {config.position_frames} frames (backbone.position_frames)",
                found=f"a clip of {num_frames} frames, then {horizon_sec:g} s at {config.fps:g} frames a second: "
                f"targets up to frame {steps * tubelet}",
                fix="shorten protocol.num_steps or the horizons, lower backbone.fps, or raise backbone.position_frames "
                "and say so where you report a number",
            )

    def _parts(self, requests: Sequence[FeatureRequest]) -> Iterator[FeaturePart]:
        grid = TimeGrid(self._config.fps, "frame", self._config.encoder.resolution, None)
        rows = [
            list(range(first, min(first + self._batch_size, len(requests))))
            for first in range(0, len(requests), self._batch_size)
        ]
        plan = [[requests[row].clip for row in group] for group in rows]
        for group, (pixels, valid_BF) in zip(
            rows, decode_batches(plan, grid, self._num_workers, self._device), strict=True
        ):
            frames_BFYXR = clamp_to_first(pixels.frames_SFYXR[:, :, 0], valid_BF)
            video_BRFYX = normalise(frames_BFYXR.to(self._device, non_blocking=True)).transpose(1, 2)
            tokens = self.read_out(video_BRFYX, [requests[row].ahead_sec for row in group])
            tokens = tokens_read(tokens, None, self._patches)
            valid_BT = torch.ones(tokens.shape[:2], dtype=torch.bool)
            yield FeaturePart(group, tokens, valid_BT, gaze_known_BT=torch.zeros_like(valid_BT))


def clamp_to_first(
    frames_BFYXR: UInt8[Tensor, "b f y x 3"], valid_BF: Bool[Tensor, "b f"]
) -> UInt8[Tensor, "b f y x 3"]:
    """Frames before time 0 become the frame at time 0: the first valid one of their clip."""
    first_B1 = (~valid_BF).sum(dim=1, keepdim=True)
    source_BF = torch.maximum(torch.arange(frames_BFYXR.shape[1]), first_B1)
    return frames_BFYXR[torch.arange(len(frames_BFYXR))[:, None], source_BF]


def open_vjepa2_foresight(
    config: AnticipateConfig, backbone: VJEPA2BackboneConfig, device: torch.device
) -> VJEPA2Foresight:
    """V-JEPA 2's encoder and, unless only its latents are read, its masked predictor.

    Raises:
        ConfigError: settings that do not fit the models, or targets beyond the predictor's positions.
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    inputs, num_frames = config.probe.inputs, config.protocol.num_steps
    precisions = {name: getattr(backbone, name).precision for name in ("encoder", "predictor")}
    check_precision(device, {f"backbone.{name}.precision": precision for name, precision in precisions.items()})
    pair = load_vjepa2_pair(backbone, with_predictor=inputs != "context")
    tubelet = pair.encoder.spec.tubelet_size
    if num_frames % tubelet:
        raise ConfigError(
            "the clip does not divide into tubelets",
            expected=f"protocol.num_steps (frames of the clip) as a multiple of {tubelet}",
            found=str(num_frames),
        )
    for model in (pair.encoder, pair.predictor):
        if model is not None:
            model.to(device)
    probe = config.probe
    foresight = VJEPA2Foresight(
        pair, backbone, inputs, patches_read(probe.pooler), probe.batch_size, device, config.runtime.num_workers
    )
    if pair.predictor is not None:
        protocol = config.protocol
        longest = max(protocol.horizon_sec, protocol.train_horizon_sec[1], *protocol.curve_sec)
        foresight.check_positions(num_frames, longest + protocol.beyond_start_sec)
    return foresight
