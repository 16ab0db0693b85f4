"""The comparison that says whether gaze helps; `hwm compare CONFIG`."""

from typing import Literal

from pydantic import Field, model_validator

from hwm.config.anticipate import AnticipateConfig
from hwm.config.base import PathSetting, RunConfig
from hwm.config.pretrain import PretrainConfig

ArmName = Literal["none", "probe", "world", "world+probe"]
ControlName = Literal[
    "shuffled", "time-shuffled", "mean", "dinov2", "measured", "future",
    "point-shuffled", "point-time-shuffled", "point-mean", "point-future",
]  # fmt: skip
BaselineName = Literal["majority", "previous-step", "encoder", "copy-last", "vjepa2"]

_OF_THE_WORLD = (
    "world", "world+probe", "shuffled", "time-shuffled", "mean", "dinov2", "measured", "future", "copy-last",
)  # fmt: skip
"""Arms, controls and baselines that change the world model or its roll-out."""


class CompareConfig(RunConfig):
    """Arms, controls and baselines, matched in all but their gaze: `hwm compare CONFIG`.

    `runtime` and `mirrors` hold for every training; `seed` is the first of the seeds.
    """

    seeds: int = Field(default=3, ge=1)
    """Seeds of each arm: `seed`, `seed` + 1, …"""
    horizons_sec: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Horizons τ at which every probe is scored; `anticipate.protocol.horizon_sec`, the headline's, is one of them."""
    arms: tuple[ArmName, ...] = ("none", "probe", "world+probe")
    """Where gaze is: nowhere (A), in the probe (B), in the world model, in both (C)."""
    controls: tuple[ControlName, ...] = ()
    """Arms like `world+probe` whose world model is given something else for gaze; with `point-`, arms like `probe`
    whose gaze point is. `future` and `point-future` are oracles; `measured` has an eye tracker's gaze in both."""
    baselines: tuple[BaselineName, ...] = ("majority", "previous-step", "encoder", "copy-last")
    """What is to be beaten without gaze or without a world model; `vjepa2` needs the setting `vjepa2`."""
    pretrain: PretrainConfig
    """Stage 1; its `gaze` says where the gaze of the arms comes from."""
    anticipate: AnticipateConfig
    """Stage 2; checkpoint and gaze point are filled in for each arm, and what is not given of `gaze_files` is that of
    stage 1."""
    vjepa2: AnticipateConfig | None = None
    """Stage 2 on V-JEPA 2's own pair, on the same annotations and protocol."""
    equivalence: float = Field(default=0.02, gt=0, lt=1)
    """Differences of Top-1 of this share or less do not matter: what lies within is told as no difference."""
    ceilings: PathSetting | None = None
    """`toyworld.json` of a toy world, whose best possible scores are drawn beside the others."""
    processes: int = Field(default=1, ge=1)
    """Trainings that run at the same time; each gets its share of the cores."""
    num_examples: int = Field(default=8, ge=0)
    """Annotated frames in the report; 0 for private footage (`--no-frames`)."""

    @model_validator(mode="after")
    def _is_a_comparison(self) -> "CompareConfig":
        for name in ("horizons_sec", "arms", "controls", "baselines"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one thing twice: {values}")
        if self.name in ("units", "tokens"):
            raise ValueError(f"name={self.name} is the folder of what all comparisons in `folder` share")
        if not {"none", "probe"} & set(self.arms):
            raise ValueError("arms needs none or probe: a gain is against a matched model")
        if self.pretrain.gaze == "none":
            raise ValueError("pretrain.gaze says where the arms' gaze comes from: estimated or measured")
        horizon = self.anticipate.protocol.horizon_sec
        if horizon not in self.horizons_sec:
            raise ValueError(f"anticipate.protocol.horizon_sec ({horizon:g}) must be one of horizons_sec")
        if self.pretrain.data.augment is not None:
            raise ValueError("pretrain.data.augment must be null: all arms read the same cached tokens")
        if "measured" in self.controls and self.pretrain.gaze_files.folder is None:
            raise ValueError("the control measured needs pretrain.gaze_files.folder")
        if self.anticipate.backbone.kind != "hwm":
            raise ValueError("anticipate.backbone.kind must be hwm; V-JEPA 2's own pair is the setting vjepa2")
        return self

    @model_validator(mode="after")
    def _world_is_read(self) -> "CompareConfig":
        if self.anticipate.probe.inputs == "context":
            wanted = (*self.arms, *self.controls, *self.baselines)
            idle = [name for name in wanted if name in _OF_THE_WORLD]
            if idle:
                raise ValueError(
                    f"{', '.join(idle)} differ in what the world model imagines, and anticipate.probe.inputs=context "
                    "reads none of it: leave them out, or let the probe read the future"
                )
        return self

    @model_validator(mode="after")
    def _baseline_is_matched(self) -> "CompareConfig":
        if ("vjepa2" in self.baselines) != (self.vjepa2 is not None):
            raise ValueError("the baseline vjepa2 and the setting vjepa2 go together: give both or neither")
        if self.vjepa2 is None:
            return self
        ours, theirs = self.anticipate, self.vjepa2
        if theirs.backbone.kind != "vjepa2":
            raise ValueError("vjepa2.backbone.kind must be vjepa2")
        if theirs.annotations != ours.annotations or theirs.protocol.id != ours.protocol.id:
            raise ValueError("vjepa2.annotations and vjepa2.protocol.id must be those of anticipate")
        return self
