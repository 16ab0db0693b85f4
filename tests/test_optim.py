"""The optimiser's groups, the learning-rate curve, and stopping before a bad update."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from hwm.config import OptimConfig
from hwm.engine.optim import adamw, clip_gradients, raise_if_not_finite, scheduled_lr, set_lr, warmup_cosine
from hwm.errors import RunError


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def test_only_matrices_decay(module: nn.Module) -> None:
    optimizer = adamw(module, lr=1e-3, weight_decay=0.1)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: decays[id(parameter)] for name, parameter in module.named_parameters()}
    assert found == {"0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.1, "2.bias": 0.0}


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error(module: nn.Module) -> None:
    module[0].requires_grad_(False)  # pyright: ignore[reportIndexIssue]
    optimizer = adamw(module, lr=1e-3, weight_decay=0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    with pytest.raises(RunError, match="nothing to train"):
        adamw(module.requires_grad_(False), lr=1e-3, weight_decay=0.1)


def test_the_curve_rises_to_one_and_falls_to_its_end() -> None:
    curve = [warmup_cosine(step, 10, 100, 0.05) for step in range(120)]
    assert curve[0] == pytest.approx(0.1)
    assert curve[9] == curve[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(curve[10:100]))
    assert curve[99:] == pytest.approx([0.05] * 21)
    assert curve[54] == pytest.approx(0.525, abs=0.02), "half way between, half way through"


@pytest.mark.parametrize(("warmup", "num_steps"), [(0, 1), (0, 2), (5, 3), (3, 3), (3, 4)])
def test_short_runs_have_a_curve_too(warmup: int, num_steps: int) -> None:
    curve = [warmup_cosine(step, warmup, num_steps) for step in range(num_steps)]
    assert all(0 <= value <= 1 for value in curve)
    assert curve[0] > 0


def test_scheduled_lr_is_what_the_groups_get(module: nn.Module) -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4, num_steps=10)
    optimizer = adamw(module, config.lr, config.weight_decay, config.betas)
    set_lr(optimizer, scheduled_lr(config, 1))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0]


def test_clipping_scales_to_the_norm_and_returns_the_one_before(module: nn.Module) -> None:
    loss = module(torch.ones(3, 4)).sum() * 100
    loss.backward()
    losses = {"total": loss, "part": loss / 4}
    before = clip_gradients(module, losses, 1.0, "step 0")
    assert before["gradient_norm"] > 1.0
    assert before["total"] == pytest.approx(loss.item())
    assert before["part"] == pytest.approx(loss.item() / 4)
    after = math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters() if p.grad is not None))
    assert after == pytest.approx(1.0, rel=1e-4)
    again = clip_gradients(module, losses, 10.0, "step 1")["gradient_norm"]
    assert again == pytest.approx(after), "a short gradient is left alone"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_stops_the_run_and_names_the_parameter(module: nn.Module, bad: float) -> None:
    module(torch.ones(3, 4)).sum().backward()
    weight = module.get_parameter("2.weight")
    assert weight.grad is not None
    weight.grad[0, :3] = bad
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(RunError, match=r"step 7: the gradient is not finite.*\n.*2\.weight \(3 of 16"):
        raise_if_not_finite(module, 1.0, "step 7")
    with pytest.raises(RunError, match=r"step 7.*\n.*2\.weight"):
        clip_gradients(module, {"total": torch.ones(())}, 1.0, "step 7")
    assert int((~torch.isfinite(module.get_parameter("0.weight").grad)).sum()) == 0, "the culprit is still told apart"  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_stops_the_run_and_names_the_step(module: nn.Module, bad: float) -> None:
    (module(torch.ones(3, 4)).sum() * bad).backward()
    with pytest.raises(RunError, match="step 12: the loss is not finite"):
        raise_if_not_finite(module, torch.tensor(bad), "step 12")
    with pytest.raises(RunError, match="step 12: the loss is not finite"):
        clip_gradients(module, {"total": torch.tensor(bad)}, 1.0, "step 12")


def test_a_loss_that_trains_nothing_is_an_error(module: nn.Module) -> None:
    with pytest.raises(RunError, match="no parameter has a gradient"):
        raise_if_not_finite(module, 1.0, "step 0")
    with pytest.raises(RunError, match="no parameter has a gradient"):
        clip_gradients(module, {"total": torch.ones(())}, 1.0, "step 0")
