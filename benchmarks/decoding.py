"""Video: sequential decoding with scaling against the `ffmpeg` program, random access against decord.

Both sides have one decoding thread, as the workers of a data loader have: the cores are filled by workers.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.context import Context
from benchmarks.measure import Figure, Outcome, Skipped, check_equal, interleaved, medians, ratio
from benchmarks.videos import FPS, moving_video
from hwm.data.video import VideoReader

FRAMES, GRID_FPS = 32, 8.0
ACCESS = {"448-gop12": (448, 12, 1.5), "448-gop250": (448, 250, 1.0), "1408-gop30": (1408, 30, 1.2)}
LIMITS = {
    "448-gop12": "at 8 of 30 frames a second every group of 12 is needed, by both; left out here are only the "
    "pictures that no other refers to"
}
"""Why a figure is what it is."""
SMALLEST_STEP = 3.0
"""Mean difference in grey levels above which pictures are different frames; the test video moves more in one frame."""


def run(context: Context) -> Iterator[Outcome]:
    """One sequential figure, then random access in three files."""
    yield _sequential(context)
    for name, (side, gop, bar) in ACCESS.items():
        what = f"random access, {FRAMES} frames at {GRID_FPS:g} fps, {side} px, GOP {gop}, against decord"
        if importlib.util.find_spec("decord") is None:
            yield Skipped(f"random-access/{name}", what, "decord is not installed")
            continue
        side = 64 if context.quick else side
        video = moving_video(context.scratch / f"{name}.mp4", 6.0 if context.quick else 20.0, side, gop)
        yield _random_access(context, name, what, video, side, bar)


def _sequential(context: Context) -> Outcome:
    what = "decoding in order and scaling every 4 fps step to 256 px, from 448 px, against ffmpeg to nowhere"
    program = shutil.which("ffmpeg")
    video = moving_video(context.scratch / "sequential.mp4", 2.0 if context.quick else 30.0, 448, gop=30)
    if program is None:
        return Skipped("sequential/ffmpeg", what, "no ffmpeg program")
    command = [program, "-v", "error", "-threads", "1", "-i", str(video), "-filter_threads", "1"]
    command += ["-vf", "fps=4,scale=256:256", "-pix_fmt", "rgb24", "-f", "null", "-"]

    def ours() -> int:
        with VideoReader(video) as reader:
            return sum(len(clip.times_sec) for clip in reader.read_grid(4.0, [(256, 256)]))

    calls = {"ours": ours, "ffmpeg": lambda: subprocess.run(command, check=True, capture_output=True)}
    timed = interleaved(calls, context.rounds)
    return Figure(
        "sequential/ffmpeg", what, ratio(timed.seconds, "ffmpeg", "ours"), 0.8,
        agreement=f"{timed.results['ours']} steps", details=medians(timed.seconds),
    )  # fmt: skip


def _random_access(context: Context, name: str, what: str, video: Path, side: int, bar: float) -> Outcome:
    import decord

    starts = np.random.default_rng(1).uniform(0, 1.9 if context.quick else 15.9, 5).round(1)

    def ours(start: float) -> np.ndarray:
        with VideoReader(video) as reader:
            return reader.read([start + step / GRID_FPS for step in range(FRAMES)], [(side, side)]).views[0]

    def theirs(start: float) -> np.ndarray:
        reader = decord.VideoReader(str(video), num_threads=1)
        return reader.get_batch([int((start + step / GRID_FPS) * FPS + 1e-6) for step in range(FRAMES)]).asnumpy()

    timed = interleaved(
        {"ours": lambda: [ours(s) for s in starts], "decord": lambda: [theirs(s) for s in starts]}, context.long_rounds
    )
    wrong = 0
    for mine, other in zip(timed.results["ours"], timed.results["decord"], strict=True):
        difference = np.abs(mine.astype(np.int16) - other.astype(np.int16)).mean(axis=(1, 2, 3))
        wrong += int((difference > SMALLEST_STEP).sum())
    check_equal("frames that differ from decord's", torch.tensor([float(wrong)]), torch.zeros(1), 0.0)
    return Figure(
        f"random-access/{name}", what, ratio(timed.seconds, "decord", "ours"), bar,
        agreement=f"0 of {FRAMES * len(starts)} frames wrong", note=LIMITS.get(name, ""),
        details=medians(timed.seconds),
    )  # fmt: skip
