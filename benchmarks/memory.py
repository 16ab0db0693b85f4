"""Peak memory of extraction: ViT-L on a short video, and a real hour of video through an encoder without blocks.

An hour of ViT-L takes hours on two cores. So one child runs ViT-L on a short video for the peak. Two more run the patch
embedding of ViT-L alone, whose tokens are as many and as large, on a minute and on an hour: what the hour needs more is
what length costs. Decoding, the grid, the chunks and the token file are those of `hwm extract`.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.context import Context, random_encoder
from benchmarks.measure import Figure, Outcome, Spread
from benchmarks.videos import looped_video, moving_video
from hwm.config import TokenConfig
from hwm.data.clips import find_videos
from hwm.errors import RunError
from hwm.models.observer import Observer
from hwm.models.vjepa2 import EncoderSpec
from hwm.models.world_model import TimeGrid
from hwm.tokens.source import open_source

GRID_FPS = 4.0
VIDEO_FPS = 8
GIB = 2**30


def run(context: Context) -> Iterator[Outcome]:
    """The peak of an hour, from parts that were all measured."""
    width, blocks = (128, 2) if context.quick else (1024, 24)
    seconds, loops = (2.0, 2) if context.quick else (60.0, 60)
    short = moving_video(context.scratch / "memory-short.mp4", 2.0 if context.quick else 8.0, 448, gop=30)
    minute = moving_video(context.scratch / "memory-minute.mp4", seconds, 448, gop=24, fps=VIDEO_FPS)
    hour = looped_video(context.scratch / "memory-hour.mp4", minute, loops)
    peak = _child(context, short, width, blocks)
    low, high = (_child(context, video, width, 0) for video in (minute, hour))
    growth = high - low
    yield Figure(
        "memory/hour", "peak memory of extracting ViT-L tokens (float32, frames alone) from an hour of 448-px video",
        Spread.of([(peak + max(0.0, growth)) / GIB]), 4.0, unit="GiB", at_most=True,
        agreement=f"{seconds * loops:.0f} s of video decoded and stored whole",
        note=f"ViT-L on a short video peaks at {peak / GIB:.2f} GiB; with the patch embedding alone, {seconds:.0f} s "
        f"of video peak at {low / GIB:.2f} GiB and {seconds * loops:.0f} s at {high / GIB:.2f} GiB. Counted is what "
        "the process has resident at its peak, libraries and mapped files included. Tokens are written, not mapped: "
        "the system's cache of written pages is not counted, and is given back on demand",
        details={"short_peak_gib": peak / GIB, "minute_gib": low / GIB, "hour_gib": high / GIB},
    )  # fmt: skip


def _child(context: Context, video: Path, width: int, depth: int) -> float:
    """Peak resident bytes of a process that extracts the tokens of one video."""
    folder = context.scratch / f"{video.stem}-tokens"
    command = [sys.executable, "-m", "benchmarks.memory", str(video), str(folder), str(width), str(depth)]
    command += [str(64 if context.quick else 256), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError("the extraction of the memory benchmark failed", found=done.stderr[-2000:])
    for file in folder.rglob("*.safetensors"):
        file.unlink()  # an hour of tokens is 7.5 GB
    return float(done.stdout)


def extract(video: Path, folder: Path, width: int, depth: int, side: int) -> None:
    """Encode a video into a token cache; depth 0 leaves the patch embedding and the last norm."""
    encoder = random_encoder(EncoderSpec(width, max(depth, 1), width // 64))
    if depth == 0:
        encoder.blocks = torch.nn.ModuleList()
    grid = TimeGrid(GRID_FPS, "frame", side, None)
    config = TokenConfig(source="cached", folder=folder)
    source = open_source(config, Observer(encoder, None), grid, {"encoder": f"random-{depth}"}, torch.device("cpu"), 0)
    excluded = source.prepare(find_videos([video], "*", 1.0).videos, lambda done: None)
    if excluded:
        raise RunError("the video of the memory benchmark was not extracted", found=str(excluded))


def peak_bytes() -> float:
    """Resident bytes of this process at its peak, pages of mapped files among them.

    On Linux `VmHWM`: there `ru_maxrss` of a child begins at what its parent had resident when it started the child.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024.0 * int(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: bytes


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[6]))
    extract(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:6]))
    sys.stdout.write(str(peak_bytes()))
