"""How cost grows with tokens, clips and takes: seconds of a piece at ×4 over its seconds at ×1, ideally 1; with a plot.

Seconds are those of the processor, all threads together: cost, whatever else the machine does.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from benchmarks.context import Context, random_encoder, random_video
from benchmarks.measure import Figure, Outcome, Spread
from benchmarks.predictor import random_stack, random_tokens
from benchmarks.single_frames import by_chunks
from benchmarks.videos import moving_video
from hwm.data.video import VideoReader
from hwm.evaluation.drawing import Line, draw_lines, finish, legend_above, new_axes, style_of
from hwm.models.vjepa2 import EncoderSpec
from hwm.tokens.observe import STEPS_PER_CPU_CHUNK

FACTORS = (1, 2, 4)
MOST, LEAST = 1.1, 0.9


def run(context: Context) -> Iterator[Outcome]:
    """Steps through the encoder, clips through the predictor, takes through the decoder; then the plot of all three."""
    costs: dict[str, dict[int, float]] = {}
    for name, (what, piece) in _pieces(context).items():
        costs[name], figure = _growth(context, name, what, piece)
        yield figure
    if context.images is not None:
        _draw(costs, context.images / "growth.svg")


def _pieces(context: Context) -> dict[str, tuple[str, Callable[[int], object]]]:
    encoder = random_encoder(EncoderSpec(128, 2, 2) if context.quick else EncoderSpec(768, 4, 12))
    side, steps = (64, 8) if context.quick else (256, 8)
    frames = random_video(steps * FACTORS[-1], side)[0].transpose(0, 1).contiguous()
    stack = random_stack(context, depth=2)
    clips = random_tokens(context, 8).expand(FACTORS[-1], -1, -1, -1)
    video = moving_video(context.scratch / "growth.mp4", 2.0 if context.quick else 8.0, 448, gop=30)

    @torch.inference_mode()
    def encode(factor: int) -> object:
        return by_chunks(encoder.encode_frames, frames[: steps * factor])

    @torch.inference_mode()
    def predict(factor: int) -> object:
        return stack(clips[:factor])

    def decode(factor: int) -> object:
        for _ in range(factor):
            with VideoReader(video) as reader:
                for _clip in reader.read_grid(4.0, [(256, 256)]):
                    pass
        return None

    return {
        "tokens": (f"encoder, 2048, 4096, 8192 tokens in chunks of {STEPS_PER_CPU_CHUNK} steps", encode),
        "clips": ("predictor, 1, 2, 4 clips of 8 steps", predict),
        "takes": ("decoding, 1, 2, 4 takes", decode),
    }


def _growth(context: Context, name: str, what: str, piece: Callable[[int], object]) -> tuple[dict[int, float], Figure]:
    piece(1)
    rounds: list[dict[int, float]] = []
    for _ in range(context.rounds):
        rounds.append({factor: _processor_seconds(piece, factor) for factor in FACTORS})
    spread = Spread.of([spent[4] / 4 / spent[1] for spent in rounds])
    costs = {factor: float(np.median([spent[factor] for spent in rounds])) for factor in FACTORS}
    figure = Figure(
        f"growth/{name}", f"{what}: processor seconds a piece at ×4 over ×1", spread, MOST, at_most=True,
        details={f"sec_x{factor}": seconds for factor, seconds in costs.items()}
        | {"linear_within_10_percent": str(all(LEAST <= costs[f] / f / costs[1] <= MOST for f in FACTORS))},
    )  # fmt: skip
    return costs, figure


def _processor_seconds(piece: Callable[[int], object], factor: int) -> float:
    start = time.process_time()
    piece(factor)
    return time.process_time() - start


def _draw(costs: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Cost at ×1, ×2 and ×4 over the cost at ×1, beside the diagonal."""
    with mpl.rc_context(style_of("growth")):
        canvas, axes = new_axes("Cost as the work grows", "pieces of work", "processor seconds over those of one piece")
        lines = [Line(name, list(spent), [cost / spent[1] for cost in spent.values()]) for name, spent in costs.items()]
        axes.fill_between(FACTORS, [LEAST * f for f in FACTORS], [MOST * f for f in FACTORS], alpha=0.1, linewidth=0)
        draw_lines(axes, lines)
        axes.set_xticks(FACTORS)
        legend_above(axes)
        rows = [(name, *(f"{spent[factor]:.4f}" for factor in FACTORS)) for name, spent in costs.items()]
        drawn = finish(canvas, "growth", "Cost as the work grows", ("what", "x1_sec", "x2_sec", "x4_sec"), rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawn.svg, encoding="utf-8")
