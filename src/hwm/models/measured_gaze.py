"""Measured gaze as tokens on the patch grid: how much each patch is looked at, and where it lies from the gaze point.

Points [S, 2] in the crop → weights [S, N] that sum to 1, and scene tokens [S, N, 3]. Where gaze is unknown both are 0,
and `known` must go with them: a map of zeros does not say that nobody looks anywhere.

The three channels are the weight relative to the most attended patch (0..1) and the offsets (dx, dy) from the gaze
point to the patch's centre, in sides of the crop. A few patches away the weight is 0 for all purposes; the offsets
still say where the point is. They are not layer-normed: three numbers normalised among themselves would lose how far
away a patch is.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SCENE_WIDTH = 3
"""Channels of a scene token: weight, dx, dy."""

SIGMA = 0.05
"""Deviation of the Gaussian around the gaze point, in sides of the crop (Gaze-LLE's target: 3 of 64)."""


def gaze_point_weights(
    points_S2: Float[Tensor, "s 2"], known_S: Bool[Tensor, " s"], grid: tuple[int, int]
) -> Float[Tensor, "s n"]:
    """Each patch's share of a Gaussian at the gaze point; 0 everywhere where gaze is unknown.

    The Gaussian is integrated over each patch (not read at its centre, which a narrow one may miss), and what falls
    outside the crop is shared out.

    Args:
        points_S2: x, y in 0..1 of the crop.
        known_S: where there is a point.
        grid: rows and columns of patches.
    """
    rows, cols = grid
    vertical, horizontal = _shares(points_S2[:, 1], rows), _shares(points_S2[:, 0], cols)
    weights_SN = (vertical[:, :, None] * horizontal[:, None, :]).flatten(1)
    return torch.where(known_S[:, None], weights_SN, torch.zeros_like(weights_SN))


def gaze_point_scene(
    points_S2: Float[Tensor, "s 2"], known_S: Bool[Tensor, " s"], grid: tuple[int, int]
) -> Float[Tensor, "s n 3"]:
    """Scene tokens of measured gaze (weight, dx, dy); 0 where gaze is unknown. Arguments as `gaze_point_weights`."""
    rows, cols = grid
    weights_SN = gaze_point_weights(points_S2, known_S, grid)
    peaked_SN = weights_SN / weights_SN.amax(dim=1, keepdim=True).clamp(min=1e-12)
    y_N = _centres(rows, points_S2).repeat_interleave(cols)
    x_N = _centres(cols, points_S2).repeat(rows)
    scene_SN3 = torch.stack([peaked_SN, x_N - points_S2[:, :1], y_N - points_S2[:, 1:]], dim=2)
    return torch.where(known_S[:, None, None], scene_SN3, torch.zeros_like(scene_SN3))


def _centres(cells: int, like: Tensor) -> Tensor:
    return (torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells


def _shares(place_S: Tensor, cells: int) -> Tensor:
    """Share [S, cells] of a 1-D Gaussian at each place that falls into each of the equal cells of 0..1."""
    edges = torch.arange(cells + 1, device=place_S.device, dtype=place_S.dtype) / cells
    below = torch.special.ndtr((edges - place_S[:, None]) / SIGMA)
    mass = below[:, 1:] - below[:, :-1]
    return mass / mass.sum(dim=1, keepdim=True).clamp(min=1e-12)
