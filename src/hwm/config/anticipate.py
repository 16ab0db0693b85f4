"""Stage 2: annotations, what may be seen before a step, the probe; `hwm anticipate CONFIG`."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from hwm.config.backbone import HwmBackboneConfig, VJEPA2BackboneConfig
from hwm.config.base import (
    Gaze,
    GazeFilesConfig,
    GazelleConfig,
    GazePointControl,
    Part,
    PathSetting,
    RunConfig,
    TokenConfig,
)

_DATASET_OF = {
    "takes": "keystep",
    "view": "keystep",
    "resolution": "keystep",
    "splits": "keystep",
    "classes": "keystep",
    "label_mapping": "keystep",
    "level": "ego4d-goalstep",
    "taxonomy": "ego4d-lta",
    "sequence_length": "ego4d-lta",
    "unseen_participants": "epic-kitchens-100",
    "tail_verbs": "epic-kitchens-100",
    "tail_nouns": "epic-kitchens-100",
}
"""Settings of `AnnotationConfig` that only one data set knows."""


class AnnotationConfig(Part):
    """Which annotations, and where they and their videos are. A setting of another data set is an error."""

    dataset: Literal["keystep", "ego4d-goalstep", "ego4d-lta", "epic-kitchens-100"] = "keystep"
    """Ego-Exo4D KeyStep, Ego4D Goal-Step, Ego4D long-term anticipation (LTA) or EPIC-KITCHENS-100."""
    train: PathSetting
    """Annotations to train on: `keystep_train.json`, `fho_lta_train.json`, `EPIC_100_train.csv`, …"""
    val: PathSetting
    """Annotations to score on."""
    videos: PathSetting
    """KeyStep: the root that holds `takes/`, or a folder of videos named after takes. Others: searched at any depth."""
    manifest: PathSetting | None = None
    """`data_manifest.json` of `hwm data check`, which annotations and videos are held to; null probes the videos."""
    takes: PathSetting | None = None
    """KeyStep: `takes.json`; null finds the videos by name below `videos`."""
    view: str = "ego"
    """KeyStep: `ego` (the Aria RGB stream, any Aria number) or an exo camera, e.g. `cam01`; never a fallback."""
    resolution: Literal["full", "448"] = "full"
    """KeyStep: `448` reads `frame_aligned_videos/downscaled/448`."""
    splits: PathSetting | None = None
    """KeyStep: `splits.json`; a take that it puts into another split is excluded. Null does not look."""
    classes: Literal["full", "benchmark"] = "full"
    """KeyStep: `full` tells all `step_unique_id`s apart; `benchmark` the 278 classes of `label_mapping`."""
    label_mapping: PathSetting | None = None
    """KeyStep: `label_mapping.csv`, for `classes=benchmark`."""
    level: Literal["step", "substep"] = "step"
    """Goal-Step: which of the two nested levels is anticipated."""
    taxonomy: PathSetting | None = None
    """LTA: `fho_lta_taxonomy.json`, to name and check the labels; null takes the names of the annotations."""
    sequence_length: int = Field(default=1, ge=1)
    """LTA: how many of the following actions are named, Z; 20 for edit distance at 20."""
    unseen_participants: PathSetting | None = None
    """EPIC-KITCHENS: `EPIC_100_unseen_participant_ids_validation.csv`, for scores over these people."""
    tail_verbs: PathSetting | None = None
    """EPIC-KITCHENS: `EPIC_100_tail_verbs.csv`, for scores over rare verbs (with `tail_nouns`: and actions)."""
    tail_nouns: PathSetting | None = None
    """EPIC-KITCHENS: `EPIC_100_tail_nouns.csv`."""

    @model_validator(mode="after")
    def _fits_the_dataset(self) -> "AnnotationConfig":
        for name, dataset in _DATASET_OF.items():
            if dataset != self.dataset and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of dataset={dataset}, and dataset is {self.dataset}")
        if (self.classes == "benchmark") != (self.label_mapping is not None):
            raise ValueError(
                "classes=benchmark and label_mapping (label_mapping.csv) go together: give both or neither"
            )
        if (self.tail_verbs is None) != (self.tail_nouns is None):
            raise ValueError("tail_verbs and tail_nouns go together (a tail action has either): give both or neither")
        return self


class ProtocolConfig(Part):
    """What may be seen before a step, and how far ahead it must be named."""

    id: Literal["start-minus-tau/v1", "legacy-end-minus-tau"] = "start-minus-tau/v1"
    """`legacy-end-minus-tau` reproduces the released V-JEPA 2 harness, whose clips show the action."""
    horizon_sec: float = Field(default=1.0, gt=0)
    """τ at validation: the last observed frame is at or before start − τ."""
    curve_sec: tuple[float, ...] = ()
    """Further τ at validation: the one probe, trained on `train_horizon_sec`, is scored at each of them too."""
    train_horizon_sec: tuple[float, float] = (0.75, 1.5)
    """Range τ is drawn from in training."""
    beyond_start_sec: float = Field(default=0.0, ge=0)
    """How far past the start of the step the future is imagined on, in training and validation; nothing more is seen.
    What a look foretells, the reach and the object in the hand, comes after the start."""
    num_steps: int = Field(default=8, ge=1)
    """Observed steps on the backbone's time grid: latent steps of stage 1 (`hwm`), or frames of the clip (`vjepa2`)."""

    @model_validator(mode="after")
    def _ordered(self) -> "ProtocolConfig":
        low, high = self.train_horizon_sec
        if not 0 < low <= high:
            raise ValueError(f"train_horizon_sec must be 0 < lowest <= highest, found ({low}, {high})")
        all_sec = (self.horizon_sec, *self.curve_sec)
        if min(all_sec) <= 0 or len({f"{tau:g}" for tau in all_sec}) < len(all_sec):
            raise ValueError(
                f"curve_sec must be positive seconds, each once, without horizon_sec: found {self.curve_sec}"
            )
        if self.beyond_start_sec and self.id != "start-minus-tau/v1":
            raise ValueError(f"beyond_start_sec is of start-minus-tau/v1: {self.id} shows what lies beyond the start")
        return self


