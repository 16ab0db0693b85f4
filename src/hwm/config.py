"""The typed, frozen configuration tree: one class a verb, one string of help a field.

Values come from three places in this order: the defaults here, a YAML recipe, dotted overrides
(`optim.lr=1e-4`). Unknown keys are errors. `hwm.recipes.load_config` does the reading; this file is the schema.
Nothing here imports torch: a wrong recipe is refused before anything heavy is loaded.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Gaze = Literal["none", "estimated", "measured"]
"""Where people look: unknown, Gazelle's estimate, or an eye tracker's measurement (ego view only)."""


class Part(BaseModel):
    """Base of every node of the tree: immutable, no unknown keys, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class EncoderConfig(Part):
    """The frozen V-JEPA 2 encoder."""

    weights: str = "mini"
    """`mini` (in the package), a folder or `.safetensors` file of ours, or a released V-JEPA 2 `.pt`."""
    key: str | None = None
    """Which state dict of a released `.pt` to read (`target_encoder`, `encoder`); null reads `target_encoder`."""
    num_heads: int | None = None
    """Attention heads, only where the file cannot tell (a released `.pt` whose width is not in the table)."""
    resolution: int = Field(default=256, ge=16)
    """Pixels of the square encoder view; must be a multiple of the patch size."""


class GazelleConfig(Part):
    """The frozen Gaze-LLE model ("Gazelle")."""

    weights: str = "mini"
    """`mini` (in the package), a folder of ours, or a released Gaze-LLE decoder `.pt`."""
    backbone: str | None = None
    """The DINOv2 `.pth` that goes with a released decoder `.pt`; null for `mini` and for folders of ours."""
    resolution: int = Field(default=448, ge=14)
    """Pixels of the square Gazelle view; must be a multiple of the backbone's patch size."""


class GazeFilesConfig(Part):
    """Files of measured gaze; read only where gaze is `measured`."""

    folder: Path | None = None
    """Dataset root with `takes/<take>/eye_gaze/`, folder of takes, or folder of CSVs named after the videos; null in
    stage 2 means `annotations.videos`."""
    ego4d_y: Literal["down", "up"] | None = None
    """Which way y of Ego4D's gaze runs (`down`: 0 at the top); it is not documented, so its files need this setting."""
    ego4d_min_confidence: float = Field(default=0.6, ge=0, le=1)
    """Samples of Ego4D's gaze below this confidence do not count."""


class AugmentConfig(Part):
    """One random crop box a clip, the same for the encoder and for Gazelle; a function of (seed, epoch, sample)."""

    scale: tuple[float, float] = (0.6, 1.0)
    """Share of the frame's area that the crop box keeps, lowest and highest."""
    ratio: tuple[float, float] = (0.75, 1.35)
    """Aspect ratio (width / height) of the crop box, lowest and highest."""


class ClipDataConfig(Part):
    """Stage-1 clips."""

    train: tuple[str, ...]
    """Videos to train on: files, folders, `.txt` lists, `.csv` lists (column `path`), in any mixture."""
    val: tuple[str, ...]
    """Videos to validate on; none may also be in `train`."""
    glob: str = "**/*"
    """Pattern of the files taken from a folder, e.g. `**/*_214-1.mp4` or `**/cam01.mp4`."""
    fps: float = Field(default=4.0, gt=0)
    """Latent steps a second, on a grid that starts at the first frame of the video."""
    step: Literal["frame", "tubelet"] = "frame"
    """`frame`: each grid frame alone, repeated to a tubelet. `tubelet`: the frame and the one half a step before it."""
    num_steps: int = Field(default=8, ge=1)
    """Latent steps in a training clip."""
    augment: AugmentConfig | None = None
    """Random crops (live tokens only); null takes the centre square."""


class PredictorConfig(Part):
    """The gaze-conditioned causal predictor."""

    width: int = 384
    """Predictor width E."""
    depth: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over E."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "PredictorConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        return self


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


