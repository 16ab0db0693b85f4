"""Gaze-LLE B at 448 px against upstream's decoder on transformers' DINOv2, random weights."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.context import Context, random_video
from benchmarks.encoder import limit, limit_note
from benchmarks.machine import Product, block_products, fastest, gflop
from benchmarks.measure import Figure, Outcome, Skipped, check_equal, interleaved, medians, ratio
from benchmarks.peers import stood_in, upstream_gazelle
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec


def random_gazelle(quick: bool) -> GazeLLE:
    """ViT-B (or a small one) whose learned positions fit 448 px, so that nobody resamples them by a rule of his own."""
    torch.manual_seed(0)
    spec = DINOv2Spec(128, 2, 2, position_side=32) if quick else DINOv2Spec(768, 12, 12, position_side=32)
    return GazeLLE(DINOv2(spec), GazelleSpec()).requires_grad_(False).eval()


def gazelle_products(model: GazeLLE, pictures: int, side: int) -> list[Product]:
    """All matrix products of one pass but those of a few millions: backbone, projection, decoder, heat map."""
    inside, outside = model.backbone.spec, model.spec
    patches = (side // inside.patch_size) ** 2
    rows = pictures * patches

    def blocks(spec: DINOv2Spec | GazelleSpec, length: int) -> list[Product]:
        hidden = round(spec.width * spec.mlp_ratio)
        return block_products(spec.width, hidden, spec.depth, spec.num_heads, length, pictures)

    return [
        Product(rows, 3 * inside.patch_size**2, inside.width, 1, True),
        *blocks(inside, 1 + patches),
        Product(rows, inside.width, outside.width, 1, True),
        *blocks(outside, patches),
        Product(rows, outside.width, 4 * outside.width, 1, True),
    ]


@torch.inference_mode()
def run(context: Context) -> Iterator[Outcome]:
    """The ratio, with equal heat maps."""
    what, pictures, side = "Gaze-LLE B at 448 px against upstream's decoder on transformers' DINOv2", 2, 448
    if context.gazelle is None:
        yield Skipped("gazelle/upstream", what, "no --gazelle checkout")
        return
    ours = random_gazelle(context.quick)
    theirs = upstream_gazelle(context, ours, side)
    images = random_video(pictures, side)[0].transpose(0, 1).contiguous()

    def upstream() -> Tensor:
        said = theirs({"images": images, "bboxes": [[None]] * pictures})["heatmap"]
        return torch.cat(list(said))

    products, bar = gazelle_products(ours, pictures, side), 1.3
    calls = {"ours": lambda: ours(images).heatmaps, "upstream": upstream, "machine": fastest(products, torch.float32)}
    timed = interleaved(calls, context.rounds)
    missing = stood_in()
    said = [f"plain PyTorch stood in for {', '.join(missing)}"] if missing else []
    beyond = limit_note(timed.seconds, "upstream", bar)
    yield Figure(
        "gazelle/upstream", f"{what}, batch {pictures}", ratio(timed.seconds, "upstream", "ours"), bar,
        agreement=check_equal("heat maps", timed.results["ours"], timed.results["upstream"], 1e-5),
        note="; ".join(said + ([beyond] if beyond else [])),
        details=medians(timed.seconds) | limit(timed.seconds, "upstream") | {"gflop": sum(map(gflop, products))},
    )  # fmt: skip
