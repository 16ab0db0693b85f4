"""The Python front doors: released files in, frozen modules out, and what they say equals upstream's own modules."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hwm

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "vjepa2_checkpoint.pt"
TOLERANCE = 1e-5

pytestmark = pytest.mark.parity


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= TOLERANCE, f"relative difference {worst:.2e}"


def assert_frozen(module: nn.Module) -> None:
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vjepa2.safetensors")


def test_encoder(golden: dict[str, Tensor]) -> None:
    encoder = hwm.load_encoder(CHECKPOINT, key="encoder", num_heads=4)
    assert_frozen(encoder)
    assert_close(encoder(golden["encoder.video"]), golden["encoder.tokens"])
    assert_close(encoder(golden["encoder.video_nonsquare"]), golden["encoder.tokens_nonsquare"])
    assert_close(encoder(golden["encoder.video"], golden["encoder.keep"]), golden["encoder.tokens_kept"])


def test_masked_predictor(golden: dict[str, Tensor]) -> None:
    predictor = hwm.load_masked_predictor(CHECKPOINT, num_heads=3)
    assert_frozen(predictor)
    context = golden["encoder.tokens"]
    positions = torch.arange(context.shape[1]).expand(context.shape[0], -1)
    for index in (0, 1, 7):
        found = predictor(context, positions, golden["predictor.target_positions"], (4, 4), mask_index=index)
        assert_close(found, golden[f"predictor.tokens_mask{index}"])


@pytest.mark.parametrize("variant", ["inout", "plain"])
def test_gazelle(variant: str) -> None:
    golden = load_file(GOLDEN / "gazelle.safetensors")
    boxes = json.loads((GOLDEN / "gazelle.json").read_text())["boxes"]
    gazelle = hwm.load_gazelle(GOLDEN / f"gazelle_{variant}.pt", GOLDEN / f"dinov2_{variant}.pth", num_heads=3)
    assert_frozen(gazelle)
    result = gazelle(golden[f"{variant}.images"], head_boxes=boxes)
    assert_close(result.scene_tokens, golden[f"{variant}.scene_tokens"])
    assert_close(result.heatmaps, golden[f"{variant}.heatmaps"])
    if variant == "inout":
        assert_close(result.inout, golden["inout.inout"])
    else:
        assert result.inout is None


def test_probes(golden: dict[str, Tensor]) -> None:
    probe = hwm.load_probe(GOLDEN / "probe_weights.safetensors", num_heads=4)
    assert_frozen(probe)
    assert_close(probe(golden["encoder.tokens"])["action"], golden["probe.logits"])
    logits = hwm.load_probe(GOLDEN / "probe3_weights.safetensors", num_heads=4)(golden["encoder.tokens"])
    for task in ("verb", "noun", "action"):
        assert_close(logits[task], golden[f"probe3.{task}"])
