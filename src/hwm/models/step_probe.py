"""The stage-2 probe: reads steps of latents, knows the step and the patch of each token, and where people look.

Latents of single frames carry no time, and an attentive pooler has no positions, so "the head points left" and "the
cup stands left" could not be told from their mirror images. A learned vector a step and a learned vector a patch are
therefore added before pooling (upstream's clip encoder mixes positions into its tokens; frames encoded alone do not).

With a gaze point, each step brings one more token (its latents pooled where people look). A pooler that starts by
looking at hundreds of tokens alike finds these few too slowly, so they also reach the logits through a linear map of
their own, which starts at zero. The token of a step whose gaze is unknown is not read.

The pooler may also be left out: a linear map (`mean`) or a small network (`mlp`) then reads the mean of each step's
patches in its place (`step_readers.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.losses import layer_normed
from hwm.models.probe import AttentiveProbe
from hwm.models.step_readers import MeanProbe, MLPProbe

Pooler = Literal["attentive", "mean", "mlp"]

EMBED_STD = 0.5
"""Of the same order as the layer-normed latents that the vectors are added to, or attention would not notice them."""


@dataclass(frozen=True)
class StepProbeSpec:
    """Sizes of a stage-2 probe: latents D on `num_steps` × `num_tokens` tokens, and the heads.

    `num_tokens` counts the patches of a step and, with `gaze_point`, the one token after them. `heads` is task → (Z
    positions, C classes): what is said of the step to come, and with Z > 1 of those that follow it. Without `positions`
    no vectors are added: upstream's probe, for tokens that carry their positions already. `num_heads`, `depth`,
    `num_queries` and `positions` are the attentive pooler's.
    """

    width: int
    num_steps: int
    num_tokens: int
    heads: Mapping[str, tuple[int, int]]
    num_heads: int
    depth: int = 1
    num_queries: int = 1
    gaze_point: bool = False
    positions: bool = True
    pooler: Pooler = "attentive"


class StepProbe(nn.Module):
    """Features of observed and imagined steps → logits of each task."""

    def __init__(self, spec: StepProbeSpec) -> None:
        super().__init__()
        self.spec = spec
        outputs = {task: positions * classes for task, (positions, classes) in spec.heads.items()}
        if spec.pooler == "mean":
            self.probe = MeanProbe(spec.width, spec.num_steps, outputs)
        elif spec.pooler == "mlp":
            self.probe = MLPProbe(spec.width, spec.num_steps, spec.gaze_point, outputs)
        else:
            self.probe = self._attentive(spec, outputs)
        self.gaze_head = None
        if spec.gaze_point and spec.pooler != "mlp":
            self.gaze_head = nn.Linear(spec.num_steps * spec.width, sum(outputs.values()), bias=False)
            nn.init.zeros_(self.gaze_head.weight)

    def _attentive(self, spec: StepProbeSpec, outputs: Mapping[str, int]) -> AttentiveProbe:
        if spec.positions:
            self.step_embed = nn.Parameter(torch.empty(spec.num_steps, 1, spec.width))
            self.token_embed = nn.Parameter(torch.empty(1, spec.num_tokens, spec.width))
            nn.init.trunc_normal_(self.step_embed, std=EMBED_STD)
            nn.init.trunc_normal_(self.token_embed, std=EMBED_STD)
        return AttentiveProbe(spec.width, spec.num_heads, spec.depth, spec.num_queries, outputs)

    def forward(
        self,
        features_BTND: Float[Tensor, "b t n d"],
        valid_BT: Bool[Tensor, "b t"],
        gaze_known_BT: Bool[Tensor, "b t"] | None = None,
    ) -> dict[str, Float[Tensor, "b z _"]]:
        """Logits [B, Z, C] of each task.

        Args:
            features_BTND: latents of each step, its gaze point last where the probe has one.
            valid_BT: steps that are read.
            gaze_known_BT: steps whose gaze point is read; None means all valid ones.
        """
        looked_BT = valid_BT if gaze_known_BT is None else valid_BT & gaze_known_BT
        patches_BTND, points_BTD = features_BTND, None
        if self.spec.gaze_point:
            patches_BTND, points_BTD = features_BTND[:, :, :-1], features_BTND[:, :, -1]
        if isinstance(self.probe, MeanProbe):
            logits = self.probe(patches_BTND, valid_BT)
        elif isinstance(self.probe, MLPProbe):
            logits = self.probe(patches_BTND, valid_BT, points_BTD, looked_BT)
        else:
            logits = self._attend(features_BTND, valid_BT, looked_BT)
        if self.gaze_head is not None and points_BTD is not None:
            seen_BTD = layer_normed(points_BTD) * looked_BT[:, :, None]
            shifts = self.gaze_head(seen_BTD.flatten(1)).split([part.shape[1] for part in logits.values()], dim=1)
            logits = {task: part + shift for (task, part), shift in zip(logits.items(), shifts, strict=True)}
        return {task: part.unflatten(1, self.spec.heads[task]) for task, part in logits.items()}

    def _attend(self, features_BTND: Tensor, valid_BT: Tensor, looked_BT: Tensor) -> dict[str, Tensor]:
        """What the attentive probe says; it reads the gaze point of a step only where gaze is known."""
        added_LD = (self.step_embed + self.token_embed).flatten(0, 1) if self.spec.positions else None
        read_BTN = valid_BT[:, :, None].repeat(1, 1, features_BTND.shape[2])
        if self.spec.gaze_point:
            read_BTN[:, :, -1] = looked_BT
        return self.probe(features_BTND.flatten(1, 2), read_BTN.flatten(1), added_LD)
