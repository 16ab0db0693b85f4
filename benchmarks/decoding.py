"""Video: sequential decoding with scaling against the `ffmpeg` program, random access against decord and torchcodec.

Both sides have one decoding thread, as the workers of a data loader have: the cores are filled by workers.
"""

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
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
    """One sequential figure, then random access in three files against each peer."""
    yield _sequential(context)
    for name, (side, gop, bar) in ACCESS.items():
        side = 64 if context.quick else side
        video = moving_video(context.scratch / f"{name}.mp4", 6.0 if context.quick else 20.0, side, gop)
        for peer in PEERS:
            what = f"random access, {FRAMES} frames at {GRID_FPS:g} fps, {side} px, GOP {gop}, against {peer}"
            figure = f"random-access/{name}" + ("" if peer == "decord" else f"/{peer}")
            if importlib.util.find_spec(peer) is None:
                yield Skipped(figure, what, f"{peer} is not installed")
            else:
                yield _random_access(context, figure, what, video, side, peer, bar if peer == "decord" else None)


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


def _by_decord(video: Path, times_sec: Sequence[float]) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(video), num_threads=1)
    return reader.get_batch([int(time * FPS + 1e-6) for time in times_sec]).asnumpy()


def _by_torchcodec(video: Path, times_sec: Sequence[float]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    decoder = VideoDecoder(str(video), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate")
    return decoder.get_frames_played_at([time + 1e-6 for time in times_sec]).data.numpy()


PEERS: dict[str, Callable[[Path, Sequence[float]], np.ndarray]] = {
    "decord": _by_decord,
    "torchcodec": _by_torchcodec,
}
"""Frames at given times by each peer, as fast as it has them: torchcodec without its scan of the whole file."""


def _random_access(
    context: Context,
    name: str,
    what: str,
    video: Path,
    side: int,
    peer: str,
    bar: float | None,
) -> Outcome:
    read = PEERS[peer]
    starts = np.random.default_rng(1).uniform(0, 1.9 if context.quick else 15.9, 5).round(1)
    clips = [[start + step / GRID_FPS for step in range(FRAMES)] for start in starts]

    def ours(times_sec: Sequence[float]) -> np.ndarray:
        with VideoReader(video) as reader:
            return reader.read(times_sec, [(side, side)]).views[0]

    timed = interleaved(
        {"ours": lambda: [ours(clip) for clip in clips], peer: lambda: [read(video, clip) for clip in clips]},
        context.long_rounds,
    )
    wrong = 0
    for mine, other in zip(timed.results["ours"], timed.results[peer], strict=True):
        difference = np.abs(mine.astype(np.int16) - other.astype(np.int16)).mean(axis=(1, 2, 3))
        wrong += int((difference > SMALLEST_STEP).sum())
    check_equal(f"frames that differ from {peer}'s", torch.tensor([float(wrong)]), torch.zeros(1), 0.0)
    return Figure(
        name, what, ratio(timed.seconds, peer, "ours"), bar, agreement=f"0 of {FRAMES * len(starts)} frames wrong",
        note=LIMITS.get(name.split("/")[1], "") if bar else "", details=medians(timed.seconds),
    )  # fmt: skip
