"""The frozen parts, made or adapted: `hwm adapt CONFIG` and `hwm adapt-gaze CONFIG`."""

from typing import Annotated

from pydantic import Field, model_validator

from hwm.config.base import (
    ClipDataConfig,
    EncoderConfig,
    OptimConfig,
    Part,
    PathSetting,
    PathText,
    PredictorConfig,
    Range,
    RunConfig,
    ShareRange,
    refuse_unread,
)

_Averaging = Annotated[float, Field(ge=0, le=1)]


class MaskConfig(Part):
    """Multi-block masks of the masked-latent objective: blocks of patches hidden over the whole clip."""

    num_blocks: int = Field(default=4, ge=1)
    """Blocks a mask."""
    scale: ShareRange = (0.1, 0.25)
    """Share of the patch grid that one block hides, lowest and highest."""
    aspect: Range = (0.75, 1.5)
    """Aspect ratio of a block, lowest and highest."""


class AdaptDataConfig(ClipDataConfig):
    """Clips to adapt to."""

    val: tuple[PathText, ...] = ()
    """For `hwm data check` alone: no part of this objective is validated, and none of these videos is trained on."""


class AdaptConfig(RunConfig):
    """Adapt (or make) an encoder by the masked-latent objective: `hwm adapt CONFIG`."""

    init: EncoderConfig | None = None
    """Encoder to start from; null starts from random weights of the size in `model`."""
    model: PredictorConfig = PredictorConfig(width=128, depth=6, num_heads=4)
    """Size of the encoder made from scratch (unused with `init`)."""
    resolution: int = Field(default=128, ge=16)
    """Pixels of the square view; must be a multiple of 16."""
    predictor: PredictorConfig = PredictorConfig(width=96, depth=3, num_heads=4)
    """Size of the masked predictor, which is thrown away afterwards."""
    data: AdaptDataConfig
    in_memory: bool = False
    """Decode every video once and keep its frames (centre square) in memory; for sets that fit."""
    masks: MaskConfig = MaskConfig()
    ema: tuple[_Averaging, _Averaging] = (0.99, 0.9995)
    """Averaging constant of the target encoder, first and last step (linear between)."""
    context_weight: float = Field(default=0.5, ge=0)
    """Weight of the loss on visible patches (V-JEPA 2.1's dense loss)."""
    variance_weight: float = Field(default=0.0, ge=0)
    """Weight of the hinge that keeps each feature's deviation above 1 (VICReg)."""
    pixel_weight: float = Field(default=0.0, ge=0)
    """Weight of an auxiliary loss on the pixels of every patch; anchors very small encoders."""
    optim: OptimConfig = OptimConfig()
    log_every: int = Field(default=50, ge=1)
    """Optimiser steps between lines of `metrics.jsonl`."""
    save_every: int = Field(default=500, ge=1)
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _fits(self) -> "AdaptConfig":
        refuse_unread(self, "num_workers", "recompute_activations", "compile")
        if self.init is not None and self.init.precision != "32-true":
            raise ValueError("init.precision is of frozen encoders: this one is trained, in runtime.precision")
        if self.in_memory and self.data.augment is not None:
            raise ValueError("data.augment needs in_memory=false: frames in memory are centre squares")
        return self


class DinoConfig(Part):
    """Size of a DINOv2-architecture backbone made from scratch."""

    width: int = Field(default=96, ge=1)
    """Width."""
    depth: int = Field(default=4, ge=1)
    """Blocks."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads."""


class AdaptGazeConfig(RunConfig):
    """Train a Gaze-LLE-architecture model on the toy world's gaze: `hwm adapt-gaze CONFIG`."""

    world: PathSetting
    """Folder made by `hwm toyworld`."""
    backbone: DinoConfig = DinoConfig()
    decoder_width: int = Field(default=64, ge=16)
    """Width of the Gaze-LLE decoder, which is the width of the scene tokens."""
    resolution: int = Field(default=224, ge=14)
    """Pixels of the square view; must be a multiple of 14."""
    heatmap_sigma: float = Field(default=0.05, gt=0, le=1)
    """Deviation of the target's Gaussian, as a share of the picture's side (Gaze-LLE: 3 of 64 pixels)."""
    optim: OptimConfig = OptimConfig(lr=1e-3, num_steps=3000, warmup_steps=200, batch_size=32)
    log_every: int = Field(default=50, ge=1)
    """Optimiser steps between lines of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _fits(self) -> "AdaptGazeConfig":
        refuse_unread(self, "precision", "num_workers", "recompute_activations", "compile")
        return self
