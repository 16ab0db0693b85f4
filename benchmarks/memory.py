"""Peak memory of extraction: children that encode videos of two lengths, and what an hour would need.

An hour of ViT-L takes hours on two cores. So one child runs ViT-L on a short video for the peak, and two run a
one-block encoder of its width, whose tokens are as large, on a short and a longer one: the difference is what a step
of video costs in memory, and a flat extraction has none.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.context import Context, random_encoder
from benchmarks.measure import Figure, Outcome, Spread
from benchmarks.videos import moving_video
from hwm.config import TokenConfig
from hwm.data.clips import find_videos
from hwm.errors import RunError
from hwm.models.observer import Observer
from hwm.models.vjepa2 import EncoderSpec
from hwm.models.world_model import TimeGrid
from hwm.tokens.source import open_source

GRID_FPS = 4.0
STEPS_AN_HOUR = 3600 * GRID_FPS
GIB = 2**30


def run(context: Context) -> Iterator[Outcome]:
    """The projected peak of an hour, and the growth it comes from."""
    width = 128 if context.quick else 1024
    whole, short, longer = (2.0, 2.0, 4.0) if context.quick else (8.0, 16.0, 48.0)
    peak = _child(context, whole, width, depth=2 if context.quick else 24)
    low, high = (_child(context, seconds, width, depth=1) for seconds in (short, longer))
    growth = max(0.0, (high - low) / ((longer - short) * GRID_FPS))
    hour = (peak + growth * STEPS_AN_HOUR) / GIB
    yield Figure(
        "memory/hour", "peak memory of extracting ViT-L tokens from an hour of 448-px video, by parts",
        Spread.of([hour]), 4.0, unit="GiB", at_most=True,
        note=f"peak on a short video {peak / GIB:.2f} GiB, growth {growth / 2**20:.2f} MiB a step of video",
        details={"short_peak_gib": peak / GIB, "growth_bytes_a_step": growth},
    )  # fmt: skip


def _child(context: Context, seconds: float, width: int, depth: int) -> float:
    """Peak resident bytes of a process that extracts the tokens of one video."""
    video = moving_video(context.scratch / f"memory-{seconds:g}.mp4", seconds, 448, gop=30)
    folder = context.scratch / f"memory-{seconds:g}-{depth}"
    command = [sys.executable, "-m", "benchmarks.memory", str(video), str(folder), str(width), str(depth)]
    command += [str(64 if context.quick else 256), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError("the extraction of the memory benchmark failed", found=done.stderr[-2000:])
    return float(done.stdout)


def extract(video: Path, folder: Path, width: int, depth: int, side: int) -> None:
    """Encode a video into a token cache."""
    observer = Observer(random_encoder(EncoderSpec(width, depth, width // 64)), None)
    grid = TimeGrid(GRID_FPS, "frame", side, None)
    config = TokenConfig(source="cached", folder=folder)
    source = open_source(config, observer, grid, {"encoder": f"random-{depth}"}, torch.device("cpu"), 0)
    source.prepare(find_videos([video], "*", 1.0).videos, lambda done: None)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[6]))
    extract(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
