"""Attention pooling of normed tokens by few queries, one sample at a time: for training probes on a CPU.

    tokens [B, L, D] + added [L, D], asked [B, J, D] -> softmax(asked · norm(tokens + added)) · norm(tokens + added)

The plain formula makes half a dozen tensors of B·L·D, which the system hands out page by page. Here nothing larger than
one sample's L·D is made, and the way back makes it again instead of keeping it.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def pooled_by_sample(
    tokens_BLD: Float[Tensor, "b l d"],
    added_LD: Float[Tensor, "l d"] | None,
    asked_BJD: Float[Tensor, "b j d"],
    unread_BL: Bool[Tensor, "b l"] | None,
    eps: float,
) -> Float[Tensor, "b j d"]:
    """What each of J queries reads from normed tokens (no weight, no bias).

    Args:
        tokens_BLD: the tokens; no gradient flows to them.
        added_LD: added to the tokens of every sample before they are normed; gets a gradient.
        asked_BJD: queries, scaled; get a gradient.
        unread_BL: tokens that are not read.
        eps: of the layer norm.
    """
    return cast(Tensor, _Pool.apply(tokens_BLD, added_LD, asked_BJD, unread_BL, eps))


def may_pool_by_sample(tokens_BLD: Tensor) -> bool:
    """Whether this is the faster way: float32 on a CPU, with gradients for the probe and none for the tokens."""
    plain = tokens_BLD.device.type == "cpu" and tokens_BLD.dtype == torch.float32
    return plain and torch.is_grad_enabled() and not tokens_BLD.requires_grad and not torch.is_autocast_enabled("cpu")


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx,
        tokens_BLD: Tensor,
        added_LD: Tensor | None,
        asked_BJD: Tensor,
        unread_BL: Tensor | None,
        eps: float,
    ) -> Tensor:
        pooled_BJD = torch.empty_like(asked_BJD)
        for sample, asked_JD in enumerate(asked_BJD):
            normed_LD = _normed(tokens_BLD[sample], added_LD, eps)[0]
            pooled_BJD[sample] = _shares(asked_JD, normed_LD, unread_BL, sample) @ normed_LD
        ctx.save_for_backward(tokens_BLD, added_LD, asked_BJD, unread_BL)  # pyright: ignore[reportArgumentType] (None is fine)
        ctx.eps = eps  # pyright: ignore[reportAttributeAccessIssue]
        return pooled_BJD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, grad_BJD: Tensor
    ) -> tuple[None, Tensor | None, Tensor, None, None]:
        tokens_BLD, added_LD, asked_BJD, unread_BL = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        grad_added_LD = None if added_LD is None else torch.zeros_like(added_LD)
        grad_asked_BJD = torch.empty_like(asked_BJD)
        for sample, (asked_JD, grad_JD) in enumerate(zip(asked_BJD, grad_BJD, strict=True)):
            normed_LD, rate_L1 = _normed(tokens_BLD[sample], added_LD, ctx.eps)  # pyright: ignore[reportAttributeAccessIssue]
            share_JL = _shares(asked_JD, normed_LD, unread_BL, sample)
            grad_share_JL = grad_JD @ normed_LD.T
            grad_score_JL = share_JL * (grad_share_JL - (grad_share_JL * share_JL).sum(dim=1, keepdim=True))
            torch.mm(grad_score_JL, normed_LD, out=grad_asked_BJD[sample])
            if grad_added_LD is not None:
                left_L2J, right_2JD = torch.cat((share_JL, grad_score_JL)).T, torch.cat((grad_JD, asked_JD))
                # The way back through the norm: without its mean and its part along the normed token.
                right_2JD = right_2JD - right_2JD.mean(dim=1, keepdim=True)
                grad_LD = left_L2J @ right_2JD
                along_L1 = (share_JL * grad_share_JL + grad_score_JL * (asked_JD @ normed_LD.T)).sum(dim=0)[:, None]
                grad_LD.addcmul_(normed_LD, along_L1, value=-1 / normed_LD.shape[1])
                grad_added_LD.addcmul_(grad_LD, rate_L1)
        return None, grad_added_LD, grad_asked_BJD, None, None


def _normed(tokens_LD: Tensor, added_LD: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Normed tokens, and one over their deviations."""
    placed_LD = tokens_LD if added_LD is None else tokens_LD + added_LD
    normed_LD, _, rate_L1 = torch.native_layer_norm(placed_LD, placed_LD.shape[-1:], None, None, eps)
    return normed_LD, rate_L1


def _shares(asked_JD: Tensor, normed_LD: Tensor, unread_BL: Tensor | None, sample: int) -> Tensor:
    """Softmax of the scores, [J, L]."""
    score_JL = asked_JD @ normed_LD.T
    if unread_BL is not None:
        score_JL.masked_fill_(unread_BL[sample], -torch.inf)
    return score_JL.softmax(dim=1)
