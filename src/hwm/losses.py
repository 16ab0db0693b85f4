"""Losses of both stages as pure functions of tensors; models never compute their own loss.

Latents and scene tokens are layer-normed without affine parameters on both sides, as in V-JEPA 2 and V-JEPA 2-AC
(`loss_exp: 1`, targets `F.layer_norm`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


class PredictorLosses(NamedTuple):
    """Parts of the stage-1 loss, each a scalar; `total` is the one to differentiate."""

    total: Tensor
    teacher_forced: Tensor
    rollout: Tensor
    scene: Tensor


def layer_normed(tokens: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Normalise the last axis to mean 0 and variance 1, without parameters (eps 1e-5, as `F.layer_norm`)."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def masked_l1(
    prediction: Float[Tensor, "b t n d"], target: Float[Tensor, "b t n d"], counts: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean absolute difference over the steps where `counts` is true; 0 (with a gradient path) where none counts."""
    weight = counts.to(prediction.dtype)
    per_step = (prediction - target).abs().mean(dim=(2, 3))
    return (per_step * weight).sum() / weight.sum().clamp(min=1.0)


def variance_hinge(features: Float[Tensor, "l d"]) -> Float[Tensor, ""]:
    """VICReg's variance term: mean over features of max(0, 1 − deviation over the l samples)."""
    deviation = torch.sqrt(features.var(dim=0, unbiased=True) + 1e-4)
    return F.relu(1.0 - deviation).mean()


def effective_rank(features: Float[Tensor, "l d"]) -> float:
    """exp(entropy of the normalised singular values) of the centred features (Roy & Vetterli 2007); 1 ≤ rank ≤ d."""
    singular = torch.linalg.svdvals((features - features.mean(0)).double())
    share = singular / singular.sum().clamp(min=1e-12)
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum()))
