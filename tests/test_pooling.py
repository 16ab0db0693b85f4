"""Pooling sample by sample is the plain formula: the same numbers and the same gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hwm.models import probe as probe_module
from hwm.models.pooling import may_pool_by_sample, pooled_by_sample
from hwm.models.step_probe import StepProbe, StepProbeSpec


def plain(tokens: Tensor, added: Tensor | None, asked: Tensor, unread: Tensor | None, eps: float) -> Tensor:
    placed = tokens if added is None else tokens + added
    normed = torch.nn.functional.layer_norm(placed, placed.shape[-1:], eps=eps)
    scores = asked @ normed.transpose(1, 2)
    if unread is not None:
        scores = scores.masked_fill(unread[:, None], -torch.inf)
    return scores.softmax(dim=-1) @ normed


@pytest.mark.parametrize("with_added", [True, False])
@pytest.mark.parametrize("with_unread", [True, False])
def test_numbers_and_gradients_are_those_of_the_plain_formula(with_added: bool, with_unread: bool) -> None:
    make = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    tokens, direction = random(3, 10, 8), random(3, 4, 8)
    added = random(10, 8).requires_grad_() if with_added else None
    asked = random(3, 4, 8).requires_grad_()
    unread = torch.rand(3, 10, generator=make) < 0.4 if with_unread else None
    inputs = [asked] if added is None else [asked, added]
    ours = _told(pooled_by_sample, tokens, added, asked, unread, direction, inputs)
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
    pooled = function(tokens, added, asked, unread, 1e-5)
    return [pooled.detach(), *torch.autograd.grad((pooled * direction).sum(), inputs)]


def test_a_probe_trains_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    probe = StepProbe(StepProbeSpec(16, 3, 5, {"action": (1, 7)}, num_heads=4, gaze_point=True))
    features, valid = torch.randn(2, 3, 5, 16), torch.tensor([[True, True, True], [False, True, True]])
    assert may_pool_by_sample(features)
    ours = _gradients(probe, features, valid)
    monkeypatch.setattr(probe_module, "may_pool_by_sample", lambda tokens: False)
    for name, theirs in _gradients(probe, features, valid).items():
        torch.testing.assert_close(ours[name], theirs, rtol=1e-4, atol=1e-6, msg=name)


def _gradients(probe: StepProbe, features: Tensor, valid: Tensor) -> dict[str, Tensor]:
    probe.zero_grad()
    probe(features, valid)["action"].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in probe.named_parameters() if parameter.grad is not None}


def test_it_is_left_where_the_tokens_need_gradients_or_nothing_does() -> None:
    assert not may_pool_by_sample(torch.zeros(1, requires_grad=True))
    assert not may_pool_by_sample(torch.zeros(1, dtype=torch.float64))
    with torch.no_grad():
        assert not may_pool_by_sample(torch.zeros(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert not may_pool_by_sample(torch.zeros(1))
