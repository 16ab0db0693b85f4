"""The block-causal stack: causal bit for bit, incremental equals whole, padding unseen, gradients everywhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from hwm.errors import ConfigError
from hwm.models.causal_stack import CausalStack, CausalStackSpec

Mode = AbstractContextManager[object]
NUM_CLIPS, NUM_STEPS, NUM_PATCHES, WIDTH = 2, 5, 9, 12


@pytest.fixture
def stack() -> CausalStack:
    torch.manual_seed(0)
    stack = CausalStack(CausalStackSpec(in_width=WIDTH, width=24, depth=3, num_heads=2))
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            if name.endswith("attn.qkv.weight"):
                parameter.mul_(20.0)  # sharp attention, so that a wrong position or mask shows
            elif name.endswith("weight") and parameter.ndim == 2:
                parameter.mul_(5.0)
    return stack


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(NUM_CLIPS, NUM_STEPS, NUM_PATCHES, WIDTH, generator=generator)
    return tokens, torch.randn(NUM_CLIPS, NUM_STEPS, NUM_PATCHES, 24, generator=generator)


@pytest.mark.parametrize("step", range(NUM_STEPS))
@pytest.mark.parametrize("which", [0, 1], ids=["tokens", "condition"])
def test_later_steps_leave_earlier_outputs_bit_identical(
    stack: CausalStack, inputs: tuple[Tensor, Tensor], step: int, which: int
) -> None:
    before = stack(*inputs)
    changed = [x.clone() for x in inputs]
    changed[which][:, step + 1 :] = 100.0
    assert torch.equal(stack(*changed)[:, : step + 1], before[:, : step + 1])
    changed[which][:, step:] = 100.0
    assert not torch.equal(stack(*changed)[:, step], before[:, step])


def test_not_a_number_in_the_future_stays_there(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, condition = inputs
    broken = tokens.clone()
    broken[:, 3:] = torch.nan
    assert torch.equal(stack(broken, condition)[:, :3], stack(tokens, condition)[:, :3])


def test_every_patch_of_a_step_sees_every_patch_of_the_step(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, condition = inputs
    changed = tokens.clone()
    changed[:, 2, -1] += 1.0
    difference = (stack(changed, condition) - stack(tokens, condition)).abs().amax(dim=(0, 3))
    assert (difference[2:] > 0).all()


@pytest.mark.parametrize("prefill", [1, 3, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_steps_with_a_cache_equal_the_whole(
    stack: CausalStack, inputs: tuple[Tensor, Tensor], prefill: int, padded: bool
) -> None:
    tokens, condition = inputs
    valid = None
    if padded:
        valid = torch.ones(NUM_CLIPS, NUM_STEPS, dtype=torch.bool)
        valid[0, :2] = False
    whole = stack(tokens, condition, valid)
    first_valid = None if valid is None else valid[:, :prefill]
    rows, cache = stack.step(tokens[:, :prefill], condition[:, :prefill], None, first_valid)
    outputs = [rows]
    for step in range(prefill, NUM_STEPS):
        step_valid = None if valid is None else valid[:, step : step + 1]
        row, cache = stack.step(tokens[:, step], condition[:, step], cache, step_valid)
        assert row.shape == tokens[:, step].shape
        outputs.append(row.unsqueeze(1))
    assert cache.num_steps == NUM_STEPS
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=0)


def test_rolling_on_from_an_earlier_step(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, condition = inputs
    whole, cache = stack.step(tokens, condition)
    again, _ = stack.step(tokens[:, 3], condition[:, 3], cache.first(3))
    torch.testing.assert_close(again, whole[:, 3], atol=1e-5, rtol=0)
    for count in (0, NUM_STEPS + 1):
        with pytest.raises(ValueError, match="asked for the first"):
            cache.first(count)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_cache_serves_two_futures(
    stack: CausalStack, inputs: tuple[Tensor, Tensor], mode: Callable[[], Mode]
) -> None:
    tokens, _ = inputs
    with mode():
        _, cache = stack.step(tokens[:, :2])
        _, cache = stack.step(tokens[:, 4], cache=cache)  # from here on there may be room behind the past
        kept = [key.tokens.clone() for key in cache.keys]
        first, left = stack.step(tokens[:, 2], cache=cache)
        left_kept = [key.tokens.clone() for key in left.keys]
        stack.step(tokens[:, 3], cache=cache)
        assert all(torch.equal(key.tokens, old) for key, old in zip(cache.keys, kept, strict=True))
        assert all(torch.equal(key.tokens, old) for key, old in zip(left.keys, left_kept, strict=True))
        again, _ = stack.step(tokens[:, 2], cache=cache)
        assert torch.equal(first, again)
        rewound, _ = stack.step(tokens[:, 2], cache=left.first(3))
        assert torch.equal(rewound, again)


def test_a_step_without_gradients_does_not_copy_the_past(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, _ = inputs
    with torch.no_grad():
        _, cache = stack.step(tokens[:, :2])
        _, cache = stack.step(tokens[:, 2], cache=cache)
        places = [kept.tokens.data_ptr() for kept in (*cache.keys, *cache.values)]
        _, longer = stack.step(tokens[:, 3], cache=cache)
    assert [kept.tokens.data_ptr() for kept in (*longer.keys, *longer.values)] == places


def test_a_cache_made_in_inference_mode_goes_on_outside_it(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, _ = inputs
    with torch.inference_mode():
        _, cache = stack.step(tokens[:, :2])
        _, cache = stack.step(tokens[:, 2], cache=cache)
    with torch.no_grad():
        outside, _ = stack.step(tokens[:, 3], cache=cache)
    with torch.inference_mode():
        inside, _ = stack.step(tokens[:, 3], cache=cache)
    assert torch.equal(inside, outside)


def test_recomputing_activations_gives_the_same_gradients(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    gradients = []
    for stack.recompute in (False, True):
        stack.zero_grad()
        _, cache = stack.step(inputs[0][:, :3], inputs[1][:, :3])
        row, _ = stack.step(inputs[0][:, 3], inputs[1][:, 3], cache)
        row.square().mean().backward()
        gradients.append([parameter.grad for parameter in stack.parameters()])
    for kept, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, kept, atol=1e-7, rtol=1e-5)


def test_padding_is_never_seen_by_valid_steps(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, condition = inputs
    valid = torch.tensor([[False, False, True, True, True], [True] * 5])
    output = stack(tokens, condition, valid)
    changed = tokens.clone()
    changed[0, :2] = 50.0
    assert torch.equal(stack(changed, condition, valid)[valid], output[valid])
    assert torch.isfinite(output).all()
    # A row without padding is as without a mask; without the mask the padding would have been seen.
    torch.testing.assert_close(output[1], stack(tokens, condition)[1], atol=1e-6, rtol=0)
    assert not torch.equal(stack(changed, condition)[0, 2:], stack(tokens, condition)[0, 2:])
    assert torch.isfinite(stack(tokens, condition, torch.zeros_like(valid))).all()


def test_a_padded_step_sees_itself(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    # It must attend to something: a softmax over nothing is not a number on some devices.
    tokens, _ = inputs
    nothing = torch.zeros(NUM_CLIPS, NUM_STEPS, dtype=torch.bool)
    changed = tokens.clone()
    changed[:, 1, -1] += 5.0
    difference = (stack(changed, None, nothing) - stack(tokens, None, nothing)).abs().amax(dim=(0, 3))
    assert (difference[1] > 0).all()
    assert (difference[[0, 2, 3, 4]] == 0).all()


def test_gradients_reach_every_parameter_through_a_rollout(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    tokens, condition = inputs
    tokens.requires_grad_(True)
    _, cache = stack.step(tokens[:, :2], condition[:, :2], None, torch.tensor([[False, True], [True, True]]))
    row = tokens[:, 2]
    for step in range(2, 5):
        row, cache = stack.step(row, condition[:, step], cache)
    row.abs().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in stack.parameters())
    assert tokens.grad is not None
    assert tokens.grad[1, 0].abs().sum() > 0
    assert tokens.grad[0, 0].abs().sum() == 0  # padded
    assert tokens.grad[:, 3:].abs().sum() == 0  # never given


def test_stack_trains_after_it_ran_in_inference_mode(stack: CausalStack, inputs: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode():
        stack(*inputs)
    stack(*inputs).mean().backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())


def test_grid_must_hold_the_patches(stack: CausalStack) -> None:
    tokens = torch.zeros(1, 2, 6, WIDTH)
    with pytest.raises(ConfigError, match="do not fill their grid"):
        stack(tokens)
    assert not torch.equal(
        stack(torch.ones_like(tokens).cumsum(2), grid=(2, 3)), stack(torch.ones_like(tokens).cumsum(2), grid=(3, 2))
    )


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        CausalStackSpec(in_width=8, width=10, num_heads=3)