class OptimConfig(Part):
    """AdamW with linear warm-up and cosine decay; no weight decay on biases and norms."""

    lr: float = Field(default=4e-4, gt=0)
    """Peak learning rate."""
    final_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    """Learning rate at the end over the peak."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Decoupled weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants."""
    warmup_steps: int = Field(default=100, ge=0)
    """Optimiser steps of linear warm-up from 0."""
    num_steps: int = Field(default=10_000, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(default=16, ge=1)
    """Clips a step over all devices."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


class RuntimeConfig(Part):
    """Where and how the run computes."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: int = Field(default=1, ge=1)
    """Processes on this machine, one a device; more than one uses DDP."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Numeric precision of training (Lightning Fabric's names); no float16, whose loss scale would skip steps."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode video ahead of training; 0 decodes in the main process."""


class TokenConfig(Part):
    """Where latents and scene tokens come from."""

    source: Literal["live", "cached"] = "live"
    """`live` decodes and encodes every clip; `cached` encodes each video once (centre square) and reads it back."""
    folder: Path | None = None
    """Folder of cached tokens; null means `$HWM_HOME/tokens`."""


class RunConfig(Part):
    """What every verb that makes a run folder shares."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: its folder is `<folder>/<name>`."""
    folder: Path = Path("runs")
    """Folder that holds run folders."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, sample order, augmentation and gaze dropout."""
    runtime: RuntimeConfig = RuntimeConfig()
    mirrors: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where `metrics.jsonl` is shown as well; each needs the extra of its name (`pip install 'hwm[wandb]'`)."""


class PretrainConfig(RunConfig):
    """Stage 1: `hwm pretrain CONFIG`."""

    encoder: EncoderConfig = EncoderConfig()
    target_encoder: EncoderConfig | None = None
    """Encoder of the targets; null uses `encoder` itself (one copy in memory)."""
    gazelle: GazelleConfig = GazelleConfig()
    gaze: Gaze = "estimated"
    """`estimated` conditions on Gazelle's scene tokens, `measured` on eye tracking; `none` trains without gaze."""
    gaze_files: GazeFilesConfig = GazeFilesConfig()
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
        if self.tokens.source == "cached" and self.data.augment is not None:
            raise ValueError("data.augment needs tokens.source=live: cached tokens hold the centre square only")
        if self.gaze == "measured" and self.gaze_files.folder is None:
            raise ValueError("gaze=measured needs gaze_files.folder: where the eye tracker's files are")
        return self


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
    gaze_point: Gaze = "none"
    """Adds one token a step, its latents pooled where people look: by Gazelle's heat map (`estimated`) or by an eye
    tracker (`measured`)."""
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

    @field_validator("gaze_point", mode="before")
    @classmethod
    def _names_its_source(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("gaze_point says where gaze comes from: none, estimated (once true) or measured")
        return value


class AnticipateConfig(RunConfig):
    """Stage 2: `hwm anticipate CONFIG --checkpoint RUN_OR_FILE`."""

    checkpoint: Path | None = None
    """Stage-1 run folder, checkpoint folder or saved model; `--checkpoint` sets it."""
    annotations: AnnotationConfig
    protocol: ProtocolConfig = ProtocolConfig()
    probe: ProbeConfig = ProbeConfig()
    gazelle: GazelleConfig | None = None
    """Gazelle of `probe.gaze_point=estimated` where the world model has none; null uses the world model's own."""
    gaze_files: GazeFilesConfig = GazeFilesConfig()
    tokens: TokenConfig = TokenConfig()

    @model_validator(mode="after")
    def _gazelle_is_used(self) -> "AnticipateConfig":
        if self.gazelle is not None and self.probe.gaze_point != "estimated":
            raise ValueError(f"gazelle is only used by probe.gaze_point=estimated, which is {self.probe.gaze_point}")
        return self


class ToyWorldConfig(Part):
    """The toy world: `hwm toyworld OUT`."""

    num_takes: int = Field(default=96, ge=2)
    """Takes in all, training and validation."""
    val_fraction: float = Field(default=0.25, gt=0, lt=1)
    """Share of takes (and of participants) in the validation split."""
    seed: int = Field(default=0, ge=0)
    """Everything is a function of it, byte for byte."""
    fps: int = Field(default=12, ge=4)
    """Frames a second of the videos."""
    height: int = Field(default=144, ge=64)
    """Rows of the exo view (16:9) and side of the square ego view, in pixels."""
    gaze: Literal["informative", "uninformative"] = "informative"
    """`uninformative` turns the head to an object drawn at random instead of the one that will be used."""


class MaskConfig(Part):
    """Multi-block masks of the masked-latent objective: blocks of patches hidden over the whole clip."""

    num_blocks: int = Field(default=4, ge=1)
    """Blocks a mask."""
    scale: tuple[float, float] = (0.1, 0.25)
    """Share of the patch grid that one block hides, lowest and highest."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Aspect ratio of a block, lowest and highest."""


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
    data: ClipDataConfig
    in_memory: bool = False
    """Decode every video once and keep its frames (centre square) in memory; for sets that fit."""
    masks: MaskConfig = MaskConfig()
    ema: tuple[float, float] = (0.99, 0.9995)
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
        if self.in_memory and self.data.augment is not None:
            raise ValueError("data.augment needs in_memory=false: frames in memory are centre squares")
        return self


class DinoConfig(Part):
    """Size of a DINOv2-architecture backbone made from scratch."""

    width: int = 96
    """Width."""
    depth: int = 4
    """Blocks."""
    num_heads: int = 4
    """Attention heads."""


class AdaptGazeConfig(RunConfig):
    """Train a Gaze-LLE-architecture model on the toy world's gaze: `hwm adapt-gaze CONFIG`."""

    world: Path
    """Folder made by `hwm toyworld`."""
    backbone: DinoConfig = DinoConfig()
    decoder_width: int = 64
    """Width of the Gaze-LLE decoder, which is the width of the scene tokens."""
    resolution: int = Field(default=224, ge=14)
    """Pixels of the square view; must be a multiple of 14."""
    heatmap_sigma: float = Field(default=0.05, gt=0, le=1)
    """Deviation of the target's Gaussian, as a share of the picture's side (Gaze-LLE: 3 of 64 pixels)."""
    optim: OptimConfig = OptimConfig(lr=1e-3, num_steps=3000, warmup_steps=200, batch_size=32)
    log_every: int = Field(default=50, ge=1)
    """Optimiser steps between lines of `metrics.jsonl`."""


class GazeScoreConfig(RunConfig):
    """Score Gazelle's heat maps against measured gaze: `hwm gaze-score CONFIG`."""

    gazelle: GazelleConfig = GazelleConfig()
    videos: tuple[str, ...]
    """Ego videos to score on: files, folders, `.txt` lists, `.csv` lists (column `path`), in any mixture."""
    prior_videos: tuple[str, ...]
    """Other ego videos, whose measured gaze makes the centre prior (its mean map)."""
    glob: str = "**/*_214-1.mp4"
    """Pattern of the files taken from a folder."""
    gaze_files: GazeFilesConfig
    fps: float = Field(default=1.0, gt=0)
    """Frames scored a second."""
    sigma: float = Field(default=0.05, gt=0, le=1)
    """Deviation of the Gaussians of the prior and of the divergence, as a share of the picture's side."""

    @model_validator(mode="after")
    def _has_gaze(self) -> "GazeScoreConfig":
        if self.gaze_files.folder is None:
            raise ValueError("gaze-score needs gaze_files.folder: where the eye tracker's files are")
        return self


class DemoConfig(Part):
    """The whole of the mission at small size: `hwm demo`."""

    folder: Path = Path("runs/demo")
    """Folder of everything the demo makes."""
    world: ToyWorldConfig = ToyWorldConfig()
    view: str = "cam01"
    """Camera of both stages."""
    pretrain: PretrainConfig
    """Stage 1, run once with gaze and once without; `data` is filled in by the demo."""
    anticipate: AnticipateConfig
    """Stage 2, run on both, with and without gaze point, and on the encoder; `annotations` is filled in by the demo."""
    num_examples: int = Field(default=6, ge=1)
    """Annotated frames in the report."""
