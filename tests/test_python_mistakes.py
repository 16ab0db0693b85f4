"""What a first-time caller of the Python interface gets wrong is told in plain words, not by a matrix product."""

from pathlib import Path
from typing import Any

import pytest
import torch

import hwm
from hwm.config import PretrainConfig
from hwm.engine.assemble import load_stage1, new_world
from hwm.errors import DataError, RunError, WeightsError
from hwm.models.gazelle import head_map
from hwm.models.world_model import WorldModel
from hwm.weights.files import check_is_file


@pytest.fixture
def world(stage1_settings: dict[str, Any]) -> WorldModel:
    return new_world(PretrainConfig(**stage1_settings)).world


def test_pixels_of_another_shape_or_type_are_refused(world: WorldModel) -> None:
    frames, gaze = torch.randn(1, 2, 1, 3, 64, 64), torch.randn(1, 2, 3, 56, 56)
    assert world.observe(frames, gaze).z_SND.shape[:2] == (1, 2)
    with pytest.raises(DataError, match=r"float32 \[1, 2, 3, 64, 64\](.|\n)*frames\[:, :, None\]"):
        world.observe(frames[:, :, 0], gaze)
    with pytest.raises(DataError, match=r"uint8(.|\n)*normalise"):
        world.observe(frames.to(torch.uint8), gaze)
    with pytest.raises(DataError, match="frames cannot be observed"):
        world.observe(frames.movedim(3, -1), gaze)
    for wrong in (gaze[:, :1], gaze.repeat(2, 1, 1, 1, 1), gaze[:, :, None]):
        with pytest.raises(DataError, match=r"gaze frames(.|\n)*\[1, 2, 3, rows, columns\]"):
            world.observe(frames, wrong)


@pytest.mark.parametrize("num_steps", [0, -1])
def test_imagining_no_step_is_refused(world: WorldModel, num_steps: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        world.imagine(torch.randn(1, 3, 16, 32), None, num_steps)


def test_a_head_box_in_pixels_is_refused() -> None:
    assert head_map((0.9, 0.9, 1.2, 1.4), (10, 10)).sum() == 1
    with pytest.raises(DataError, match=r"shares 0\.\.1"):
        head_map((100, 80, 160, 150), (4, 4))


def test_weights_that_are_not_there_are_told_with_the_command_that_fetches_them() -> None:
    with pytest.raises(WeightsError, match=r"no weight file vjepa2-vitl-256(.|\n)*fetch vjepa2-vitl-256"):
        hwm.load_encoder("vjepa2-vitl-256")
    with pytest.raises(WeightsError, match="fetch vjepa2-vitl-256"):
        hwm.load_encoder("somewhere/vitl.pt")
    with pytest.raises(
        WeightsError, match=r"(.|\n)*one of the two mini models(.|\n)*mini/encoder or (.|\n)*mini/gazelle"
    ):
        check_is_file(Path("mini"))
    with pytest.raises(WeightsError, match=r"no weight file nowhere(.|\n)*hwm weights list"):
        hwm.load_gazelle("nowhere")


def test_a_run_folder_is_no_saved_model_and_may_be_named_in_text(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"folder of a run(.|\n)*load_stage1"):
        hwm.HumanWorldModel.from_pretrained(tmp_path / "run")
    with pytest.raises(RunError, match="no stage-1 run"):
        load_stage1(str(tmp_path / "run"))
