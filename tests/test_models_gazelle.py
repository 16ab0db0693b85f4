"""Gaze-LLE and DINOv2: parity with upstream, people, other grids, training."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from hwm.errors import ConfigError, DataError
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec, head_map, sine_positions

GOLDEN = Path(__file__).parent / "golden"
META = json.loads((GOLDEN / "gazelle.json").read_text())


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    worst = (found - expected).abs().max() / expected.abs().max()
    assert worst <= 1e-5, f"relative difference {worst:.2e}"


def build(variant: str) -> GazeLLE:
    sizes = META["config"]
    backbone = DINOv2(DINOv2Spec(sizes["dim"], sizes["depth"], sizes["heads"], position_side=sizes["train_img"] // 14))
    weights = torch.load(GOLDEN / f"dinov2_{variant}.pth", weights_only=True)
    del weights["mask_token"]
    backbone.load_state_dict(weights, strict=True)
    model = GazeLLE(backbone, GazelleSpec(sizes["gdim"], position_grid=(8, 8), inout=variant == "inout"))
    decoder = torch.load(GOLDEN / f"gazelle_{variant}.pt", weights_only=True)
    model.load_state_dict(decoder | {f"backbone.{key}": value for key, value in backbone.state_dict().items()})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "gazelle.safetensors")


@pytest.fixture(scope="module")
def model() -> GazeLLE:
    return build("inout")


@pytest.mark.parametrize("variant", ["inout", "plain"])
def test_gazelle_equals_upstream(golden: dict[str, Tensor], variant: str) -> None:
    model, images = build(variant), golden[f"{variant}.images"]
    assert_close(model.backbone(images), golden[f"{variant}.backbone_features"])
    output = model(images, META["boxes"])
    assert_close(output.scene_tokens, golden[f"{variant}.scene_tokens"])
    assert_close(output.heatmaps, golden[f"{variant}.heatmaps"])
    assert output.image_index.tolist() == [0, 1, 2, 2]
    if variant == "inout":
        assert_close(output.inout, golden["inout.inout"])
        assert torch.equal(output.inout_logits.sigmoid(), output.inout)
    else:
        assert output.inout is None
        assert output.inout_logits is None


def test_heatmap_is_the_resized_sigmoid_of_the_logits(model: GazeLLE, golden: dict[str, Tensor]) -> None:
    output = model(golden["inout.images"])
    assert output.heatmap_logits.shape == (3, 16, 16)
    expected = interpolate(output.heatmap_logits.sigmoid()[:, None], (64, 64), mode="bilinear")[:, 0]
    assert_close(output.heatmaps, expected)


def test_no_boxes_is_one_unknown_person_a_picture(model: GazeLLE, golden: dict[str, Tensor]) -> None:
    images = golden["inout.images"]
    without = model(images)
    assert torch.equal(without.heatmaps, model(images, [[None]] * 3).heatmaps)
    assert without.image_index.tolist() == [0, 1, 2]


def test_people_do_not_see_each_other_and_boxes_matter(model: GazeLLE, golden: dict[str, Tensor]) -> None:
    images = golden["inout.images"][:2]
    left, right = (0.0, 0.0, 0.3, 0.3), (0.6, 0.6, 0.95, 0.95)
    together = model(images, [[left, right, None], []])
    assert together.image_index.tolist() == [0, 0, 0]
    for row, box in enumerate((left, right, None)):
        alone = model(images[:1], [[box]])
        torch.testing.assert_close(together.scene_tokens[row], alone.scene_tokens[0], atol=1e-5, rtol=0)
    assert (together.heatmaps[0] - together.heatmaps[1]).abs().max() > 1e-4
    nobody = model(images, [[], []])
    assert nobody.heatmaps.shape == (0, 64, 64)
    assert nobody.scene_tokens.shape == (0, 64, 32)


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.3), (0.5, 0.1, 0.2, 0.3), (0.0, 0.0, float("nan"), 1.0)])
def test_a_box_that_is_no_box_is_refused(model: GazeLLE, box: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="not a box"):
        model(torch.zeros(1, 3, 112, 112), [[box]])


def test_boxes_must_match_the_pictures(model: GazeLLE) -> None:
    with pytest.raises(DataError, match="do not match the pictures"):
        model(torch.zeros(2, 3, 112, 112), [[None]])


def test_head_map_covers_the_box_and_stays_inside() -> None:
    cells = head_map((0.25, 0.5, 0.5, 1.0), (4, 8))
    assert cells.nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert head_map((-1.0, -1.0, 2.0, 2.0), (4, 4)).sum() == 16
    assert head_map(None, (4, 4)).sum() == 0


def test_stored_positions_are_the_sines() -> None:
    stored = torch.load(GOLDEN / "gazelle_plain.pt", weights_only=True)["pos_embed"]
    torch.testing.assert_close(sine_positions(32, 8, 8), stored, atol=1e-6, rtol=0)


def test_other_grids_interpolate_the_positions(model: GazeLLE) -> None:
    # The corners of a coarser grid are near the corners of the trained one; a rebuilt grid would be its quadrant.
    positions = model._positions((4, 4))
    trained = model.pos_embed
    assert (positions[:, -1, -1] - trained[:, -2:, -2:].mean((1, 2))).abs().max() < 0.1
    assert (positions[:, -1, -1] - trained[:, 3, 3]).abs().max() > 0.5
    output = model(torch.zeros(1, 3, 56, 84))
    assert output.scene_tokens.shape == (1, 24, 32)
    assert output.heatmaps.shape == (1, 64, 64)


def test_trained_grid_keeps_the_learned_positions(model: GazeLLE) -> None:
    assert model.backbone._positions((7, 7)) is model.backbone.pos_embed
    assert model.backbone(torch.zeros(1, 3, 98, 126)).shape == (1, 48, 7, 9)


def test_patch_must_divide_the_view(model: GazeLLE) -> None:
    with pytest.raises(ConfigError, match="multiples of 14"):
        model(torch.zeros(1, 3, 100, 98))


def test_gazelle_learns_a_heat_map() -> None:
    torch.manual_seed(0)
    spec = GazelleSpec(width=32, depth=1, num_heads=4, position_grid=(4, 4), inout=True)
    model = GazeLLE(DINOv2(DINOv2Spec(32, 1, 2, position_side=4)), spec)
    images, target = torch.randn(2, 3, 56, 56), torch.zeros(2, 8, 8)
    target[0, 2, 5] = target[1, 6, 1] = 1.0
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        output = model(images)
        loss = binary_cross_entropy_with_logits(output.heatmap_logits, target)
        loss = loss + binary_cross_entropy_with_logits(output.inout_logits, torch.tensor([0.0, 1.0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused <= {"head_token.weight"}  # no boxes were given
