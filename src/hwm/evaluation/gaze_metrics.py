"""How well a heat map says where people look, against the true point.

Heat maps [P, Y, X] and true points [P, 2] (x, y in 0..1 of the picture) → AUC and distance, one number a map.
AUC is the area under the ROC curve with the true point's cell as the one positive (Gaze-LLE's evaluation on one
annotator); L2 is the distance between the map's highest cell and the true point, in shares of the picture's side.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def gaze_auc(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Share of the other cells that are cooler than the true point's cell (ties count half); 0.5 is chance."""
    rows, cols = heatmaps_PYX.shape[1:]
    col = (points_P2[:, 0] * cols).long().clamp(0, cols - 1)
    row = (points_P2[:, 1] * rows).long().clamp(0, rows - 1)
    flat = heatmaps_PYX.flatten(1)
    true = flat.gather(1, (row * cols + col)[:, None])
    cooler = (flat < true).sum(1).double() + 0.5 * ((flat == true).sum(1) - 1).double()
    return (cooler / (rows * cols - 1)).to(heatmaps_PYX.dtype)


def gaze_l2(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Distance from the centre of the hottest cell to the true point, in shares of the picture's side."""
    rows, cols = heatmaps_PYX.shape[1:]
    hottest = heatmaps_PYX.flatten(1).argmax(1)
    x, y = (hottest % cols + 0.5) / cols, (hottest // cols + 0.5) / rows
    return torch.linalg.vector_norm(torch.stack([x, y], dim=1) - points_P2, dim=1)


def gaussian_maps(points_P2: Float[Tensor, "p 2"], size: tuple[int, int], sigma: float) -> Float[Tensor, "p y x"]:
    """Heat maps with a Gaussian of height 1 at each point; `sigma` as a share of the picture's side."""
    rows, cols = size
    y = (torch.arange(rows, device=points_P2.device) + 0.5) / rows
    x = (torch.arange(cols, device=points_P2.device) + 0.5) / cols
    dy2 = (y[None] - points_P2[:, 1:]).square()[:, :, None]
    dx2 = (x[None] - points_P2[:, :1]).square()[:, None, :]
    return torch.exp(-(dx2 + dy2) / (2 * sigma**2))
