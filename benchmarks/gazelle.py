"""Gaze-LLE B at 448 px against upstream's decoder on transformers' DINOv2, random weights."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.context import Context, random_video
from benchmarks.measure import Figure, Outcome, Skipped, check_equal, interleaved, medians, ratio
from benchmarks.peers import stood_in, upstream_gazelle
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec


def random_gazelle(quick: bool) -> GazeLLE:
    """ViT-B (or a small one) whose learned positions fit 448 px, so that nobody resamples them by a rule of his own."""
    torch.manual_seed(0)
    spec = DINOv2Spec(128, 2, 2, position_side=32) if quick else DINOv2Spec(768, 12, 12, position_side=32)
    return GazeLLE(DINOv2(spec), GazelleSpec()).requires_grad_(False).eval()


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

    timed = interleaved({"ours": lambda: ours(images).heatmaps, "upstream": upstream}, context.rounds)
    missing = stood_in()
    yield Figure(
        "gazelle/upstream", f"{what}, batch {pictures}", ratio(timed.seconds, "upstream", "ours"), 1.3,
        agreement=check_equal("heat maps", timed.results["ours"], timed.results["upstream"], 1e-5),
        note=f"plain PyTorch stood in for {', '.join(missing)}" if missing else "", details=medians(timed.seconds),
    )  # fmt: skip
