"""Where will people look? Imagined scene tokens read as heat maps on the patch grid, and scored against later gaze.

Imagined scene tokens cannot go through Gazelle's own heat-map head: they were resampled to the encoder's patches and
layer-normed, and neither can be undone. So a linear read-out is fitted by ridge regression on tokens of training videos
and Gazelle's gaze weights of the same steps: one vector for all patches, from a token to the logarithm of its patch's
weight. (Gazelle's head is itself linear up to its sigmoid.) It has a closed form: the same tokens give the same map.
Scored beside it: the same read-out of the *true* later tokens, which bounds what it can show; persistence, the gaze of
the last observed step; and a centre prior, the mean gaze weights of the training videos.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.gaze_metrics import gaze_auc, gaze_kl, gaze_l2, gaze_nss

RIDGE = 1e-3
"""Weight of the penalty, per token."""

FLOOR = 1e-2
"""Added to a patch's weight (1 is the mean patch) before its logarithm is taken."""

SIGMA = 0.05
"""Deviation of the Gaussian that stands for the truth in KL, in sides of the crop."""


class GazeReadout(NamedTuple):
    """A scene token s says log weight = s · slope + offset."""

    slope_G: Tensor
    offset: Tensor

    def __call__(self, scene_BKNG: Float[Tensor, "b k n g"]) -> Float[Tensor, "b k n"]:
        """Gaze weights, summing to 1 over the patches of a step."""
        return (scene_BKNG @ self.slope_G.to(scene_BKNG) + self.offset.to(scene_BKNG)).softmax(dim=2)


def fit_readout(pairs: Iterable[tuple[Float[Tensor, "s n g"], Float[Tensor, "s n"]]]) -> GazeReadout:
    """Ridge regression in closed form, in float64.

    Args:
        pairs: scene tokens and gaze weights (summing to 1) of the same steps.

    Raises:
        DataError: there is no step.
    """
    square, product, count = None, None, 0
    for scene_SNG, gaze_SN in pairs:
        given_LG = torch.nn.functional.pad(scene_SNG.flatten(0, 1).double().cpu(), (0, 1), value=1.0)
        wanted_L = (gaze_SN.double().cpu() * gaze_SN.shape[1] + FLOOR).log().flatten()
        square = given_LG.T @ given_LG + (0 if square is None else square)
        product = given_LG.T @ wanted_L + (0 if product is None else product)
        count += len(given_LG)
    if square is None or product is None or not count:
        raise DataError("there is no known gaze to fit a read-out on", expected="training clips with gaze")
    penalty = torch.full((len(square),), RIDGE * count, dtype=torch.float64)
    penalty[-1] = 0.0  # the offset is free
    solved = torch.linalg.solve(square + penalty.diag(), product)
    return GazeReadout(solved[:-1].float(), solved[-1].float())


def peak_of(gaze_BKN: Float[Tensor, "b k n"], grid: tuple[int, int]) -> Float[Tensor, "b k 2"]:
    """Centre (x, y) in 0..1 of the patch that is looked at most."""
    rows, cols = grid
    index = gaze_BKN.argmax(dim=2)
    return torch.stack([(index % cols + 0.5) / cols, (index // cols + 0.5) / rows], dim=2)


class ForecastScores:
    """Adds up steps; `result` gives the mean of each metric for each forecast and step ahead.

    Args:
        grid: rows and columns of patches.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        self._grid = grid
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._counts = torch.zeros(0, dtype=torch.int64)

    def add(
        self,
        forecasts: Mapping[str, Float[Tensor, "b k n"]],
        points_BK2: Float[Tensor, "b k 2"],
        known_BK: Bool[Tensor, "b k"],
    ) -> None:
        """Score forecasts of a batch at the steps whose true point is known; all are scored at the same steps."""
        batch, steps = known_BK.shape
        kept = known_BK.flatten().cpu()
        points = points_BK2.flatten(0, 1).float().cpu()
        for name, maps_BKN in forecasts.items():
            maps = maps_BKN.flatten(0, 1).float().cpu().unflatten(1, self._grid)
            values = {
                "auc": gaze_auc(maps, points), "nss": gaze_nss(maps, points), "kl": gaze_kl(maps, points, SIGMA),
                "l2": gaze_l2(maps, points),
            }  # fmt: skip
            sums = self._sums.setdefault(name, {})
            for metric, value_P in values.items():
                kept_P = torch.where(kept, value_P.double(), 0.0)
                sums[metric] = sums.get(metric, 0) + kept_P.unflatten(0, (batch, steps)).sum(0)
        counted = kept.unflatten(0, (batch, steps)).sum(0)
        self._counts = counted if not len(self._counts) else self._counts + counted

    def result(self) -> dict[str, dict[str, float]]:
        """Forecast → `auc_k`, `nss_k`, `kl_k`, `l2_k`, and `num_steps_k`, for each k with known gaze."""
        scores = {}
        for name, sums in self._sums.items():
            scores[name] = {}
            for k, count in enumerate(self._counts.tolist()):
                if count:
                    means = {f"{metric}_{k + 1}": float(total[k]) / count for metric, total in sums.items()}
                    scores[name] |= means | {f"num_steps_{k + 1}": count}
        return {name: found for name, found in scores.items() if found}
