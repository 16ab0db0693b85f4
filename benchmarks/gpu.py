"""On a CUDA device: model-FLOP utilisation of the encoder and of a training step of the predictor, in bfloat16."""

import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.context import Context, random_encoder
from benchmarks.machine import encoder_products, gflop
from benchmarks.measure import Figure, Outcome, Skipped, Spread
from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.layers import products_in_bfloat16
from hwm.models.vjepa2 import EncoderSpec

SIDE = 8192
"""Side of the square products that measure the device's own rate."""


def run(context: Context) -> Iterator[Outcome]:
    """Utilisation is the model's FLOP/s over the rate of large bfloat16 products measured in the same run."""
    names = {
        "gpu/encoder": ("encoder bf16, ViT-L, 16 × 256² px", 0.55),
        "gpu/predictor": ("predictor train step", 0.40),
    }
    if not torch.cuda.is_available():
        for name, (what, _) in names.items():
            yield Skipped(name, f"{what}: model FLOP/s over the device's own rate", "no CUDA device")
        return
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    device_rate = 2e-9 * SIDE**3 / _seconds(lambda: a @ b, 20)
    for (name, (what, bar)), (call, work) in zip(names.items(), (_encoder(context), _predictor(context)), strict=True):
        shares = [work / _seconds(call, 3) / device_rate for _ in range(context.rounds)]
        yield Figure(
            name, f"{what}: model FLOP/s over {device_rate / 1e3:.0f} TFLOP/s of the device's own products",
            Spread.of(shares), bar,
        )  # fmt: skip


def _encoder(context: Context) -> tuple[Callable[[], object], float]:
    spec, clips = context.encoder_spec(), 2 if context.quick else 16
    encoder = random_encoder(spec).cuda()
    products_in_bfloat16(encoder)
    video = torch.randn(clips, 3, 16, 256, 256, device="cuda")
    call = torch.inference_mode()(lambda: encoder(video))
    return call, clips * sum(map(gflop, encoder_products(spec, 2048)))


def _predictor(context: Context) -> tuple[Callable[[], object], float]:
    steps, patches, clips = 8, 256, 2 if context.quick else 16
    spec = CausalStackSpec(1024)
    stack = CausalStack(spec).cuda()
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-4)
    tokens = torch.randn(clips, steps, patches, spec.in_width, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = stack(tokens).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    inside = EncoderSpec(spec.width, spec.depth, spec.num_heads)
    length = steps * patches
    products = encoder_products(inside, length)[1:]
    # Attention over the steps so far does (T + 1) / 2T of the pairs; the way back costs twice the way there.
    linear, attention = sum(map(gflop, products[:4])), sum(map(gflop, products[4:])) * (steps + 1) / (2 * steps)
    ends = 2 * 2e-9 * length * spec.in_width * spec.width
    return step, 3 * clips * (linear + attention + ends)


def _seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats
