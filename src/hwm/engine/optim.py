"""AdamW, its learning-rate curve, and the checks that stop a run before a bad update.

    module, lr, decay         -> AdamW        no weight decay on parameters with one axis or none (biases, norms, gates)
    step, warm-up, num_steps  -> multiplier   linear warm-up, then half a cosine; a function of the step, with no state

One step of a loop, in this order:

    set_lr(optimizer, scheduled_lr(config.optim, step))
    losses = ...; losses.total.backward()
    named = clip_gradients(module, losses, config.optim.clip_norm, f"step {step}")
    optimizer.step()

A loss or gradient that is not finite raises before the weights are touched: it reaches neither them nor the disk. What
is to be known of a step is read back from the device at once: between two updates a GPU is waited for once.
Several modules are trained as one by `nn.ModuleDict({"predictor": ..., "probe": ...})`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hwm.config import OptimConfig
from hwm.errors import RunError


def adamw(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    fused: bool = False,
) -> torch.optim.AdamW:
    """AdamW over the parameters of `module` that ask for gradients.

    `fused` updates each parameter in one pass over memory: the same up to rounding, and several times as fast on a CPU.
    On CUDA it is always done.

    Raises:
        RunError: no parameter asks for gradients.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise RunError(f"nothing to train in {type(module).__name__}", expected="parameters that ask for gradients")
    fused = fused or all(parameter.is_cuda for parameter in trained)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused or None)


def warmup_cosine(step: int, warmup_steps: int, num_steps: int, final_ratio: float = 0.0) -> float:
    """Share of the peak learning rate at optimiser step `step` (from 0).

    Rises in equal parts to 1 at the last of `warmup_steps`, then falls as half a cosine to `final_ratio` at the last of
    `num_steps`, and stays there.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    span = max(1, num_steps - 1 - warmup_steps)
    done = min(1.0, (step - warmup_steps) / span)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def scheduled_lr(config: OptimConfig, step: int) -> float:
    """Learning rate at optimiser step `step` (from 0)."""
    return config.lr * warmup_cosine(step, config.warmup_steps, config.num_steps, config.final_lr_ratio)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def raise_if_not_finite(module: nn.Module, loss: Tensor | float, where: str) -> None:
    """Stops the run when the loss or a gradient is NaN or infinite; called between `backward` and the update.

    Args:
        module: what is trained.
        loss: the loss of this step.
        where: names the step in the message, e.g. `step 1200`.

    Raises:
        RunError: names the step, the loss and the worst parameter.
    """
    value = float(loss.detach() if isinstance(loss, Tensor) else loss)
    _require_finite(module, value, float(_gradient_norm(module, where)), where)


def _require_finite(module: nn.Module, value: float, norm: float, where: str) -> None:
    if math.isfinite(value) and math.isfinite(norm):
        return
    raise RunError(
        f"{where}: the {'gradient' if math.isfinite(value) else 'loss'} is not finite; the weights were not changed",
        found=f"loss {value:g}, worst gradient: {_worst(module)}",
        fix="look at the clips of this step; a lower learning rate or a longer warm-up often helps; "
        "hwm extract CONFIG --verify finds damaged tokens in a cache",
    )


def clip_gradients(module: nn.Module, losses: Mapping[str, Tensor], max_norm: float, where: str) -> dict[str, float]:
    """Scales all gradients down to a joint norm of at most `max_norm`, if they and the loss are finite.

    Args:
        module: what is trained.
        losses: scalars by name; `total` is the loss, the others are its parts or whatever else is to be known.
        max_norm: largest norm.
        where: names the step in the message, e.g. `step 1200`.

    Returns:
        The scalars, and as `gradient_norm` the norm before clipping.

    Raises:
        RunError: as `raise_if_not_finite`.
    """
    norm = _gradient_norm(module, where)
    *values, norm_value = torch.stack([*(value.detach().to(norm) for value in losses.values()), norm]).tolist()
    named = dict(zip(losses, values, strict=True))
    # Looked at before it is applied: scaling by NaN would hide the culprit.
    _require_finite(module, named["total"], norm_value, where)
    nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, norm)
    return named | {"gradient_norm": norm_value}


def _gradient_norm(module: nn.Module, where: str) -> Tensor:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not gradients:
        raise RunError(f"{where}: no parameter has a gradient: the loss does not depend on what is trained")
    return nn.utils.get_total_norm(gradients)


def _worst(module: nn.Module) -> str:
    """The parameter with the largest share of gradient entries that are not finite, and how many."""
    bad = {
        name: (int((~torch.isfinite(parameter.grad)).sum()), parameter.numel())
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    name = max(bad, key=lambda key: bad[key][0] / bad[key][1])
    return f"{name} ({bad[name][0]} of {bad[name][1]} entries)"
