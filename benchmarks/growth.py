"""How cost grows with tokens, clips and takes: seconds of a piece at ×4 over its seconds at ×1, ideally 1."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks.context import Context, random_encoder, random_video
from benchmarks.measure import Figure, Outcome, Spread, interleaved
from benchmarks.predictor import random_stack, random_tokens
from benchmarks.videos import moving_video
from hwm.data.video import VideoReader
from hwm.models.vjepa2 import EncoderSpec

FACTORS = (1, 2, 4)


def run(context: Context) -> Iterator[Outcome]:
    """Steps through the encoder, clips through the predictor, takes through the decoder."""
    encoder = random_encoder(EncoderSpec(128, 2, 2) if context.quick else EncoderSpec(768, 4, 12))
    side, steps = (64, 2) if context.quick else (256, 8)
    frames = random_video(steps * FACTORS[-1], side)[0].transpose(0, 1).contiguous()
    stack = random_stack(context, depth=2)
    clips = random_tokens(context, 8).expand(FACTORS[-1], -1, -1, -1)
    video = moving_video(context.scratch / "growth.mp4", 2.0 if context.quick else 8.0, 448, gop=30)

    @torch.inference_mode()
    def encode(factor: int) -> object:
        return encoder.encode_frames(frames[: steps * factor])

    @torch.inference_mode()
    def predict(factor: int) -> object:
        return stack(clips[:factor])

    def decode(factor: int) -> object:
        for _ in range(factor):
            with VideoReader(video) as reader:
                for _clip in reader.read_grid(4.0, [(256, 256)]):
                    pass
        return None

    pieces: dict[str, tuple[str, Callable[[int], object]]] = {
        "tokens": ("encoder, 8, 16, 32 single frames", encode),
        "clips": ("predictor, 1, 2, 4 clips of 8 steps", predict),
        "takes": ("decoding, 1, 2, 4 takes", decode),
    }
    for name, (what, piece) in pieces.items():
        yield _growth(context, name, what, piece)


def _growth(context: Context, name: str, what: str, piece: Callable[[int], object]) -> Figure:
    timed = interleaved({str(factor): lambda factor=factor: piece(factor) for factor in FACTORS}, context.long_rounds)
    per_piece = {factor: np.array(timed.seconds[str(factor)]) / factor for factor in FACTORS}
    spread = Spread.of((per_piece[4] / per_piece[1]).tolist())
    return Figure(
        f"growth/{name}", f"{what}: seconds a piece at ×4 over ×1", spread, 1.1, at_most=True,
        details={f"sec_each_x{factor}": float(np.median(times)) for factor, times in per_piece.items()},
    )  # fmt: skip
