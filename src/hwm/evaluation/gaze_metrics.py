"""How well a heat map says where people look, against the true point.

Heat maps [P, Y, X] and true points [P, 2] (x, y in 0..1 of the picture) → one number a map:
AUC, the area under the ROC curve with the true point's cell as the one positive (Gaze-LLE's evaluation on one
annotator); L2, the distance between the map's highest cell and the true point, in shares of the picture's side; NSS,
the normalised scanpath saliency (Peters et al. 2005); KL, the divergence of the map from a Gaussian at the true point,
as in the MIT saliency benchmark (Bylinskii et al. 2019).
"""

import torch
from jaxtyping import Float
from torch import Tensor

_EPS = 2.0**-52
"""The saliency benchmark's guard against a division by 0."""


def gaze_auc(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Share of the other cells that are cooler than the true point's cell (ties count half); 0.5 is chance."""
    flat, true = heatmaps_PYX.flatten(1), _at_points(heatmaps_PYX, points_P2)
    cooler = (flat < true).sum(1).double() + 0.5 * ((flat == true).sum(1) - 1).double()
    return (cooler / (flat.shape[1] - 1)).to(heatmaps_PYX.dtype)


def gaze_l2(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Distance from the centre of the hottest cell to the true point, in shares of the picture's side."""
    rows, cols = heatmaps_PYX.shape[1:]
    hottest = heatmaps_PYX.flatten(1).argmax(1)
    x, y = (hottest % cols + 0.5) / cols, (hottest // cols + 0.5) / rows
    return torch.linalg.vector_norm(torch.stack([x, y], dim=1) - points_P2, dim=1)


def gaze_nss(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """The map at the true point, in standard deviations above the map's mean; 0 is chance, and for a flat map."""
    flat = heatmaps_PYX.flatten(1).double()
    above = _at_points(heatmaps_PYX, points_P2)[:, 0].double() - flat.mean(1)
    deviation = flat.std(1)
    return torch.where(deviation > 0, above / deviation.clamp(min=_EPS), 0.0).to(heatmaps_PYX.dtype)


def gaze_kl(heatmaps_PYX: Float[Tensor, "p y x"], points_P2: Float[Tensor, "p 2"], sigma: float) -> Float[Tensor, " p"]:
    """KL(truth ‖ map) in nats, both made to sum to 1; 0 is best.

    Args:
        heatmaps_PYX: values ≥ 0.
        points_P2: the truth is a Gaussian at each.
        sigma: its deviation, as a share of the picture's side.
    """
    truth = gaussian_maps(points_P2.double(), (heatmaps_PYX.shape[1], heatmaps_PYX.shape[2]), sigma).flatten(1)
    truth = truth / truth.sum(1, keepdim=True)
    said = heatmaps_PYX.flatten(1).double()
    said = said / said.sum(1, keepdim=True).clamp(min=_EPS)
    return (truth * torch.log(_EPS + truth / (said + _EPS))).sum(1).to(heatmaps_PYX.dtype)


def gaussian_maps(points_P2: Float[Tensor, "p 2"], size: tuple[int, int], sigma: float) -> Float[Tensor, "p y x"]:
    """Heat maps with a Gaussian of height 1 at each point; `sigma` as a share of the picture's side."""
    rows, cols = size
    y = (torch.arange(rows, device=points_P2.device) + 0.5) / rows
    x = (torch.arange(cols, device=points_P2.device) + 0.5) / cols
    dy2 = (y[None] - points_P2[:, 1:]).square()[:, :, None]
    dx2 = (x[None] - points_P2[:, :1]).square()[:, None, :]
    return torch.exp(-(dx2 + dy2) / (2 * sigma**2))


def _at_points(heatmaps_PYX: Tensor, points_P2: Tensor) -> Tensor:
    """Each map's value [P, 1] in the cell of its point."""
    rows, cols = heatmaps_PYX.shape[1:]
    col = (points_P2[:, 0] * cols).long().clamp(0, cols - 1)
    row = (points_P2[:, 1] * rows).long().clamp(0, rows - 1)
    return heatmaps_PYX.flatten(1).gather(1, (row * cols + col)[:, None])
