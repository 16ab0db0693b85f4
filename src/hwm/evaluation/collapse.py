"""Has the predictor collapsed? Its predictions beside their targets: do features still vary, in as many directions?

Collapse to a constant or to few directions can lower an L1 loss; the loss alone does not tell. Both numbers are ratios
to the targets of the same steps, so that they do not depend on the encoder: 1 is as varied as the truth, 0 is collapse.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hwm.losses import effective_rank

MIN_DEVIATION_RATIO = 0.5
"""Alarm below this ratio of the mean deviation of a feature over tokens."""

MIN_RANK_RATIO = 0.5
"""Alarm below this ratio of effective ranks."""

MONITORED_TOKENS = 512
"""At most so many tokens, evenly spaced, are looked at."""


class CollapseMonitors(NamedTuple):
    """Predictions over targets."""

    deviation_ratio: float
    rank_ratio: float

    def alarms(self) -> dict[str, str]:
        """Name of each monitor below its bound → what to tell."""
        bounds = {"deviation_ratio": MIN_DEVIATION_RATIO, "rank_ratio": MIN_RANK_RATIO}
        what = {
            "deviation_ratio": "features of the predictions vary",
            "rank_ratio": "effective rank of the predictions is",
        }
        return {
            name: f"{what[name]} {value:.2f} times the targets' (alarm below {bounds[name]:g}): is it collapsing?"
            for name, value in self._asdict().items()
            if value < bounds[name]
        }


@torch.no_grad()
def collapse_monitors(predicted_LD: Float[Tensor, "l d"], target_LD: Float[Tensor, "l d"]) -> CollapseMonitors:
    """Compare predicted with true tokens of the same places and times (L ≥ 2)."""
    some = torch.linspace(0, len(predicted_LD) - 1, min(len(predicted_LD), MONITORED_TOKENS)).long()
    predicted, target = predicted_LD[some].float(), target_LD[some].float()
    deviation, true_deviation = (float(tokens.std(dim=0).mean()) for tokens in (predicted, target))
    return CollapseMonitors(
        deviation / true_deviation if true_deviation > 0 else 1.0, effective_rank(predicted) / effective_rank(target)
    )
