"""Pooling block by block is the plain formula: the same numbers and the same gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hwm.models import pooling
from hwm.models import probe as probe_module
from hwm.models.pooling import may_pool_by_block, pooled_by_block
from hwm.models.step_probe import StepProbe, StepProbeSpec

EPS = 1e-5
SAMPLES, TOKENS, QUERIES, WIDTH = 3, 10, 4, 8
WHOLE, THREE_TOKENS, LESS_THAN_ONE = 2**20, 3 * SAMPLES * WIDTH, 1
"""Sizes of a block: all tokens; three at a time, with one left for the last block; one at a time."""


def plain(tokens: Tensor, added: Tensor | None, asked: Tensor, unread: Tensor | None, eps: float) -> Tensor:
    placed = tokens if added is None else tokens + added
    normed = torch.nn.functional.layer_norm(placed, placed.shape[-1:], eps=eps)
    scores = asked @ normed.transpose(1, 2)
    if unread is not None:
        scores = scores.masked_fill(unread[:, None], -torch.inf)
    return scores.softmax(dim=-1) @ normed


@pytest.mark.parametrize("block_numbers", [WHOLE, THREE_TOKENS, LESS_THAN_ONE])
@pytest.mark.parametrize("with_added", [True, False])
@pytest.mark.parametrize("with_unread", [True, False])
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_numbers_and_gradients_are_those_of_the_plain_formula(
    block_numbers: int, with_added: bool, with_unread: bool, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "BLOCK_NUMBERS", block_numbers)
    make = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    tokens, direction = mean + random(SAMPLES, TOKENS, WIDTH), random(SAMPLES, QUERIES, WIDTH)
    added = random(TOKENS, WIDTH).requires_grad_() if with_added else None
    asked = random(QUERIES, WIDTH).requires_grad_()
    unread = torch.rand(SAMPLES, TOKENS, generator=make) < 0.4 if with_unread else None
    if unread is not None:
        unread[0, :4] = True  # the first whole block of one sample
    inputs = [asked] if added is None else [asked, added]
    ours = _told(pooled_by_block, tokens, added, asked, unread, direction, inputs)
    theirs = _told(plain, tokens, added, asked, unread, direction, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def _told(
    function: Callable[[Tensor, Tensor | None, Tensor, Tensor | None, float], Tensor],
    tokens: Tensor,
    added: Tensor | None,
    asked: Tensor,
    unread: Tensor | None,
    direction: Tensor,
    inputs: list[Tensor],
) -> list[Tensor]:
    """The result, and its gradients along a direction."""
    pooled = function(tokens, added, asked, unread, EPS)
    return [pooled.detach(), *torch.autograd.grad((pooled * direction).sum(), inputs)]


def test_in_float32_it_is_as_exact_as_the_plain_formula_when_latents_have_a_large_mean() -> None:
    """Against float64: about as far from it as PyTorch's own layer norm, which loses digits in the sum as well."""
    make = torch.Generator().manual_seed(0)
    tokens = 50 + torch.randn(2, 256, 256, generator=make)
    added, asked = torch.randn(256, 256, generator=make) / 2, torch.randn(4, 256, generator=make) / 4
    unread, direction = torch.rand(2, 256, generator=make) < 0.4, torch.randn(2, 4, 256, generator=make)

    def told(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [asked.to(dtype, copy=True).requires_grad_(), added.to(dtype, copy=True).requires_grad_()]
        return _told(function, tokens.to(dtype), inputs[1], inputs[0], unread, direction.to(dtype), inputs)

    exact = told(plain, torch.float64)
    for ours, theirs, true in zip(told(pooled_by_block, torch.float32), told(plain, torch.float32), exact, strict=True):
        error, usual = ((found - true).square().mean().sqrt().item() for found in (ours, theirs))
        assert error <= 3 * usual, (error, usual)


def test_scores_that_rise_from_block_to_block_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "BLOCK_NUMBERS", 2 * WIDTH)
    generator = torch.Generator().manual_seed(0)
    tokens, asked = torch.randn(1, TOKENS, WIDTH, generator=generator), torch.zeros(1, WIDTH)
    asked[0, 0], tokens[0, :, 0] = 400.0, torch.arange(TOKENS) / 2.0  # exp of the highest score is infinite in float32
    for order in (tokens, tokens.flip(1)):
        torch.testing.assert_close(pooled_by_block(order, None, asked, None, EPS), plain(order, None, asked, None, EPS))


class _Made(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, views of `known` left out."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.most_bytes = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else [result]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.known:
                self.most_bytes = max(self.most_bytes, made.untyped_storage().nbytes())
        return result


def test_nothing_of_the_size_of_the_batch_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling, "BLOCK_NUMBERS", 2**11)
    tokens, unread = torch.randn(16, 64, 32), torch.zeros(16, 64, dtype=torch.bool)
    added, asked = torch.randn(64, 32, requires_grad=True), torch.randn(4, 32, requires_grad=True)
    most = {}
    for function in (plain, pooled_by_block):
        with _Made(tokens) as made:
            function(tokens, added, asked, unread, EPS).sum().backward()
        most[function] = made.most_bytes
    assert most[plain] >= tokens.nbytes
    assert 0 < most[pooled_by_block] <= tokens.nbytes // 8


def test_a_probe_trains_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(16, 3, 5, {"action": (1, 7)}, num_heads=4, gaze_point=True))
    features, valid = torch.randn(2, 3, 5, 16), torch.tensor([[True, True, True], [False, True, True]])
    assert may_pool_by_block(features)
    ours = _gradients(probe, features, valid)
    monkeypatch.setattr(probe_module, "may_pool_by_block", lambda tokens: False)
    for name, theirs in _gradients(probe, features, valid).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-6, msg=name)


def _gradients(probe: StepProbe, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
    probe.zero_grad()
    probe(features, valid)["action"].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in probe.named_parameters() if parameter.grad is not None}


def test_it_is_left_where_the_tokens_need_gradients_or_are_not_float32() -> None:
    assert not may_pool_by_block(torch.zeros(1, requires_grad=True))
    assert not may_pool_by_block(torch.zeros(1, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_pool_by_block(torch.zeros(1))
