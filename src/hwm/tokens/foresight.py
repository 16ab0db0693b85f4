"""One interface to what stage 2 foresees: frozen models that turn observed clips into what the probe reads.

    open_foresight(config, device)   → the world model of stage 1, or V-JEPA 2's own encoder and masked predictor
    foresight.features(sets, …)      → features of each set, on disk

The pipeline never knows which it has.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from hwm.config import AnticipateConfig, HwmBackboneConfig, VJEPA2BackboneConfig
from hwm.data.exclusions import Exclusion
from hwm.data.seen_videos import SeenVideos
from hwm.data.video import VideoInfo
from hwm.engine.runlog import RunLog
from hwm.tokens.features import FeatureRequest, Features
from hwm.tokens.vjepa2_foresight import open_vjepa2_foresight
from hwm.tokens.world_foresight import open_world_foresight


@runtime_checkable
class Foresight(Protocol):
    """Frozen models that observe a clip and say what comes next, as latents."""

    @property
    def fps(self) -> float:
        """Steps a second of the time grid on which clips are observed."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What `run.json` says of it: weight files, settings, policies (JSON values only)."""
        ...

    def compile(self, warn: Callable[[str], None]) -> None:
        """Run the blocks of the frozen models through `torch.compile`; see `hwm.engine.compiling`."""
        ...

    @property
    def seen(self) -> SeenVideos | None:
        """The videos that the frozen models were trained on; None where nobody recorded them."""
        ...

    @property
    def trained_steps(self) -> int | None:
        """Steps of the clips that the roll-out was trained on; None without a roll-out, or where nobody recorded it."""
        ...

    def prepare(self, videos: Sequence[VideoInfo], on_progress: Callable[[int], None]) -> tuple[Exclusion, ...]:
        """Make everything ready that is done once a video; videos that cannot be used, with reasons."""
        ...

    def record(self, log: RunLog, videos: Mapping[str, Sequence[VideoInfo]]) -> None:
        """Write to `run.json` what depends on the videos of each part (`train`, `val`).

        Raises:
            DataError: a part has nothing of what is needed beside its videos.
        """
        ...

    def features(
        self,
        sets: Mapping[str, Sequence[FeatureRequest]],
        folder: Path,
        on_progress: Callable[[int], None],
        num_slots: int | None = None,
    ) -> dict[str, Features]:
        """Features of each set in the order of its requests, all with the same steps T; files `features-<set>.npy`.

        Args:
            sets: name → samples; all clips have the same number of steps.
            folder: where the files go.
            on_progress: called with the number of samples done, over all sets.
            num_slots: steps T that a trained probe reads; None takes as many as the samples need.

        Raises:
            ConfigError: the samples need other steps than `num_slots`.
        """
        ...

    def frozen_sha256(self) -> dict[str, str]:
        """Hash of the tensors of the frozen models now, by name: the same before and after, or something changed."""
        ...


def open_foresight(config: AnticipateConfig, device: torch.device) -> Foresight:
    """The frozen models that a configuration names, on a device.

    Raises:
        HwmError: no checkpoint, or weights or settings that cannot be used.
    """
    match config.backbone:
        case HwmBackboneConfig():
            return open_world_foresight(config, device)
        case VJEPA2BackboneConfig() as backbone:
            return open_vjepa2_foresight(config, backbone, device)
