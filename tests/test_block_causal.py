"""Attention over blocks of tokens sees what attention step by step sees."""

import pytest
import torch
from torch import Tensor

from hwm.models.block_causal import Seen, attend_by_step, blocks_of

CPU = torch.device("cpu")
PADDED = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])


def seen_by(blocks_BQK: Tensor, side: int) -> Tensor:
    """Block against block to token against token."""
    return blocks_BQK.repeat_interleave(side, -2).repeat_interleave(side, -1)


@pytest.mark.parametrize(("num_patches", "side"), [(256, 128), (64, 64), (192, 64)])
@pytest.mark.parametrize("valid_BT", [None, PADDED])
def test_the_blocks_are_those_that_steps_see(num_patches: int, side: int, valid_BT: Tensor | None) -> None:
    num_steps = 3
    blocks = blocks_of(num_steps, num_patches, valid_BT, CPU)
    assert blocks is not None
    assert blocks.BLOCK_SIZE == (side, side)
    found = seen_by(blocks.to_dense()[:, 0].bool(), side)
    # A value is its own token's number: what a query sees changes its result, what it does not see does not.
    length = num_steps * num_patches
    step = torch.arange(length) // num_patches
    expected = (step[:, None] >= step[None])[None].expand(1 if valid_BT is None else 3, -1, -1)
    if valid_BT is not None:
        expected = expected & (valid_BT[:, step][:, None] | (step[:, None] == step[None]))
    assert torch.equal(found, expected)
    assert int(blocks.kv_num_blocks.sum()) == 0, "no block is asked about single tokens"


@pytest.mark.parametrize("valid_BT", [None, PADDED])
def test_steps_see_what_the_blocks_say(valid_BT: Tensor | None) -> None:
    torch.manual_seed(0)
    inputs = query, key, value = [torch.randn(3, 2, 3 * 64, 8, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    blocks = blocks_of(3, 64, valid_BT, CPU)
    assert blocks is not None
    mask = seen_by(blocks.to_dense().bool(), 64)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    found = attend_by_step(query, key, value, Seen(64, valid_BT))
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), inputs), gradients)
    # A step that nothing is asked of gives nothing back.
    gradients = torch.autograd.grad((expected * weights)[:, :, :128].sum(), inputs)
    found = attend_by_step(query, key, value, Seen(64, valid_BT))
    torch.testing.assert_close(torch.autograd.grad((found * weights)[:, :, :128].sum(), inputs), gradients)


def test_patches_that_no_block_divides_are_attended_step_by_step() -> None:
    assert blocks_of(3, 100, None, CPU) is None
