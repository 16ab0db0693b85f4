"""Parity of V-JEPA 2.1 with upstream's modules on tiny random weights in the released layout; see `tests/golden`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hwm.errors import ConfigError
from hwm.models.dense_predictor import DensePredictor
from hwm.models.masked_predictor import MaskedPredictorSpec
from hwm.models.vjepa2 import EncoderSpec
from hwm.models.vjepa21 import VJEPA21Encoder, build_encoder
from hwm.weights.load import read_encoder, read_masked_predictor, save_model

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-5
VARIANTS = {"distilled": "vjepa2_1_distilled.pt", "levels4": "vjepa2_1.pt"}
SIZES = json.loads((GOLDEN / "vjepa2_1.json").read_text())
GRID = (SIZES["img"] // 16, SIZES["img"] // 16)

pytestmark = pytest.mark.parity


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Largest difference at most 1e-5 of the expected output's largest value."""
    assert found.shape == expected.shape
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE, f"relative difference {worst:.2e}"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vjepa2_1.safetensors")


def load_encoder(variant: str) -> VJEPA21Encoder:
    loaded = read_encoder(GOLDEN / VARIANTS[variant], num_heads=SIZES["heads"])
    assert loaded.account.model == ("ema_encoder" if variant == "distilled" else "target_encoder")
    assert isinstance(loaded.module, VJEPA21Encoder)
    return loaded.module


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_equals_upstream(golden: dict[str, Tensor], variant: str) -> None:
    encoder = load_encoder(variant)
    for name in ("video", "video_nonsquare", "image", "image_nonsquare"):
        assert_close(encoder(golden[name]), golden[f"{variant}.{name}.tokens"])
    assert_close(encoder(golden["video"], golden["keep"]), golden[f"{variant}.kept"])
    assert_close(encoder.encode_frames(golden["image"][:, :, 0]), golden[f"{variant}.image.tokens"])


def test_levels_equal_upstream(golden: dict[str, Tensor]) -> None:
    encoder = load_encoder("levels4")
    assert_close(encoder.levels(golden["video"]), golden["levels4.levels"])
    assert_close(encoder.levels(golden["video"], golden["keep"]), golden["levels4.kept_levels"])
    # A distilled model brings its last level alone.
    assert_close(load_encoder("distilled")(golden["video"]), golden["distilled.levels"])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask_index", [0, 7])
def test_predictor_equals_upstream(golden: dict[str, Tensor], variant: str, mask_index: int) -> None:
    predictor = read_masked_predictor(GOLDEN / VARIANTS[variant], num_heads=SIZES["pheads"]).module
    assert isinstance(predictor, DensePredictor)
    context, targets = golden[f"{variant}.levels"], golden["targets"]
    positions = torch.arange(context.shape[1]).expand(context.shape[0], -1)
    found = predictor.forward_all(context, positions, targets, GRID, mask_index)
    assert_close(found[:, : context.shape[1]], golden[f"{variant}.predicted_context_mask{mask_index}"])
    assert_close(found[:, context.shape[1] :], golden[f"{variant}.predicted_mask{mask_index}"])
    found = predictor(golden[f"{variant}.kept_levels"], golden["keep"], golden["rest"], GRID, 0, image=True)
    assert_close(found, golden[f"{variant}.inpaint_image"])


def test_one_row_of_patches_is_finite() -> None:
    encoder = build_encoder(EncoderSpec(24, 1, 2, version="2.1")).eval()
    assert encoder(torch.randn(1, 3, 2, 16, 32)).isfinite().all()  # upstream divides by zero here


def test_unknown_depths_have_no_levels() -> None:
    encoder = build_encoder(EncoderSpec(24, 5, 2, version="2.1"))
    assert isinstance(encoder, VJEPA21Encoder)
    with pytest.raises(ConfigError, match="levels of this encoder"):
        encoder.levels(torch.randn(1, 3, 2, 16, 16))


def test_our_format_keeps_the_version(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    encoder = load_encoder("distilled")
    save_model(encoder, tmp_path / "encoder")
    again = read_encoder(tmp_path / "encoder").module
    assert torch.equal(again(golden["image"]), encoder(golden["image"]))
    predictor = read_masked_predictor(GOLDEN / VARIANTS["levels4"], num_heads=SIZES["pheads"]).module
    save_model(predictor, tmp_path / "predictor")
    assert read_masked_predictor(tmp_path / "predictor").module.spec == predictor.spec
    assert predictor.spec == MaskedPredictorSpec(28, 24, 4, 2, 8, version="2.1", num_levels=4)
