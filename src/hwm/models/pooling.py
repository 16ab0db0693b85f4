"""Attention pooling of normed tokens by few queries, a block of tokens at a time: for probes on a CPU.

    placed = tokens [B, L, D] + added [L, D];  normed = (placed - mean) · rate;  rate = 1 / sqrt(variance + eps)
    asked [J, D] -> score = asked · normed [B, J, L] -> share = softmax(score) -> pooled = share · normed [B, J, D]

The plain formula makes half a dozen tensors of B·L·D, which the system hands out page by page. Here a block of tokens
is placed, centred and read while it lies in the cache, and `rate` is applied to scores and shares instead of to tokens.
Nothing larger than a block, B·J·L or L·D is made. The softmax runs along: where a block has a higher score than those
before, what these gave is scaled down (Milakov and Gimelshein, 2018, arXiv:1805.02867). The way back makes each block
again.

With grad [B, J, D] the gradient of pooled:

    grad_share = grad · normed;  grad_score = share · (grad_share - grad · pooled)
    grad_asked = grad_score · normed
    grad_normed = shareᵀ · grad + grad_scoreᵀ · asked
    grad_added = Σ_B rate · (grad_normed - its mean - normed · (grad_normed · normed) / D)
    grad_normed · normed = Σ_J share · grad_share + grad_score · score

In `grad_added` the first two terms are one product over the queries and the gradients of all samples; the last one is
the centred tokens, each times a number.
"""

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

BLOCK_NUMBERS = 2**20
"""How many numbers of tokens are held at a time, of all samples together: 4 MB."""


def pooled_by_block(
    tokens_BLD: Float[Tensor, "b l d"],
    added_LD: Float[Tensor, "l d"] | None,
    asked_JD: Float[Tensor, "j d"],
    unread_BL: Bool[Tensor, "b l"] | None,
    eps: float,
) -> Float[Tensor, "b j d"]:
    """What each of J queries reads from normed tokens (no weight, no bias).

    Args:
        tokens_BLD: the tokens; no gradient flows to them.
        added_LD: added to the tokens of every sample before they are normed; gets a gradient.
        asked_JD: queries, scaled, the same for all samples; get a gradient.
        unread_BL: tokens that are not read.
        eps: of the layer norm.
    """
    return cast(Tensor, _Pool.apply(tokens_BLD, added_LD, asked_JD, unread_BL, eps))


def may_pool_by_block(tokens_BLD: Tensor) -> bool:
    """Whether this is the faster way: float32 on a CPU, and no gradients for the tokens."""
    plain = tokens_BLD.device.type == "cpu" and tokens_BLD.dtype == torch.float32
    return plain and not tokens_BLD.requires_grad and not torch.is_autocast_enabled("cpu")


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx,
        tokens_BLD: Tensor,
        added_LD: Tensor | None,
        asked_JD: Tensor,
        unread_BL: Tensor | None,
        eps: float,
    ) -> Tensor:
        (batch, length, width), num_queries = tokens_BLD.shape, asked_JD.shape[0]
        score_BJL, rate_BL = tokens_BLD.new_empty(batch, num_queries, length), tokens_BLD.new_empty(batch, length)
        pooled_BJD = tokens_BLD.new_zeros(batch, num_queries, width)
        highest_BJ1 = tokens_BLD.new_full((batch, num_queries, 1), torch.finfo(tokens_BLD.dtype).min)
        for block, centred_BLD in _blocks(tokens_BLD, added_LD):
            variance_BL = torch.linalg.vector_norm(centred_BLD, dim=2).square_().div_(width)
            rate_B1L = rate_BL[:, block].copy_(variance_BL.add_(eps).rsqrt_())[:, None]
            score = torch.mul((centred_BLD @ asked_JD.T).mT, rate_B1L, out=score_BJL[:, :, block])
            if unread_BL is not None:
                score.masked_fill_(unread_BL[:, None, block], -torch.inf)
            before_BJ1, highest_BJ1 = highest_BJ1, torch.maximum(highest_BJ1, score.amax(dim=2, keepdim=True))
            pooled_BJD.mul_((before_BJ1 - highest_BJ1).exp_())
            pooled_BJD.baddbmm_((score - highest_BJ1).exp_().mul_(rate_B1L), centred_BLD)
        share_BJL = (score_BJL - highest_BJ1).exp_()
        total_BJ1 = share_BJL.sum(dim=2, keepdim=True)
        share_BJL.div_(total_BJ1)
        pooled_BJD.div_(total_BJ1)
        if unread_BL is not None:
            score_BJL.masked_fill_(unread_BL[:, None], 0.0)  # the way back multiplies it by a share of zero
        ctx.save_for_backward(tokens_BLD, added_LD, asked_JD, rate_BL, score_BJL, share_BJL, pooled_BJD)  # pyright: ignore[reportArgumentType] (None is fine)
        return pooled_BJD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, grad_BJD: Tensor
    ) -> tuple[None, Tensor | None, Tensor, None, None]:
        tokens_BLD, added_LD, asked_JD, rate_BL, score_BJL, share_BJL, pooled_BJD = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        grad_added_LD = None if added_LD is None else torch.empty_like(added_LD)
        grad_asked_JD = torch.zeros_like(asked_JD)
        mean_BJ1 = (grad_BJD * pooled_BJD).sum(dim=2, keepdim=True)  # of grad_share, under the shares
        sources_SD = torch.cat((asked_JD, grad_BJD.flatten(0, 1)))  # S: queries, then the gradients of all samples
        sources_SD = sources_SD - sources_SD.mean(dim=1, keepdim=True)
        for block, centred_BLD in _blocks(tokens_BLD, added_LD):
            rate_B1L, share, score = rate_BL[:, None, block], share_BJL[:, :, block], score_BJL[:, :, block]
            grad_share = torch.bmm(grad_BJD, centred_BLD.mT).mul_(rate_B1L)
            grad_score = (grad_share - mean_BJ1).mul_(share)
            along_BL = (share * grad_share).addcmul_(grad_score, score).sum(dim=1)
            rated = grad_score.mul_(rate_B1L)
            grad_asked_JD.addmm_(rated.transpose(0, 1).flatten(1), centred_BLD.flatten(0, 1))
            if grad_added_LD is not None:
                given_SL = torch.cat((rated.sum(dim=0), (share * rate_B1L).flatten(0, 1)))
                torch.mm(given_SL.T, sources_SD, out=grad_added_LD[block])
                weight_BL1 = along_BL.mul_(rate_BL[:, block].square())[:, :, None]
                for centred_LD, weight_L1 in zip(centred_BLD, weight_BL1, strict=True):
                    grad_added_LD[block].addcmul_(centred_LD, weight_L1, value=-1 / centred_LD.shape[1])
        return None, grad_added_LD, grad_asked_JD, None, None


def _blocks(tokens_BLD: Tensor, added_LD: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of tokens, less the mean of each: where they lie in L, and [B, l, D], written over by the next block."""
    batch, length, width = tokens_BLD.shape
    size = min(length, max(1, BLOCK_NUMBERS // (batch * width)))
    held = tokens_BLD.new_empty(batch * size * width)
    for first in range(0, length, size):
        block = slice(first, min(first + size, length))
        tokens = tokens_BLD[:, block]
        centred_BLD = held[: tokens.numel()].view(tokens.shape)
        if added_LD is not None:
            tokens = torch.add(tokens, added_LD[block], out=centred_BLD)
        yield block, torch.sub(tokens, tokens.mean(dim=2, keepdim=True), out=centred_BLD)
