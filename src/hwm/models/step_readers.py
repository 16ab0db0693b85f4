"""Probes without attention: they read each step's mean latent, and its gaze point, in the order of the steps.

Such a probe has far fewer parameters than an attentive pooler and learns from fewer examples. It cannot choose where in
a frame to look: only gaze can.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.losses import layer_normed

HIDDEN = 128
"""Hidden width of the network that squeezes one step."""
SQUEEZED = 16
"""Numbers that are kept of a step's mean latent, and as many of its gaze point."""
JOINT = 64
"""Hidden width of the layer that reads all steps."""
DROPOUT = (0.1, 0.3, 0.5)
"""Share left out in training: of a latent, of the hidden layer of one step, and of that of all steps."""


class MeanProbe(nn.Module):
    """One linear map from the mean latents of all steps; a step that is not read gives zeros. Starts at zero."""

    def __init__(self, width: int, num_steps: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.head = nn.Linear(num_steps * width, sum(outputs.values()))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, patches_BTND: Float[Tensor, "b t n d"], valid_BT: Bool[Tensor, "b t"]
    ) -> dict[str, Float[Tensor, "b _"]]:
        """Logits of each task, its positions side by side."""
        means_BTD = layer_normed(patches_BTND.mean(dim=2)) * valid_BT[:, :, None]
        return _by_task(self.head(means_BTD.flatten(1)), self.outputs)


class MLPProbe(nn.Module):
    """Squeezes each step into few numbers, by one network for all steps, and reads those of all steps in order.

    What is looked at (a cup, a pan) takes a hidden layer to tell from a latent; that layer is shared by the steps, so
    every step of every example teaches it. The narrow waist and dropout keep the rest from learning examples by heart.
    What has been done in which scene is no sum of the two, so the steps are read by a hidden layer too, beside a linear
    map.
    """

    def __init__(self, width: int, num_steps: int, gaze_point: bool, outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.squeeze_mean = _squeeze(width)
        self.squeeze_point = _squeeze(width) if gaze_point else None
        read, said = num_steps * SQUEEZED * (1 + gaze_point), sum(outputs.values())
        self.direct = nn.Linear(read, said)
        self.joint = nn.Sequential(nn.Linear(read, JOINT), nn.GELU(), nn.Dropout(DROPOUT[2]), nn.Linear(JOINT, said))

    def forward(
        self,
        patches_BTND: Float[Tensor, "b t n d"],
        valid_BT: Bool[Tensor, "b t"],
        points_BTD: Float[Tensor, "b t d"] | None,
        looked_BT: Bool[Tensor, "b t"],
    ) -> dict[str, Float[Tensor, "b _"]]:
        """Logits of each task, its positions side by side.

        Args:
            patches_BTND: latents of each step.
            valid_BT: steps whose mean latent is read; others give zeros.
            points_BTD: gaze points; None where the probe has none.
            looked_BT: steps whose gaze point is read.
        """
        read = self.squeeze_mean(layer_normed(patches_BTND.mean(dim=2))) * valid_BT[:, :, None]
        if self.squeeze_point is not None:
            assert points_BTD is not None
            read = torch.cat((read, self.squeeze_point(layer_normed(points_BTD)) * looked_BT[:, :, None]), dim=2)
        read = read.flatten(1)
        return _by_task(self.direct(read) + self.joint(read), self.outputs)


def _squeeze(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(DROPOUT[0]),
        nn.Linear(width, HIDDEN),
        nn.GELU(),
        nn.Dropout(DROPOUT[1]),
        nn.Linear(HIDDEN, SQUEEZED),
        nn.LayerNorm(SQUEEZED),
        nn.GELU(),
    )


def _by_task(logits_BC: Tensor, outputs: Mapping[str, int]) -> dict[str, Tensor]:
    return dict(zip(outputs, logits_BC.split(list(outputs.values()), dim=1), strict=True))
