"""What the verbs share: the base of every node, the frozen models, clips of video, the optimiser, the run folder."""

from os.path import expanduser
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Gaze = Literal["none", "estimated", "measured"]
"""Where people look: unknown, Gazelle's estimate, or an eye tracker's measurement (ego view only)."""

GazeControl = Literal["none", "shuffled", "time-shuffled", "mean", "future", "dinov2"]
"""What stands in for the scene tokens, so that a gain can be told from a gain of anything else: nothing (`none`), those
of another video (`shuffled`), of the same clip's steps in another order (`time-shuffled`), the training videos' mean
for each patch (`mean`, a centre prior), of the next step (`future`, an oracle), or DINOv2's features (`dinov2`)."""

GazePointControl = Literal["none", "shuffled", "time-shuffled", "mean", "future"]
"""The same for the gaze weights of the probe's gaze point."""


TokenDtype = Literal["float16", "bfloat16", "int8"]
"""How cached tokens are stored."""


Precision = Literal["32-true", "bf16-mixed"]
"""Numeric precision in Lightning Fabric's names; no float16, whose loss scale would skip steps. `bf16-mixed` multiplies
in bfloat16 and keeps layer norms and the stream between blocks in float32."""


def _expanded(path: Path) -> Path:
    return Path(expanduser(path))


PathSetting = Annotated[Path, AfterValidator(_expanded)]
"""A file or folder; `~` is expanded here and nowhere else."""
PathText = Annotated[str, AfterValidator(expanduser)]
"""The same, kept as it is written otherwise."""


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be lowest, highest")
    return value


_Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ordered)]
"""Lowest and highest of something above 0."""
ShareRange = Annotated[tuple[_Share, _Share], AfterValidator(_ordered)]
"""Lowest and highest share of something: above 0, at most 1."""

_Averaging = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """Base of every node of the tree: immutable, no unknown keys, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


class EncoderConfig(Part):
    """The frozen V-JEPA 2 encoder."""

    weights: PathText = "mini"
    """`mini` (in the package), a name of `hwm weights list`, a folder or file of ours, or a released V-JEPA 2 file."""
    key: str | None = None
    """Which encoder of a released `.pt` to read; null: `ema_encoder`, else `target_encoder`, else `encoder`."""
    num_heads: int | None = Field(default=None, ge=1)
    """Attention heads, only where the file cannot tell (a released `.pt` whose width is not in the table)."""
    resolution: int = Field(default=256, ge=16)
    """Pixels of the square encoder view; must be a multiple of the patch size."""
    precision: Precision = "32-true"
    """Numeric precision of the frozen encoder; `bf16-mixed` needs a device with bfloat16. Stage 2 takes it over."""


class GazelleConfig(Part):
    """The frozen Gaze-LLE model ("Gazelle")."""

    weights: PathText = "mini"
    """`mini` (in the package), a name of `hwm weights list`, a folder of ours, or a released Gaze-LLE decoder `.pt`."""
    backbone: PathText | None = None
    """DINOv2 file, or its catalogue name, that goes with a released decoder; null for `mini` and folders of ours."""
    resolution: int = Field(default=448, ge=14)
    """Pixels of the square Gazelle view; must be a multiple of the backbone's patch size."""
    precision: Precision = "32-true"
    """Numeric precision of the frozen Gazelle, its DINOv2 included; see `EncoderConfig`."""


class GazeFilesConfig(Part):
    """Files of measured gaze; read where gaze is `measured`, and in stage 1 to score the forecast of gaze."""

    folder: PathSetting | None = None
    """Dataset root with `takes/<take>/eye_gaze/`, folder of takes, or folder of CSVs named after the videos; null in
    stage 2 means `annotations.videos`, and in a comparison the folder of stage 1."""
    ego4d_y: Literal["down", "up"] | None = None
    """Which way y of Ego4D's gaze runs (`down`: 0 at the top); it is not documented, so its files need this setting."""
    ego4d_min_confidence: float = Field(default=0.6, ge=0, le=1)
    """Samples of Ego4D's gaze below this confidence do not count."""


