"""The stage-2 probe: an attentive probe that knows which step and which patch a token comes from.

Latents of single frames carry no time, and an attentive pooler has no positions, so "the head points left" and "the
cup stands left" could not be told from their mirror images. A learned vector a step and a learned vector a patch are
therefore added before pooling (upstream's clip encoder mixes positions into its tokens; frames encoded alone do not).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.models.probe import AttentiveProbe

TASK = "step"


@dataclass(frozen=True)
class StepProbeSpec:
    """Sizes of a stage-2 probe: latents D on `num_steps` × `num_patches` tokens, C classes."""

    width: int
    num_steps: int
    num_patches: int
    num_classes: int
    num_heads: int
    depth: int = 1
    num_queries: int = 1


class StepProbe(nn.Module):
    """Features of observed and imagined steps → logits over key steps."""

    def __init__(self, spec: StepProbeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.step_embed = nn.Parameter(torch.empty(spec.num_steps, 1, spec.width))
        self.patch_embed = nn.Parameter(torch.empty(1, spec.num_patches, spec.width))
        nn.init.trunc_normal_(self.step_embed, std=0.02)
        nn.init.trunc_normal_(self.patch_embed, std=0.02)
        self.probe = AttentiveProbe(spec.width, spec.num_heads, spec.depth, spec.num_queries, {TASK: spec.num_classes})

    def forward(self, features_BTND: Float[Tensor, "b t n d"], valid_BT: Bool[Tensor, "b t"]) -> Float[Tensor, "b c"]:
        """Logits [B, C]; steps with `valid_BT` false are not read."""
        tokens_BLD = (features_BTND + self.step_embed + self.patch_embed).flatten(1, 2)
        valid_BL = valid_BT.repeat_interleave(features_BTND.shape[2], dim=1)
        return self.probe(tokens_BLD, valid_BL)[TASK]
