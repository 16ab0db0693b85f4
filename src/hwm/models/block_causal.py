"""Block-causal attention: every step attends to the steps up to itself, patches of a step to one another.

Queries of the last L/N steps, keys and values of the S/N steps so far → what each query sees. Two ways to the same
result, neither of which forms an L × S mask, nor touches what may not be seen (a masked softmax would still multiply
later values by zero):

    attend_by_step     one product a step over growing keys: on every device
    attend_by_block    FlexAttention over the blocks that may be seen: compiled, on CUDA
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from hwm.models.kernels import attention

BLOCKS = (128, 64)
"""Tokens of a side of FlexAttention's blocks, the better first; one of them must divide the patches of a step."""


class Seen(NamedTuple):
    """What may be seen.

    Attributes:
        num_patches: N.
        valid_BT: false for padded steps, of all steps so far: seen by themselves alone. None: all are valid.
        blocks: the same for `attend_by_block`; None where steps are to be attended one by one.
    """

    num_patches: int
    valid_BT: Bool[Tensor, "b t"] | None
    blocks: BlockMask | None = None


def attend_by_step(
    query_BMLA: Float[Tensor, "b m l a"],
    key_BMSA: Float[Tensor, "b m s a"],
    value_BMSA: Float[Tensor, "b m s a"],
    seen: Seen,
) -> Float[Tensor, "b m l a"]:
    """Attention of the last L/N steps over the S/N steps so far, each step over those up to itself."""
    num_patches, valid_BT = seen.num_patches, seen.valid_BT
    num_new = query_BMLA.shape[2] // num_patches
    num_past = key_BMSA.shape[2] // num_patches - num_new
    ends = tuple(range(num_past + 1, num_past + num_new + 1))
    keys, values = (_beginnings(x, [end * num_patches for end in ends]) for x in (key_BMSA, value_BMSA))
    mixed = []
    for query, key, value, num_seen in zip(query_BMLA.split(num_patches, dim=2), keys, values, ends, strict=True):
        mask = None
        if valid_BT is not None:
            seen_BT = valid_BT[:, :num_seen] | _itself(num_seen, valid_BT.device)[-1]
            mask = seen_BT.repeat_interleave(num_patches, dim=1)[:, None, None]
        mixed.append(attention(query, key, value, mask))
    return torch.cat(mixed, dim=2)


class _Beginnings(torch.autograd.Function):
    """The first tokens of [B, M, S, A], for several ends; the last end is S.

    On the way back all are added up in one place. PyTorch's slices would each fill S tokens with zeros first.
    """

    @staticmethod
    def forward(ctx: Any, x_BMSA: Tensor, ends: Sequence[int]) -> tuple[Tensor, ...]:
        """Views of `x_BMSA`."""
        ctx.ends = ends
        return tuple(x_BMSA[:, :, :end] for end in ends)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """Their sum, S tokens long."""
        *shorter, longest_BMSA = grad_outputs
        total_BMSA = longest_BMSA.clone()
        for end, grad in zip(ctx.ends[:-1], shorter, strict=True):
            total_BMSA[:, :, :end] += grad
        return total_BMSA, None


def _beginnings(x_BMSA: Tensor, ends: Sequence[int]) -> tuple[Tensor, ...]:
    """`x[:, :, :end]` for each end."""
    if len(ends) == 1 or not torch.is_grad_enabled():
        return tuple(x_BMSA[:, :, :end] for end in ends)
    parts = _Beginnings.apply(x_BMSA, ends)
    assert isinstance(parts, tuple)
    return parts


def attend_by_block(
    query_BMLA: Float[Tensor, "b m l a"],
    key_BMLA: Float[Tensor, "b m l a"],
    value_BMLA: Float[Tensor, "b m l a"],
    seen: Seen,
) -> Float[Tensor, "b m l a"]:
    """Attention of L/N steps among themselves; `seen.blocks` is given. To be compiled: as it is, it would see all."""
    options: FlexKernelOptions | None = None
    if seen.num_patches % BLOCKS[0]:  # tiles no larger than a block
        options = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 64, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 64}
    mixed = flex_attention(query_BMLA, key_BMLA, value_BMLA, block_mask=seen.blocks, kernel_options=options)
    assert isinstance(mixed, Tensor)
    return mixed


def blocks_of(
    num_steps: int, num_patches: int, valid_BT: Bool[Tensor, "b t"] | None, device: torch.device
) -> BlockMask | None:
    """Which blocks of tokens see which, for `attend_by_block`; None where no block fits into a step.

    Every block lies in one step, so that it is seen whole or not at all: nothing is asked of single tokens, and with
    nothing read back from the device, it does not wait.
    """
    side = next((side for side in BLOCKS if num_patches % side == 0), None)
    if side is None:
        return None
    itself_TT = _itself(num_steps, device)
    seen_BTT = torch.ones_like(itself_TT).tril()[None]
    if valid_BT is not None:
        seen_BTT = seen_BTT & (valid_BT[:, None] | itself_TT)
    per_step, length = num_patches // side, num_steps * num_patches
    seen_B1QK = seen_BTT.repeat_interleave(per_step, 1).repeat_interleave(per_step, 2)[:, None]
    counts_B1Q = seen_B1QK.sum(dim=-1, dtype=torch.int32)
    first_seen_B1QK = seen_B1QK.logical_not().byte().argsort(dim=-1, stable=True).int()
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts_B1Q), torch.zeros_like(first_seen_B1QK), counts_B1Q, first_seen_B1QK,
        BLOCK_SIZE=side, seq_lengths=(length, length),
    )  # fmt: skip


def _itself(num_steps: int, device: torch.device) -> Bool[Tensor, "t t"]:
    return torch.eye(num_steps, dtype=torch.bool, device=device)
