"""Stage 1: `hwm pretrain CONFIG`."""

from typing import Literal

from pydantic import Field, model_validator

from hwm.config.base import (
    ClipDataConfig,
    EncoderConfig,
    Gaze,
    GazeControl,
    GazeFilesConfig,
    GazelleConfig,
    OptimConfig,
    Part,
    PredictorConfig,
    RunConfig,
    TokenConfig,
)


class LossConfig(Part):
    """Weights of the stage-1 loss."""

    rollout_steps: int = Field(default=2, ge=1)
    """Steps the predictor is rolled out over its own output in training, gradients through."""
    rollout_weight: float = Field(default=1.0, ge=0)
    """Weight of the rolled-out L1 beside the teacher-forced L1."""
    scene_weight: float = Field(default=0.1, ge=0)
    """Weight of the L1 on the predicted scene tokens (only where gaze is on)."""
    gaze_dropout: float = Field(default=0.15, ge=0, le=1)
    """Probability that a clip, or a suffix of it, loses its gaze in training."""


class PretrainConfig(RunConfig):
    """Stage 1: `hwm pretrain CONFIG`."""

    encoder: EncoderConfig = EncoderConfig()
    target_encoder: EncoderConfig | None = None
    """Encoder of the targets; null uses `encoder` itself (one copy in memory)."""
    gazelle: GazelleConfig = GazelleConfig()
    gaze: Gaze = "estimated"
    """`estimated` conditions on Gazelle's scene tokens, `measured` on eye tracking; `none` trains without gaze."""
    gaze_control: GazeControl = "none"
    """Puts something else in the place of the scene tokens: `shuffled`, `time-shuffled`, `mean` and `dinov2` are what
    gaze must beat, `future` is an oracle that sees the next step. Stage 2 takes it over with the world model."""
    gaze_files: GazeFilesConfig = GazeFilesConfig()
    validation_gaze: Literal["estimated", "measured"] | None = None
    """Whose gaze splits the validation's skill into near gaze and elsewhere; null is the gaze that the model is given.
    A model without gaze can so be judged by the same map as one with it; it is never shown this gaze."""
    data: ClipDataConfig
    tokens: TokenConfig = TokenConfig()
    predictor: PredictorConfig = PredictorConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    log_every: int = Field(default=20, ge=1)
    """Optimiser steps between lines of `metrics.jsonl` (windowed means)."""
    validate_every: int = Field(default=500, ge=1)
    """Optimiser steps between validations."""
    save_every: int = Field(default=500, ge=1)
    """Optimiser steps between checkpoints."""
    keep_last: int = Field(default=3, ge=1)
    """Checkpoints kept."""

    @model_validator(mode="after")
    def _fits(self) -> "PretrainConfig":
        if self.loss.rollout_steps >= self.data.num_steps:
            raise ValueError(
                f"loss.rollout_steps ({self.loss.rollout_steps}) must be below data.num_steps ({self.data.num_steps})"
            )
        if self.tokens.source == "cached" and self.data.augment is not None and not self.tokens.views:
            raise ValueError(
                "data.augment needs fresh crops (tokens.source=live), or tokens.views: fixed ones in the cache"
            )
        if self.tokens.views and (self.tokens.source != "cached" or self.data.augment is None):
            raise ValueError(
                "tokens.views counts augmented crops in the cache: set tokens.source=cached and data.augment"
            )
        if "measured" in (self.gaze, self.validation_gaze) and self.gaze_files.folder is None:
            raise ValueError("measured gaze needs gaze_files.folder: where the eye tracker's files are")
        if self.gaze_control != "none" and self.gaze == "none":
            raise ValueError(f"gaze_control={self.gaze_control} replaces scene tokens, and gaze=none has none")
        if self.gaze_control == "dinov2" and self.gaze != "estimated":
            raise ValueError("gaze_control=dinov2 needs gaze=estimated: the features are of Gazelle's DINOv2")
        return self
