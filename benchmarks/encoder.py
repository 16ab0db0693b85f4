"""Encoder on one clip, float32 and bfloat16: against upstream's module, transformers', and the machine's own rate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.context import Context, random_encoder, random_video, upstream_module
from benchmarks.machine import encoder_products, fastest, gflop, softmaxes
from benchmarks.measure import Figure, Outcome, Skipped, check_equal, interleaved, medians, ratio
from hwm.models.kernels import bfloat16_is_slow
from hwm.models.layers import products_in_bfloat16
from hwm.models.vjepa2 import EncoderSpec, VJEPA2Encoder

Encode = Callable[[Tensor], Tensor]
DTYPES = {"fp32": (torch.float32, 2.0, 1e-5), "bf16": (torch.bfloat16, 1.6, 2e-2)}
"""Type, bar, and how far from float32 the result may be; of two results in bfloat16 each may be as far."""


def run(context: Context) -> Iterator[Outcome]:
    """Ratios to each peer in both types, then the share of the machine's rate."""
    spec, frames, side = context.encoder_spec(), *((4, 64) if context.quick else (16, 256))
    video = random_video(frames, side)
    size = f"{'ViT-L' if not context.quick else 'tiny'}, {frames} × {side}² px, batch 1"
    for kind, (dtype, bar, tolerance) in DTYPES.items():
        if kind == "bf16" and not _has_bfloat16():
            yield Skipped(f"encoder/{kind}", size, "this CPU has no bfloat16 products")
            continue
        encoder = random_encoder(spec)
        others = dict(peers(context, encoder, spec, frames, side))
        truth = _run(encoder, video, torch.float32)
        if dtype == torch.bfloat16:
            products_in_bfloat16(encoder)
        calls = {"ours": lambda encoder=encoder: _run(encoder, video, torch.float32)}
        calls |= {name: lambda peer=peer, dtype=dtype: _run(peer, video, dtype) for name, peer in others.items()}
        length = frames // 2 * (side // 16) ** 2
        products = encoder_products(spec, length)
        calls |= {"machine": fastest(products, dtype)}
        in_bfloat16 = dtype == torch.bfloat16 and not bfloat16_is_slow()
        if in_bfloat16:  # in float32 it is part of PyTorch's attention, and cannot be had alone
            calls |= {"softmax": softmaxes(spec, length, dtype)}
        timed = interleaved(calls, context.long_rounds)
        for name in others:
            yield Figure(
                f"encoder/{kind}/{name}", f"encoder {kind} against {name}'s module: {size}",
                ratio(timed.seconds, name, "ours"), bar,
                agreement=_agreement(kind, name, timed.results["ours"], timed.results[name], truth),
                note=limit_note(timed.seconds, name, bar), details=medians(timed.seconds) | limit(timed.seconds, name),
            )  # fmt: skip
        if context.upstream is None:
            yield Skipped(f"encoder/{kind}/upstream", size, "no --upstream checkout")
        yield Figure(
            f"encoder/{kind}/rate", f"encoder {kind} FLOP/s over the rate of its matrix products alone: {size}",
            ratio(timed.seconds, "machine", "ours"), 0.85,
            agreement=check_equal(f"encoder {kind} and float32", timed.results["ours"], truth, max(tolerance, 1e-6)),
            details=medians(timed.seconds) | {"gflop": sum(map(gflop, products))},
        )  # fmt: skip


def _agreement(kind: str, name: str, ours: Tensor, theirs: Tensor, truth: Tensor) -> str:
    """How far our result is from a peer's; in bfloat16 also how far either is from float32."""
    dtype, _, tolerance = DTYPES[kind]
    what = f"encoder {kind} and {name}'s"
    if dtype == torch.float32:
        return check_equal(what, ours, theirs, tolerance)
    off = [float((result - truth).abs().max() / truth.abs().max()) for result in (ours, theirs)]
    return f"{check_equal(what, ours, theirs, 2 * tolerance)}; off float32: ours {off[0]:.0e}, theirs {off[1]:.0e}"


def limit(seconds: Mapping[str, Sequence[float]], peer: str) -> dict[str, float]:
    """The ratio to a peer on this machine of an encoder that is nothing but matrix products, `limit`.

    `limit_with_softmax`: of one that also has PyTorch's softmax, where that was timed.
    """
    found = {"limit": round(ratio(seconds, peer, "machine").median, 3)}
    if "softmax" in seconds:
        both = [sum(parts) for parts in zip(seconds["machine"], seconds["softmax"], strict=True)]
        found["limit_with_softmax"] = round(ratio({**seconds, "both": both}, peer, "both").median, 3)
    return found


def limit_note(seconds: Mapping[str, Sequence[float]], peer: str, bar: float) -> str:
    """The measured limit beside a missed bar, and whether the bar lies beyond it; empty where the bar is met."""
    if ratio(seconds, peer, "ours").median >= bar:
        return ""
    limits = limit(seconds, peer)
    least = limits.get("limit_with_softmax")
    also = "" if least is None else f", {least:.2f} × with PyTorch's softmax besides"
    beyond = ", so the bar is out of reach here" if min(limits.values()) < bar else ""
    return f"limit {limits['limit']:.2f} × with nothing but the matrix products left{also}{beyond}"


def _run(encode: Encode, video: Tensor, autocast: torch.dtype) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast == torch.bfloat16):
        return encode(video).float()


def peers(
    context: Context, encoder: VJEPA2Encoder, spec: EncoderSpec, frames: int, side: int
) -> Iterator[tuple[str, Encode]]:
    """Upstream's and transformers' modules with the weights of ours, on the device of its weights."""
    if context.upstream is not None:
        yield "upstream", upstream_encoder(context.upstream, encoder, spec, frames, side)
    yield "transformers", _transformers(encoder, spec, frames, side)


def upstream_encoder(
    checkout: Path, encoder: VJEPA2Encoder, spec: EncoderSpec, frames: int, side: int
) -> torch.nn.Module:
    """Upstream's module with the weights of ours."""
    upstream = upstream_module(checkout, "src.models.vision_transformer").VisionTransformer(
        img_size=(side, side), patch_size=16, num_frames=frames, tubelet_size=2, embed_dim=spec.width,
        depth=spec.depth, num_heads=spec.num_heads, mlp_ratio=4, qkv_bias=True, use_rope=True, use_sdpa=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    ).eval()  # fmt: skip
    missing = upstream.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing.unexpected_keys, missing
    return upstream.to(encoder.patch_embed.proj.weight.device)


def _transformers(encoder: VJEPA2Encoder, spec: EncoderSpec, frames: int, side: int) -> Encode:
    from transformers import VJEPA2Config, VJEPA2Model

    from hwm.weights.huggingface import encoder_part, to_theirs

    model = VJEPA2Model(
        VJEPA2Config(
            hidden_size=spec.width, num_hidden_layers=spec.depth, num_attention_heads=spec.num_heads,
            crop_size=side, frames_per_clip=frames, pred_num_hidden_layers=1, attn_implementation="sdpa",
        )
    ).eval()  # fmt: skip
    model.load_state_dict(to_theirs(encoder_part(), encoder.state_dict()), strict=False)
    model.to(encoder.patch_embed.proj.weight.device)
    return lambda video: model(pixel_values_videos=video.transpose(1, 2), skip_predictor=True).last_hidden_state


def _has_bfloat16() -> bool:
    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
