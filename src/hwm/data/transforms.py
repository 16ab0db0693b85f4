"""Crop boxes in source pixels, and what happens to pixels between the decoder and a model.

In: `VideoInfo`, uint8 frames [..., Y, X, R]. Out: `CropBox`, float32 frames [..., R, Y, X]. One box a clip is drawn and
given to `VideoReader.read` with all sizes, so a point of the scene has the same place in the crop in each view.
"""

import math
from typing import overload

import numpy as np
import torch
from torch import Tensor

from hwm.data.video import CropBox, VideoInfo
from hwm.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Red, green, blue means of the normalisation of V-JEPA 2 and of DINOv2, for pixels scaled to 0..1."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The deviations that go with `IMAGENET_MEAN`."""

_BOX_ATTEMPTS = 10


def centre_square(info: VideoInfo) -> CropBox:
    """The largest square in the middle of the picture (may start at half a pixel)."""
    side = min(info.height, info.width)
    return CropBox(top=(info.height - side) / 2, left=(info.width - side) / 2, height=side, width=side)


def random_box(
    info: VideoInfo, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> CropBox:
    """A random crop box; the shape is drawn as for Inception-style random resized crops.

    Args:
        info: the video.
        scale: lowest and highest share of the picture's area.
        ratio: lowest and highest width / height, drawn uniformly in its logarithm.
        rng: the only source of randomness.

    Returns:
        A fractional box inside the picture. Where ten draws do not fit, the largest centred box with the ratio of the
        picture moved into `ratio`.
    """
    if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
        raise DataError(
            "the random crop's settings do not make sense",
            expected="0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]",
            found=f"scale {scale}, ratio {ratio}",
        )
    for _ in range(_BOX_ATTEMPTS):
        area = info.height * info.width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        height, width = math.sqrt(area / shape), math.sqrt(area * shape)
        if height <= info.height and width <= info.width:
            top, left = rng.uniform(0, info.height - height), rng.uniform(0, info.width - width)
            return CropBox(top, left, height, width)
    shape = min(max(info.width / info.height, ratio[0]), ratio[1])
    height = min(float(info.height), info.width / shape)
    width = height * shape
    return CropBox((info.height - height) / 2, (info.width - width) / 2, height, width)


def normalise(frames: Tensor) -> Tensor:
    """Pixels for a model: uint8 [..., Y, X, R] in 0..255 to float32 [..., R, Y, X] with ImageNet statistics.

    Works on the tensor's own device, so that the small uint8 frames are what travels to it.

    Raises:
        DataError: the tensor is not uint8 with 3 channels last.
    """
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise DataError(
            "frames to normalise must be uint8 with 3 channels last", found=f"{frames.dtype} {tuple(frames.shape)}"
        )
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device) * 255
    std = torch.tensor(IMAGENET_STD, device=frames.device) * 255
    return ((frames.to(torch.float32) - mean) / std).movedim(-1, -3).contiguous()


@overload
def point_in_box(x: float, y: float, box: CropBox) -> tuple[float, float]: ...
@overload
def point_in_box(x: np.ndarray, y: np.ndarray, box: CropBox) -> tuple[np.ndarray, np.ndarray]: ...
def point_in_box(
    x: float | np.ndarray, y: float | np.ndarray, box: CropBox
) -> tuple[float | np.ndarray, float | np.ndarray]:
    """Place of points (source pixels) in a crop: (u, v), 0..1 from left to right and top to bottom; outside beyond."""
    return (x - box.left) / box.width, (y - box.top) / box.height
