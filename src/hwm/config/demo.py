"""The toy world and the demo: `hwm toyworld OUT` and `hwm demo`."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from hwm.config.anticipate import AnticipateConfig
from hwm.config.base import Part, PathSetting
from hwm.config.pretrain import PretrainConfig

ToyWorldFormat = Literal["keystep", "lta", "goalstep", "epic"]
ToyWorldViews = Literal["both", "exo", "ego"]
TOYWORLD_FORMATS: tuple[str, ...] = get_args(ToyWorldFormat)
TOYWORLD_VIEWS: tuple[str, ...] = get_args(ToyWorldViews)
MIN_TAKES_FOR_TRAPS = 16


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
    ego_camera: Literal["follows", "still"] = "follows"
    """`still`: the ego camera does not turn with the gaze, so that no picture of the ego view shows where it goes."""
    grid_fps: float = Field(default=4.0, gt=0)
    """Steps a second of the observer for whom the ceilings are computed: that of the model to be held against them."""
    views: ToyWorldViews = "both"
    """Videos to draw; with one view, as if only this one had been downloaded. Annotations and gaze are the same."""
    formats: tuple[ToyWorldFormat, ...] = ()
    """Formats to write besides the plain Ego-Exo4D files: its key-step benchmark, Ego4D's two, EPIC-KITCHENS-100."""
    traps: bool = False
    """Break the files on purpose in every known way, listed in `traps.json`: for tests of readers."""

    @model_validator(mode="after")
    def _views_for_the_rest(self) -> "ToyWorldConfig":
        if self.views != "both" and (self.formats or self.traps):
            raise ValueError(f"formats and traps need views=both, found views={self.views}")
        return self

    @model_validator(mode="after")
    def _room_for_traps(self) -> "ToyWorldConfig":
        if self.traps and (self.num_takes < MIN_TAKES_FOR_TRAPS or not 0.18 <= self.val_fraction <= 0.25):
            raise ValueError(
                "traps need num_takes >= 16 and val_fraction from 0.18 to 0.25 (12 takes to train on, 3 to validate)"
            )
        return self


class DemoConfig(Part):
    """The whole of the mission at small size: `hwm demo`."""

    folder: PathSetting = Path("runs/demo")
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
