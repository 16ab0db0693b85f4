"""On a CUDA device, in bfloat16 and compiled: how much of the device's own rate the encoder and training reach.

Utilisation is the model's FLOP/s over the rate of large bfloat16 products in the same run. Work is counted as the
formulas have it: attention over the steps so far does (T + 1) / 2T of the pairs, the way back costs twice the way
there, and nothing else but matrix products counts.
"""

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.context import Context, random_encoder
from benchmarks.encoder import peers
from benchmarks.gpu_stage1 import refuse_fallback, stage1_step
from benchmarks.machine import encoder_products, gflop
from benchmarks.measure import Call, Figure, Outcome, Skipped, Spread, check_equal, interleaved, medians, ratio
from hwm.engine.compiling import compile_blocks
from hwm.engine.optim import adamw
from hwm.models.causal_stack import CausalStack, CausalStackSpec
from hwm.models.layers import products_in_bfloat16
from hwm.models.vjepa2 import EncoderSpec

SIDE = 8192
"""Side of the square products that measure the device's own rate."""
DATA_SHEET = {"H100": 989.4, "H200": 989.4, "A100": 312.0}
"""Dense bfloat16 TFLOP/s that the maker names for the full-power card."""
RELEASED = CausalStackSpec(1024, width=1024, depth=24, num_heads=16)
"""Sizes of V-JEPA 2-AC's predictor."""


def run(context: Context) -> Iterator[Outcome]:
    """The encoder, the default predictor, one of the released size, and a whole step of stage 1."""
    if not torch.cuda.is_available():
        for name in ("encoder", "predictor", "predictor-released-size", "stage1"):
            yield Skipped(f"gpu/{name}", "bfloat16 on a CUDA device", "no CUDA device")
        return
    yield from _encoder(context)
    yield _predictor(context, "predictor", "the default predictor", CausalStackSpec(1024))
    yield _predictor(context, "predictor-released-size", "a predictor of V-JEPA 2-AC's size", RELEASED)
    yield stage1_step(context)


def _device_products() -> Call:
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return _repeated(lambda: a @ b, 20)


def _utilisation(seconds: dict[str, list[float]], work: float, repeats: int) -> tuple[Spread, str]:
    """Shares of the device's rate, round by round, and a sentence with the rates."""
    rates = [20 * 2e-12 * SIDE**3 / value for value in seconds["device"]]
    reached = [repeats * 1e-3 * work / value for value in seconds["ours"]]
    share = Spread.of([ours / device for ours, device in zip(reached, rates, strict=True)])
    name = torch.cuda.get_device_name()
    said = f"{Spread.of(reached).median:.0f} of {Spread.of(rates).median:.0f} TFLOP/s"
    peak = next((peak for card, peak in DATA_SHEET.items() if card in name), None)
    return share, said + (f", {Spread.of(reached).median / peak:.2f} of the data sheet's {peak:.0f}" if peak else "")