class AugmentConfig(Part):
    """One random crop box a clip, the same for the encoder and for Gazelle; a function of (seed, epoch, sample)."""

    scale: ShareRange = (0.6, 1.0)
    """Share of the frame's area that the crop box keeps, lowest and highest."""
    ratio: Range = (0.75, 1.35)
    """Aspect ratio (width / height) of the crop box, lowest and highest."""


class ClipDataConfig(Part):
    """Stage-1 clips."""

    train: tuple[PathText, ...]
    """Videos to train on: files, folders, `.txt` or `.csv` lists (column `path`, relative to the list), in any mix."""
    val: tuple[PathText, ...]
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
    """Random crops: fresh ones with live tokens, `tokens.views` fixed ones with cached tokens; null takes the centre
    square."""
    manifest: PathSetting | None = None
    """`data_manifest.json` of `hwm data check`, which the videos are held to; null probes the videos instead."""


class PredictorConfig(Part):
    """The gaze-conditioned causal predictor."""

    width: int = Field(default=384, ge=1)
    """Predictor width E."""
    depth: int = Field(default=12, ge=1)
    """Transformer blocks."""
    num_heads: int = Field(default=12, ge=1)
    """Attention heads."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLP over E."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "PredictorConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        return self


class OptimConfig(Part):
    """AdamW with linear warm-up and cosine decay; no weight decay on biases and norms."""

    lr: float = Field(default=4e-4, gt=0)
    """Peak learning rate."""
    final_lr_ratio: float = Field(default=0.05, ge=0, le=1)
    """Learning rate at the end over the peak."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Decoupled weight decay of matrices."""
    betas: tuple[_Averaging, _Averaging] = (0.9, 0.999)
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
    """Processes on this machine, one a device; more than one (`hwm pretrain` alone) uses DDP."""
    precision: Precision = "32-true"
    """Numeric precision of training: of the predictor, or in stage 2 of the probe. Frozen models have their own."""
    num_workers: int = Field(default=0, ge=0)
    """Both stages and extraction: processes that decode video ahead; 0 decodes in the main process."""
    recompute_activations: bool = False
    """Stage 1: activation checkpointing in the predictor; less memory, about a third more time, the same gradients."""
    compile: bool = False
    """Both stages and extraction: `torch.compile` for the transformer blocks of frozen models, and in stage 1 of the
    predictor. Where they do not compile they run as they are, and `run.json` says why. For a GPU; on a CPU it is slower
    than the kernels it replaces."""


class TokenConfig(Part):
    """Where latents and scene tokens come from."""

    source: Literal["live", "cached"] = "live"
    """`live` decodes and encodes every clip; `cached` encodes each video once (centre square) and reads it back."""
    folder: PathSetting | None = None
    """Folder of cached tokens; null means `$HWM_HOME/tokens`."""
    dtype: TokenDtype = "float16"
    """Precision of cached tokens; `int8` has one scale a token."""
    views: int = Field(default=0, ge=0)
    """Fixed augmented crops of each training video (cached tokens with `data.augment`); an epoch picks one a clip."""


class RunConfig(Part):
    """What every verb that makes a run folder shares."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run: its folder is `<folder>/<name>`."""
    folder: PathSetting = Path("runs")
    """Folder that holds run folders."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, sample order, augmentation and gaze dropout."""
    runtime: RuntimeConfig = RuntimeConfig()
    mirrors: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where `metrics.jsonl` is shown as well; each needs the extra of its name (`pip install 'hwm[wandb]'`)."""


_VERBS_OF = {
    "precision": "pretrain, anticipate and adapt",
    "num_workers": "pretrain, anticipate and extract",
    "recompute_activations": "pretrain",
    "compile": "pretrain, anticipate and extract",
}
"""Settings of `RuntimeConfig` that not all verbs read."""


def refuse_unread(config: RunConfig, *settings: str) -> None:
    """For a verb that does not read these settings of `runtime`: they must not be given in vain."""
    for name in settings:
        if getattr(config.runtime, name) != RuntimeConfig.model_fields[name].default:
            raise ValueError(f"runtime.{name} is for {_VERBS_OF[name]}")
