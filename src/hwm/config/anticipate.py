"""Stage 2: annotations, what may be seen before a step, the probe; `hwm anticipate CONFIG`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hwm.config.base import GazelleConfig, Part, RunConfig, TokenConfig


class AnnotationConfig(Part):
    """Where the KeyStep annotations and their videos are."""

    train: Path
    """`keystep_train.json`."""
    val: Path
    """`keystep_val.json`."""
    videos: Path
    """Dataset root that holds `takes/`, or any folder with videos named after the takes."""
    takes: Path | None = None
    """`takes.json`; null finds the videos by name below `videos`."""
    view: str = "ego"
    """`ego` (the Aria RGB stream, any Aria number) or the name of an exo camera, e.g. `cam01`; never a fallback."""
    resolution: Literal["full", "448"] = "full"
    """`448` reads `frame_aligned_videos/downscaled/448`."""


class ProtocolConfig(Part):
    """What may be seen before a step, and how far ahead it must be named."""

    id: Literal["start-minus-tau/v1", "legacy-end-minus-tau"] = "start-minus-tau/v1"
    """`legacy-end-minus-tau` reproduces the released V-JEPA 2 harness, whose clips show the action."""
    horizon_sec: float = Field(default=1.0, gt=0)
    """τ at validation: the last observed frame is at or before start − τ."""
    train_horizon_sec: tuple[float, float] = (0.75, 1.5)
    """Range τ is drawn from in training."""
    num_steps: int = Field(default=8, ge=1)
    """Observed latent steps, on the time grid of stage 1; the part before time 0 is padded and masked."""

    @model_validator(mode="after")
    def _ordered(self) -> "ProtocolConfig":
        low, high = self.train_horizon_sec
        if not 0 < low <= high:
            raise ValueError(f"train_horizon_sec must be 0 < lowest <= highest, found ({low}, {high})")
        return self


class ProbeConfig(Part):
    """The attentive pooler and linear head, and the sweep over them."""

    inputs: Literal["context", "future", "context+future"] = "context+future"
    """What the probe reads: observed latents, imagined latents, or both."""
    gaze_point: bool = False
    """Adds one token a step: its latents pooled where Gazelle's heat map says people look."""
    num_queries: int = Field(default=1, ge=1)
    """Learned queries of the pooler."""
    depth: int = Field(default=1, ge=1)
    """Pooler blocks, the cross-attention block included (upstream: 4)."""
    num_heads: int = Field(default=16, ge=1)
    """Attention heads of the pooler."""
    lrs: tuple[float, ...] = (1e-3, 3e-4)
    """Learning rates of the sweep."""
    weight_decays: tuple[float, ...] = (1e-2,)
    """Weight decays of the sweep."""
    num_views: int = Field(default=2, ge=1)
    """Horizons drawn for each training segment, fixed over epochs; features are computed once for each."""
    num_epochs: int = Field(default=20, ge=1)
    """Passes over the training segments (each epoch reads one view of each)."""
    warmup_epochs: float = Field(default=1.0, ge=0)
    """Epochs of linear warm-up."""
    batch_size: int = Field(default=32, ge=1)
    """Segments a step."""
    holdout_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the training takes that chooses the winner of the sweep; validation is never used for that."""


class AnticipateConfig(RunConfig):
    """Stage 2: `hwm anticipate CONFIG --checkpoint RUN_OR_FILE`."""

    checkpoint: Path | None = None
    """Stage-1 run folder, checkpoint folder or saved model; `--checkpoint` sets it."""
    annotations: AnnotationConfig
    protocol: ProtocolConfig = ProtocolConfig()
    probe: ProbeConfig = ProbeConfig()
    gazelle: GazelleConfig | None = None
    """Gazelle of `probe.gaze_point` where the world model takes no gaze; null uses the world model's own."""
    tokens: TokenConfig = TokenConfig()

    @model_validator(mode="after")
    def _gazelle_is_used(self) -> "AnticipateConfig":
        if self.gazelle is not None and not self.probe.gaze_point:
            raise ValueError("gazelle is only used by probe.gaze_point, which is false")
        return self