def _encoder(context: Context) -> Iterator[Outcome]:
    spec, clips, side, frames = context.encoder_spec(), 16, 256, 16
    if context.quick:
        clips, side, frames = 2, 64, 4
    plain = random_encoder(spec).cuda()
    theirs = dict(peers(context, plain, spec, frames, side))
    plain, ours = random_encoder(spec).cuda(), random_encoder(spec).cuda()
    for encoder in (plain, ours):
        products_in_bfloat16(encoder)
    compile_blocks(ours, refuse_fallback)
    video = torch.randn(clips, 3, frames, side, side, device="cuda")
    calls = {"ours": _repeated(lambda: ours(video), 3), "uncompiled": _repeated(lambda: plain(video), 3)}
    for name, peer in theirs.items():
        calls[name] = _repeated(_autocast(lambda peer=peer: peer(video)), 3)
    with torch.inference_mode():
        timed = interleaved(calls | {"device": _device_products()}, context.rounds)
    work = clips * sum(map(gflop, encoder_products(spec, frames // 2 * (side // 16) ** 2)))
    share, said = _utilisation(timed.seconds, work, 3)
    what = f"encoder bf16, ViT-L, {frames} × {side}² px, batch {clips}"
    bare = ratio(timed.seconds, "uncompiled", "ours").median
    yield Figure(
        "gpu/encoder", f"{what}: model FLOP/s over the device's own rate", share, 0.55,
        note=f"{said}; uncompiled {share.median / bare:.2f} of the rate", details=medians(timed.seconds),
        agreement=check_equal("encoder", timed.results["ours"], timed.results["uncompiled"], 2e-2),
    )  # fmt: skip
    for name in theirs:
        equal = check_equal(f"encoder and {name}'s", timed.results["ours"], timed.results[name].float(), 4e-2)
        yield Figure(
            f"gpu/encoder/{name}", f"{what}, against {name}'s module under autocast",
            ratio(timed.seconds, name, "ours"), agreement=equal, details=medians(timed.seconds),
        )  # fmt: skip


def _predictor(context: Context, name: str, what: str, spec: CausalStackSpec) -> Figure:
    steps, patches, clips = 8, 256, 2 if context.quick else 16
    tokens = torch.randn(clips, steps, patches, spec.in_width, device="cuda")
    calls: dict[str, Call] = {"device": _device_products(), "limit": _repeated(_only_products(spec, clips * steps), 3)}
    for kind in ("ours", "uncompiled"):
        torch.manual_seed(0)
        stack = CausalStack(spec).cuda()
        if kind == "ours":
            compile_blocks(stack, refuse_fallback)
        calls[kind] = _repeated(_training_step(stack, tokens), 3)
    timed = interleaved(calls, context.rounds)
    inside, length = EncoderSpec(spec.width, spec.depth, spec.num_heads), steps * patches
    products = encoder_products(inside, length)[1:]
    linear, attention = sum(map(gflop, products[:4])), sum(map(gflop, products[4:])) * (steps + 1) / (2 * steps)
    ends = 2 * 2e-9 * length * spec.in_width * spec.width
    share, said = _utilisation(timed.seconds, 3 * clips * (linear + attention + ends), 3)
    bare = ratio(timed.seconds, "uncompiled", "ours").median
    most = share.median * ratio(timed.seconds, "ours", "limit").median
    sizes = f"E {spec.width}, {spec.depth} blocks, {spec.num_heads} heads"
    return Figure(
        f"gpu/{name}", f"training step of {what} ({sizes}), {clips} clips × {steps} steps × {patches} tokens: "
        "model FLOP/s over the device's own rate", share, 0.40,
        note=f"{said}; uncompiled {share.median / bare:.2f} of the rate; its products alone, with PyTorch's fastest "
        f"attention for the same pairs, {most:.2f}", details=medians(timed.seconds),
        agreement=check_equal("losses", timed.results["ours"], timed.results["uncompiled"], 2e-2),
    )  # fmt: skip


def _training_step(stack: CausalStack, tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    optimizer = adamw(stack, 1e-4, 0.04)

    def step() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss = stack(tokens).abs().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _only_products(spec: CausalStackSpec, steps: int) -> Callable[[], None]:
    """The matrix products of a training step of `steps` steps of 256 tokens, there and back, and nothing else."""
    rows, width, hidden = 256 * steps, spec.width, round(spec.width * spec.mlp_ratio)
    shapes = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)] * spec.depth
    shapes += [(spec.in_width, width), (width, spec.in_width)]
    made = {}
    for inner, columns in set(shapes):
        x, w, y = ((rows, inner), (inner, columns), (rows, columns))
        made[inner, columns] = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in (x, w, y)]
    # As many pairs as 8 steps of 256 tokens see: 4.5 steps each.
    head, clips = width // spec.num_heads, steps // 8
    query, key, value = (
        torch.randn(
            clips, spec.num_heads, length, head, device="cuda", dtype=torch.bfloat16, requires_grad=True
        )
        for length in (2048, 1152, 1152)
    )  # fmt: skip
    back = torch.randn_like(query)

    def multiply() -> None:
        with torch.no_grad():
            for shape in shapes:
                x, w, y = made[shape]
                torch.mm(x, w), torch.mm(y, w.T), torch.mm(x.T, y)
        for _ in range(spec.depth):
            mixed = scaled_dot_product_attention(query, key, value)
            torch.autograd.grad(mixed, (query, key, value), back)

    return multiply


def _autocast(call: Call) -> Call:
    def run() -> object:
        with torch.autocast("cuda", torch.bfloat16):
            return call()

    return run


def _repeated(call: Call, times: int) -> Call:
    """Several calls in a row, so that the device is never waited for in between."""

    def run() -> object:
        for _ in range(times - 1):
            call()
        return call()

    return run
