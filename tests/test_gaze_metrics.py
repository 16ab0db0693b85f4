"""Gaze scores: answers known beforehand, ties, borders, and the area under the curve as torchmetrics has it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from hwm.evaluation.gaze_metrics import gaussian_maps, gaze_auc, gaze_kl, gaze_l2, gaze_nss

RAMP = torch.arange(8.0).reshape(1, 2, 4)
"""Two rows, four columns; warmer from left to right and from top to bottom."""


@pytest.mark.parametrize(
    ("point", "auc"),
    [
        ((0.1, 0.1), 0.0),
        ((0.9, 0.9), 1.0),
        ((0.9, 0.1), 3 / 7),
        ((0.1, 0.9), 4 / 7),
        ((0.0, 0.0), 0.0),
        ((1.0, 1.0), 1.0),
        ((0.25, 0.5), 5 / 7),
    ],
)
def test_auc_is_the_share_of_cooler_cells(point: tuple[float, float], auc: float) -> None:
    assert gaze_auc(RAMP, torch.tensor([point])).item() == pytest.approx(auc)


def test_auc_counts_a_tie_half() -> None:
    maps = torch.tensor([[[0.0, 1.0], [1.0, 2.0]], [[3.0, 3.0], [3.0, 3.0]]])
    assert gaze_auc(maps, torch.tensor([[0.9, 0.1], [0.9, 0.1]])).tolist() == [0.5, 0.5]
    assert gaze_auc(maps[:1], torch.tensor([[0.1, 0.1]])).item() == 0
    nearly_flat = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert gaze_auc(nearly_flat, torch.tensor([[0.1, 0.5]])).item() == 0.75


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(2, 6), st.integers(1, 5))
def test_auc_equals_torchmetrics(seed: int, rows: int, cols: int, levels: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, levels, (3, rows, cols), generator=rng) / levels
    points = torch.rand(3, 2, generator=rng)
    for heatmap, (x, y), auc in zip(maps, points, gaze_auc(maps, points), strict=True):
        truth = torch.zeros(rows, cols, dtype=torch.long)
        truth[int(y * rows), int(x * cols)] = 1
        assert auc.item() == pytest.approx(binary_auroc(heatmap.flatten(), truth.flatten()).item(), abs=1e-6)


def test_l2_is_the_distance_from_the_hottest_cells_centre() -> None:
    maps = torch.zeros(3, 2, 4)
    maps[:2, 0, 3] = 1.0  # centre (7/8, 1/4)
    maps[2, 1, 0] = 1.0  # centre (1/8, 3/4)
    points = torch.tensor([[0.875, 0.25], [0.875 - 0.3, 0.25 + 0.4], [0.125, 0.0]])
    torch.testing.assert_close(gaze_l2(maps, points), torch.tensor([0.0, 0.5, 0.75]))


def test_l2_does_not_care_for_the_maps_scale() -> None:
    maps, points = torch.rand(4, 5, 6), torch.rand(4, 2)
    assert torch.equal(gaze_l2(maps, points), gaze_l2(maps * 9 - 20, points))


def test_a_gaussian_has_height_one_and_falls_by_its_deviation() -> None:
    # Centres of the cells are at 0.05, 0.15, …; the point is the centre of column 2, row 6.
    (heatmap,) = gaussian_maps(torch.tensor([[0.25, 0.65]]), (10, 10), sigma=0.2)
    assert heatmap[6, 2].item() == pytest.approx(1.0)
    assert heatmap[6, 4].item() == pytest.approx(math.exp(-0.5), abs=1e-5)
    assert heatmap[4, 2].item() == pytest.approx(math.exp(-0.5), abs=1e-5)
    assert heatmap[8, 4].item() == pytest.approx(math.exp(-1.0), abs=1e-5)
    assert heatmap[6, 6].item() == pytest.approx(math.exp(-2.0), abs=1e-5)


def test_a_gaussian_is_round_in_shares_of_the_picture() -> None:
    (heatmap,) = gaussian_maps(torch.tensor([[0.5, 0.5]]), (5, 15), sigma=0.1)
    # Two tenths away: one row of five, three columns of fifteen.
    assert heatmap[3, 7].item() == pytest.approx(heatmap[2, 10].item())
    torch.testing.assert_close(heatmap, heatmap.flip(0, 1))


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 20), st.integers(2, 20))
def test_a_gaussian_at_the_truth_scores_best(x: float, y: float, rows: int, cols: int) -> None:
    points = torch.tensor([[x, y]], dtype=torch.float32)
    maps = gaussian_maps(points, (rows, cols), sigma=0.3)
    # On the border of two cells both are hottest: one tie.
    assert gaze_auc(maps, points).item() >= 1 - 2 / (rows * cols - 1)
    assert gaze_l2(maps, points).item() <= math.hypot(0.5 / rows, 0.5 / cols) + 1e-3


def test_a_point_outside_leaves_the_tail_alone() -> None:
    maps = gaussian_maps(torch.tensor([[-0.5, 0.5], [1.5, 0.5]]), (4, 4), sigma=0.2)
    assert maps.max() < 0.05
    assert torch.all(maps[0, :, 0] > maps[0, :, 3])
    assert torch.all(maps[1, :, 3] > maps[1, :, 0])


def test_nss_is_the_place_in_standard_deviations() -> None:
    # The ramp 0 … 7 has mean 3.5 and deviation 2.449 (n − 1).
    points = torch.tensor([[0.9, 0.9], [0.1, 0.1]])
    expected = torch.tensor([3.5, -3.5]) / torch.arange(8.0).std()
    torch.testing.assert_close(gaze_nss(RAMP.expand(2, -1, -1), points), expected)
    torch.testing.assert_close(gaze_nss(RAMP.expand(2, -1, -1) * 9 - 20, points), expected)
    assert gaze_nss(torch.full((1, 3, 3), 0.7), points[:1]).item() == 0


def test_kl_is_zero_at_the_truth_and_the_entropy_gap_for_a_flat_map() -> None:
    points = torch.tensor([[0.3, 0.6]])
    truth = gaussian_maps(points, (16, 16), 0.1)
    assert gaze_kl(truth * 3, points, 0.1).item() == pytest.approx(0, abs=1e-5)
    share = (truth / truth.sum()).double()
    gap = math.log(256) + torch.special.xlogy(share, share).sum().item()
    assert gaze_kl(torch.ones(1, 16, 16), points, 0.1).item() == pytest.approx(gap, abs=1e-5)
    shifted = gaussian_maps(points + 0.1, (16, 16), 0.1)
    assert 0 < gaze_kl(shifted, points, 0.1).item() < gaze_kl(shifted, points - 0.1, 0.1).item()
    assert torch.isfinite(gaze_kl(torch.zeros(1, 16, 16), points, 0.1)).all()
