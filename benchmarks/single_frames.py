"""Frames as latent steps: each alone through the summed patch kernel, against encoding it doubled to a tubelet."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.context import Context, random_encoder, random_video
from benchmarks.measure import Figure, Outcome, check_equal, interleaved, medians, ratio
from hwm.tokens.observe import STEPS_PER_CPU_CHUNK


@torch.inference_mode()
def run(context: Context) -> Iterator[Outcome]:
    """The ratio, with equal latents."""
    steps, side = (4, 64) if context.quick else (8, 256)
    encoder = random_encoder(context.encoder_spec())
    frames = random_video(steps, side)[0].transpose(0, 1).contiguous()
    timed = interleaved(
        {
            "ours": lambda: by_chunks(encoder.encode_frames, frames),
            "doubled": lambda: by_chunks(lambda some: encoder(some.unsqueeze(2).repeat(1, 1, 2, 1, 1)), frames),
        },
        context.long_rounds,
    )
    yield Figure(
        "single-frames/doubled", f"{steps} single frames as steps against the doubled tubelet, {side} px",
        ratio(timed.seconds, "doubled", "ours"), 1.0,
        agreement=check_equal("single frames", timed.results["ours"], timed.results["doubled"], 1e-5),
        details=medians(timed.seconds),
    )  # fmt: skip


def by_chunks(encode: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """As many frames at a time as extraction takes on a CPU."""
    return torch.cat([encode(some) for some in frames.split(STEPS_PER_CPU_CHUNK)])