class ProbeConfig(Part):
    """The attentive pooler and linear head, and the sweep over them."""

    inputs: Literal["context", "future", "context+future"] = "context+future"
    """What the probe reads: observed latents, imagined latents, or both."""
    pooler: Literal["attentive", "mean", "mlp"] = "attentive"
    """`mean` leaves the attentive pooler out: a linear probe reads the mean latent of each step and the gaze points;
    `mlp`: a small network does, which learns from fewer examples than the pooler."""
    positions: bool = True
    """Adds a learned vector a step and one a patch to what the probe reads; upstream's pooler (false) has none."""
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """`focal`: sigmoid focal loss (alpha 0.25, gamma 2) summed over classes, as in the released V-JEPA 2 harness."""
    gaze_point: Gaze = "none"
    """Adds one token a step, its latents pooled where people look: by Gazelle's heat map (`estimated`) or by an eye
    tracker (`measured`)."""
    gaze_point_control: GazePointControl = "none"
    """Puts other gaze weights in the place of the gaze point's, as stage 1's `gaze_control`; `future` is an oracle."""
    num_queries: int | None = Field(default=None, ge=1)
    """Learned queries of the pooler; null takes one for each task (verb, noun, action), as upstream."""
    depth: int = Field(default=1, ge=1)
    """Pooler blocks, the cross-attention block included (upstream: 4)."""
    num_heads: int = Field(default=16, ge=1)
    """Attention heads of the pooler."""
    lrs: tuple[PositiveFloat, ...] = Field(default=(1e-3, 3e-4), min_length=1)
    """Learning rates of the sweep."""
    weight_decays: tuple[NonNegativeFloat, ...] = Field(default=(1e-2,), min_length=1)
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

    @model_validator(mode="after")
    def _pooler_has_the_settings(self) -> "ProbeConfig":
        if self.pooler == "attentive":
            return self
        for name in ("positions", "num_queries", "depth", "num_heads"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is a setting of pooler=attentive, and pooler is {self.pooler}")
        return self

    @model_validator(mode="after")
    def _control_has_gaze(self) -> "ProbeConfig":
        if self.gaze_point_control != "none" and self.gaze_point == "none":
            raise ValueError(f"gaze_point_control={self.gaze_point_control} needs a gaze_point to replace")
        return self


class AnticipateConfig(RunConfig):
    """Stage 2: `hwm anticipate CONFIG --checkpoint RUN_OR_FILE`."""

    backbone: HwmBackboneConfig | VJEPA2BackboneConfig = Field(default=HwmBackboneConfig(), discriminator="kind")
    """Which frozen model makes what the probe reads."""
    checkpoint: PathSetting | None = None
    """Stage-1 run folder, checkpoint folder or saved model (backbone `hwm`); `--checkpoint` sets it."""
    annotations: AnnotationConfig
    protocol: ProtocolConfig = ProtocolConfig()
    probe: ProbeConfig = ProbeConfig()
    saved_probe: PathSetting | None = None
    """`probe.safetensors` of an earlier run, scored as it is instead of training one; its class tables must fit."""
    allow_seen_takes: bool = False
    """Scores validation takes that stage 1 was trained on, too (a leak, which the record names); false is an error."""
    gazelle: GazelleConfig | None = None
    """Gazelle of `probe.gaze_point=estimated` where the world model has none; null uses the world model's own."""
    gaze_files: GazeFilesConfig = GazeFilesConfig()
    tokens: TokenConfig = TokenConfig()

    @model_validator(mode="after")
    def _gazelle_is_used(self) -> "AnticipateConfig":
        if self.gazelle is not None and self.probe.gaze_point != "estimated":
            raise ValueError(f"gazelle is only used by probe.gaze_point=estimated, which is {self.probe.gaze_point}")
        return self

    @model_validator(mode="after")
    def _has_no_augmented_views(self) -> "AnticipateConfig":
        if self.tokens.views:
            raise ValueError("tokens.views is for data.augment of stage 1: stage 2 reads the centre square")
        return self

    @model_validator(mode="after")
    def _backbone_uses_all(self) -> "AnticipateConfig":
        if self.backbone.kind == "hwm":
            if self.backbone.rollout != "imagined" and self.probe.inputs == "context":
                raise ValueError(f"probe.inputs=context reads no step of backbone.rollout={self.backbone.rollout}")
            return self
        unused = {
            "checkpoint (it is stage 1's)": self.checkpoint is not None,
            "probe.gaze_point": self.probe.gaze_point != "none",
            "tokens.source=cached (a clip is encoded as a whole, so its tokens depend on where it ends)": (
                self.tokens.source == "cached"
            ),
        }
        for setting, is_given in unused.items():
            if is_given:
                raise ValueError(f"backbone vjepa2 cannot use {setting}")
        return self
