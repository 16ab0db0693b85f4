"""What a first-time caller of the Python interface gets wrong is told in plain words, not by a matrix product."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import hwm
from hwm.config import PretrainConfig
from hwm.data.transforms import centre_square
from hwm.data.video import VideoReader, write_video
from hwm.engine.assemble import load_stage1, new_world
from hwm.engine.saved_probe import TrainedOn, save_probe
from hwm.errors import DataError, RunError, WeightsError
from hwm.models.gazelle import head_map
from hwm.models.step_probe import StepProbe, StepProbeSpec
from hwm.models.world_model import WorldModel
from hwm.weights.files import check_is_file
from hwm.weights.load import save_model


@pytest.fixture(autouse=True)
def as_installed() -> Iterator[None]:
    """Without the check of shapes that tests run with: a caller has only what the functions themselves refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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


def test_pixels_that_no_model_can_read_are_refused(world: WorldModel) -> None:
    """None of these is noticed by the layers that read them, or it is told in torch's words about a matrix product."""
    frames, gaze = torch.randn(1, 2, 1, 3, 64, 64), torch.randn(1, 2, 3, 56, 56)
    damaged = frames.clone()
    damaged[0, 1, 0, 2, 63, 63] = torch.nan
    for wrong, found in ((frames.abs() * 255, "values from 0"), (damaged, "nan to nan"), (frames * torch.inf, "inf")):
        with pytest.raises(DataError, match=rf"these frames are not normalised(.|\n)*{found}(.|\n)*normalise makes"):
            world.observe(wrong, gaze)
    with pytest.raises(DataError, match="these gaze frames are not normalised"):
        world.observe(frames, gaze * 255)
    for wrong, found in ((frames.double(), "float64 on cpu"), (frames.half(), "float16"), (frames.to("meta"), "meta")):
        with pytest.raises(DataError, match=rf"float32 on cpu(.|\n)*{found}(.|\n)*\.to\('cpu', torch\.float32\)"):
            world.observe(wrong, gaze)
    with pytest.raises(DataError, match="these gaze frames are of another type"):
        world.observe(frames, gaze.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert world.observe(frames.to(torch.bfloat16)).z_SND.shape[:2] == (1, 2)
    for wrong in (frames.numpy(), [frames]):
        with pytest.raises(DataError, match=r"no tensor(.|\n)*(ndarray|list)(.|\n)*from_numpy"):
            world.observe(wrong, gaze)  # pyright: ignore[reportArgumentType]
    for wrong in (frames[:0], frames[:, :0]):
        with pytest.raises(DataError, match="at least one of each"):
            world.observe(wrong)


def test_tokens_that_do_not_fit_the_model_or_each_other_are_refused(world: WorldModel) -> None:
    z, scene = torch.randn(2, 3, 16, 32), torch.randn(2, 3, 16, world.predictor.spec.scene_width or 0)
    known = torch.ones(2, 3, dtype=torch.bool)
    assert world.imagine(z, scene, 2, known, known).z_BKND.shape == (2, 2, 16, 32)
    for wrong in (z[0], z[:, :0], scene):
        with pytest.raises(DataError, match=r"latents cannot be gone on from(.|\n)*\[clips, steps, patches, 32\]"):
            world.imagine(wrong, scene, 2)
    with pytest.raises(DataError, match=r"float32 on cpu(.|\n)*float64 on cpu"):
        world.imagine(z.double(), scene, 2)
    for wrong in (scene[:1], scene[:, 1:], z):  # the first would be taken for the gaze of both clips
        with pytest.raises(DataError, match=r"scene tokens(.|\n)*expected: \[2, 3, 16, "):
            world.imagine(z, wrong, 2)
    for wrong in (known[:1], known.float()):
        with pytest.raises(DataError, match=r"known_BT(.|\n)*torch\.bool \[2, 3\]"):
            world.imagine(z, scene, 2, wrong)
        with pytest.raises(DataError, match="valid_BT"):
            world.imagine(z, scene, 2, known, wrong)
    assert world.imagine(z[:0], scene[:0], 2).z_BKND.shape == (0, 2, 16, 32), "no clip is no mistake"


def test_gaze_for_a_model_without_gaze_is_refused(stage1_settings: dict[str, Any]) -> None:
    stage1_settings["gaze"] = "none"
    blind = new_world(PretrainConfig(**stage1_settings)).world
    with pytest.raises(DataError, match="the model has no gaze"):
        blind.imagine(torch.randn(1, 3, 16, 32), torch.randn(1, 3, 16, 24), 2)


@pytest.mark.parametrize("num_steps", [0, -1, 1.5])
def test_imagining_no_step_is_refused(world: WorldModel, num_steps: float) -> None:
    with pytest.raises(DataError, match="at least 1"):
        world.imagine(torch.randn(1, 3, 16, 32), None, num_steps)  # pyright: ignore[reportArgumentType]


def test_a_head_box_in_pixels_is_refused() -> None:
    assert head_map((0.9, 0.9, 1.2, 1.4), (10, 10)).sum() == 1
    with pytest.raises(DataError, match=r"shares 0\.\.1"):
        head_map((100, 80, 160, 150), (4, 4))


def test_one_head_box_for_each_picture_is_told_from_a_list_of_them() -> None:
    gazelle = hwm.load_gazelle("mini")
    box = (0.1, 0.1, 0.3, 0.3)
    assert gazelle(torch.randn(2, 3, 56, 56), [[box], [None]]).heatmaps.shape[0] == 2
    with pytest.raises(DataError, match=r"\[\[box\], \[box\](.|\n)*found: 0\.1"):
        gazelle(torch.randn(2, 3, 56, 56), [box, box])  # pyright: ignore[reportArgumentType]


def test_a_reader_that_was_closed_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 4, 4)
    with VideoReader(tmp_path / "a.mp4") as reader:
        box = centre_square(reader.info)
        assert reader.read([0.5], [(16, 16)], box).views[0].shape == (1, 16, 16, 3)
    with pytest.raises(DataError, match=r"a\.mp4 was closed(.|\n)*within the `with` block"):
        reader.read([0.5], [(16, 16)], box)


def test_weights_of_another_kind_are_told_with_what_reads_them(world: WorldModel, tmp_path: Path) -> None:
    save_model(world.observer.encoder, tmp_path / "encoder")
    with pytest.raises(WeightsError, match=r"expected: 'probe'(.|\n)*a encoder is read by hwm\.load_encoder"):
        hwm.load_probe(tmp_path / "encoder")
    probe = StepProbe(StepProbeSpec(8, 3, 4, {"step": (1, 5)}, num_heads=2))
    trained_on = TrainedOn({"step": "hash"}, {"predictor": "hash"}, "context+future", 1, "none", positions=True)
    save_probe(tmp_path / "probe.safetensors", probe, trained_on)
    with pytest.raises(WeightsError, match=r"found: 'step_probe'(.|\n)*hwm\.pipelines\.predict\.run"):
        hwm.load_probe(tmp_path / "probe.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    for load in (hwm.load_encoder, hwm.load_probe):
        with pytest.raises(WeightsError, match=r"folder of a run(.|\n)*load_stage1(.|\n)*`hwm predict`"):
            load(tmp_path / "run")


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
