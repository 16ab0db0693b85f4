"""Crop boxes stay inside and are fair; points map into them; pixels are normalised."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hwm.data.transforms import centre_square, normalise, point_in_box, random_box
from hwm.data.video import CropBox, VideoInfo
from hwm.errors import DataError


def _info(width: int, height: int) -> VideoInfo:
    return VideoInfo(Path("v.mp4"), 10.0, width, height, 30.0, "h264", 0, 1)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(320, 180, CropBox(0, 70, 180, 180)), (180, 320, CropBox(70, 0, 180, 180)), (64, 64, CropBox(0, 0, 64, 64)),
     (35, 32, CropBox(0, 1.5, 32, 32))],
)  # fmt: skip
def test_centre_square(width: int, height: int, box: CropBox):
    assert centre_square(_info(width, height)) == box


@pytest.mark.parametrize(("width", "height"), [(320, 180), (180, 320), (64, 64), (1408, 1408), (641, 33)])
def test_random_boxes_stay_inside_and_keep_their_area_and_shape(width: int, height: int):
    rng = np.random.default_rng(0)
    for _ in range(500):
        box = random_box(_info(width, height), (0.3, 0.9), (0.75, 1.35), rng)
        assert box.top >= 0
        assert box.left >= 0
        assert box.top + box.height <= height + 1e-9
        assert box.left + box.width <= width + 1e-9
        assert 0.75 - 1e-9 <= box.width / box.height <= 1.35 + 1e-9
        if width / height < 1.35 * 2:
            assert 0.3 - 1e-9 <= box.height * box.width / (height * width) <= 0.9 + 1e-9


def test_random_boxes_reach_all_corners():
    rng = np.random.default_rng(0)
    boxes = [random_box(_info(100, 100), (0.3, 0.9), (0.75, 1.35), rng) for _ in range(500)]
    assert min(box.top for box in boxes) < 2
    assert min(box.left for box in boxes) < 2
    assert max(box.top + box.height for box in boxes) > 98
    assert max(box.left + box.width for box in boxes) > 98


def test_same_generator_same_box():
    boxes = [random_box(_info(320, 180), (0.3, 1), (0.7, 1.4), np.random.default_rng(5)) for _ in range(2)]
    assert boxes[0] == boxes[1]


def test_a_picture_too_long_for_the_ratios_gets_the_largest_centred_box():
    box = random_box(_info(1000, 10), (0.9, 1.0), (0.8, 1.25), np.random.default_rng(0))
    assert box == CropBox(0, 493.75, 10, 12.5)
    box = random_box(_info(10, 1000), (0.9, 1.0), (0.8, 1.25), np.random.default_rng(0))
    assert box == CropBox(493.75, 0, 12.5, 10)


def test_random_boxes_are_as_often_tall_as_wide():
    rng = np.random.default_rng(0)
    boxes = [random_box(_info(300, 300), (0.05, 0.1), (1 / 3, 3), rng) for _ in range(2000)]
    ratios = np.log([box.width / box.height for box in boxes])
    assert np.mean(ratios > 0) == pytest.approx(0.5, abs=0.04)
    assert np.quantile(ratios, [0.25, 0.75]) == pytest.approx([-np.log(3) / 2, np.log(3) / 2], abs=0.1)


@pytest.mark.parametrize(("scale", "ratio"), [((0, 1), (1, 1)), ((0.5, 1.1), (1, 1)), ((0.5, 1), (2, 1))])
def test_senseless_settings(scale: tuple[float, float], ratio: tuple[float, float]):
    with pytest.raises(DataError, match=r"random crop"):
        random_box(_info(100, 100), scale, ratio, np.random.default_rng(0))


def test_points_in_boxes():
    box = CropBox(top=10, left=20, height=40, width=80)
    assert point_in_box(20, 10, box) == (0, 0)
    assert point_in_box(100, 50, box) == (1, 1)
    assert point_in_box(40, 40, box) == (0.25, 0.75)


def test_normalise_uses_imagenet_statistics_and_moves_channels():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = normalise(frames)
    assert (result.shape, result.dtype) == ((2, 3, 3, 4, 5), torch.float32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(result[1, 2, :, 3, 4], (frames[1, 2, 3, 4] / 255 - mean) / std)


@pytest.mark.parametrize("frames", [torch.zeros(2, 4, 4, 3), torch.zeros(2, 3, 4, 4, dtype=torch.uint8)])
def test_normalise_refuses_other_layouts(frames: torch.Tensor):
    with pytest.raises(DataError, match=r"uint8 with 3 channels last"):
        normalise(frames)
