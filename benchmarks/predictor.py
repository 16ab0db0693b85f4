"""The predictor: cached against recomputed roll-out, and step-by-step attention against a dense N × N mask."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.context import Context
from benchmarks.measure import Figure, Outcome, Spread, check_equal, interleaved, medians, ratio
from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.layers import Block

LATENT = 1024


def dense_forward(stack: CausalStack, tokens_BTND: Tensor) -> Tensor:
    """What the stack computes, in one pass with a mask over all pairs of tokens, as upstream's predictor does."""
    num_steps, num_patches = tokens_BTND.shape[1:3]
    side = round(num_patches**0.5)
    step = torch.arange(num_steps).repeat_interleave(num_patches)
    mask = (step[:, None] >= step[None])[None, None]
    rope = stack._rope.get(0, num_steps, (side, side), stack.predictor_embed.weight)
    x = stack.predictor_embed(tokens_BTND).flatten(1, 2)
    for block in stack.predictor_blocks:
        assert isinstance(block, Block)
        x = block(x, rope, mask)
    return stack.predictor_proj(stack.predictor_norm(x)).unflatten(1, (num_steps, num_patches))


def cached_rollout(stack: CausalStack, tokens_BTND: Tensor, num_steps: int) -> Tensor:
    """Imagined steps [B, K, N, D], keys and values kept."""
    rows, cache = stack.step(tokens_BTND)
    imagined = [rows[:, -1]]
    for _ in range(num_steps - 1):
        row, cache = stack.step(imagined[-1], cache=cache)
        imagined.append(row)
    return torch.stack(imagined, dim=1)


def recomputed_rollout(stack: CausalStack, tokens_BTND: Tensor, num_steps: int) -> Tensor:
    """The same by a dense pass over all steps so far for each imagined one."""
    given = tokens_BTND.shape[1]
    for _ in range(num_steps):
        tokens_BTND = torch.cat((tokens_BTND, dense_forward(stack, tokens_BTND)[:, -1:]), dim=1)
    return tokens_BTND[:, given:]


def random_stack(context: Context, depth: int = 12) -> CausalStack:
    """The default predictor's stack for ViT-L latents."""
    torch.manual_seed(0)
    spec = CausalStackSpec(64, 48, 2, 4) if context.quick else CausalStackSpec(LATENT, depth=depth)
    stack = CausalStack(spec).eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return stack


def random_tokens(context: Context, steps: int) -> Tensor:
    """Latents [1, T, N, D]: 256 patches a step."""
    patches, width = (9, 64) if context.quick else (256, LATENT)
    tokens = torch.randn(1, steps, patches, width, generator=torch.Generator().manual_seed(steps))
    return torch.nn.functional.layer_norm(tokens, (width,))


def run(context: Context) -> Iterator[Outcome]:
    """Both roll-outs, then the teacher-forced pass without and with gradients."""
    with torch.inference_mode():
        yield _short_rollout(context)
        yield _long_rollout(context)
    stack, tokens = random_stack(context), random_tokens(context, 16)
    with torch.inference_mode():
        timed = interleaved(
            {"ours": lambda: stack(tokens), "dense": lambda: dense_forward(stack, tokens)}, context.long_rounds
        )
    yield Figure(
        "teacher-forced/forward", "teacher-forced forward, 16 steps × 256 tokens, against the dense N × N mask",
        ratio(timed.seconds, "dense", "ours"), 1.5,
        agreement=check_equal("teacher-forced", timed.results["ours"], timed.results["dense"], 1e-4),
        details=medians(timed.seconds),
    )  # fmt: skip

    def train(dense: bool) -> Tensor:
        stack.zero_grad(set_to_none=True)
        (dense_forward(stack, tokens) if dense else stack(tokens)).abs().mean().backward()
        gradient = stack.predictor_embed.weight.grad
        assert gradient is not None
        return gradient

    timed = interleaved({"ours": lambda: train(False), "dense": lambda: train(True)}, 2)
    yield Figure(
        "teacher-forced/train", "the same, forward and backward", ratio(timed.seconds, "dense", "ours"),
        agreement=check_equal("gradients", timed.results["ours"], timed.results["dense"], 1e-3),
        details=medians(timed.seconds),
    )  # fmt: skip


def _short_rollout(context: Context) -> Figure:
    stack, tokens = random_stack(context), random_tokens(context, 8)
    timed = interleaved(
        {
            "cached": lambda: cached_rollout(stack, tokens, 8),
            "recomputed": lambda: recomputed_rollout(stack, tokens, 8),
        },
        2,
    )
    return Figure(
        "rollout/8-16", "roll-out 8 → 16 steps, cached against recomputed with the dense mask",
        ratio(timed.seconds, "recomputed", "cached"), 7.0,
        agreement=check_equal("roll-out", timed.results["cached"], timed.results["recomputed"], 1e-4),
        details=medians(timed.seconds),
    )  # fmt: skip


def _long_rollout(context: Context) -> Figure:
    """32 → 48 steps. Recomputing is timed at three lengths: its cost is a polynomial of degree 2 in the length."""
    stack = random_stack(context, depth=2)
    lengths = (32, 40, 47)
    given = random_tokens(context, 32)
    timed = interleaved(
        {"cached": lambda: cached_rollout(stack, given, 16)}
        | {f"dense_{n}": lambda n=n: dense_forward(stack, random_tokens(context, n)) for n in lengths},
        2,
    )
    first = check_equal("long roll-out", timed.results["cached"][:, :1], timed.results["dense_32"][:, -1:], 1e-4)
    rounds = zip(timed.seconds["cached"], *(timed.seconds[f"dense_{n}"] for n in lengths), strict=True)
    ratios = [_sum_over(lengths, parts, range(32, 48)) / cached for cached, *parts in rounds]
    return Figure(
        "rollout/32-48", "roll-out 32 → 48 steps (2 blocks), cached against recomputed with the dense mask",
        Spread.of(ratios), 20.0, agreement=f"first step {first}",
        note="recomputing was timed at 32, 40 and 47 steps and summed over 32 to 47 by the parabola through them",
        details=medians(timed.seconds),
    )  # fmt: skip


def _sum_over(lengths: Sequence[int], seconds: Sequence[float], wanted: range) -> float:
    return float(np.polyval(np.polyfit(lengths, seconds, 2), list(wanted)).sum())
