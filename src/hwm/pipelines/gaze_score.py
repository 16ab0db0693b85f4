"""`hwm gaze-score CONFIG`: how well does Gazelle say where a person looks, against an eye tracker?

Ego videos and their gaze files → Gazelle's heat maps of single frames (centre square, no head boxes, as the world model
uses it) → AUC, L2, NSS and KL against the measured point, beside a centre prior: the mean map of other videos' gaze. An
estimate that does not beat the centre prior says nothing about the frame. Intervals resample whole videos.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import GazeScoreConfig
from hwm.data.clips import VideoSet, find_videos
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_files import GazeFiles, gaze_in_box
from hwm.data.transforms import centre_square, normalise
from hwm.data.video import VideoInfo, VideoReader, num_grid_steps
from hwm.engine.assemble import load_gazelle
from hwm.engine.progress import LateProgress, Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag, check_precision, rng_for, start
from hwm.errors import DataError, naming
from hwm.evaluation.gaze_metrics import gaussian_maps, gaze_auc, gaze_kl, gaze_l2, gaze_nss
from hwm.evaluation.statistics import mean_interval
from hwm.models.gazelle import GazeLLE
from hwm.terminal import counted
from hwm.tokens.measured import record_measured_gaze

GAZELLE, PRIOR = "gazelle", "centre prior"
METRICS = ("auc", "l2", "nss", "kl")
POINTS_PER_CHUNK = 512


class ScoredFrame(NamedTuple):
    """One frame with known gaze."""

    video: str
    time_sec: float
    x: float
    y: float
    """The measured point in 0..1 of the centre square."""
    scores: dict[str, dict[str, float]]
    """`gazelle` and `centre prior` → metric → value."""


class GazeScoreResult(NamedTuple):
    """Means over frames, and how sure the difference is."""

    folder: Path
    scores: dict[str, dict[str, float]]
    """`gazelle` and `centre prior` → `auc`, `l2`, `nss`, `kl`."""
    difference: dict[str, dict[str, float]]
    """`gazelle − prior`, and with two videos or more its bounds `95 % low` and `95 % high` → metric → value."""
    num_frames: int


def run(config: GazeScoreConfig) -> GazeScoreResult:
    """Score a Gazelle against measured gaze.

    SIGTERM ends it with `EXIT_STOPPED` after the frame that it is at; nothing but `run.json` is left.

    Raises:
        HwmError: videos, gaze files, weights or settings that cannot be used.
    """
    assert config.gaze_files.folder is not None, "the configuration lets no scoring pass without gaze files"
    fabric = start(config.runtime)
    check_precision(fabric.device, {"gazelle.precision": config.gazelle.precision})
    with RunLog.open(config, "gaze-score", resume=False) as log, StopFlag() as stop:
        gazelle, weights = load_gazelle(config.gazelle)
        log.record(weights=weights)
        gazelle.to(fabric.device).requires_grad_(False).eval()
        files = GazeFiles(config.gaze_files.folder, config.gaze_files)
        scored, prior = _find(config, stop)
        record_measured_gaze(log, files, {"scored": scored.videos, "prior": prior.videos}, config.fps)
        log.record_coverage(
            "prior videos", expected=prior.expected, used=len(prior.videos), excluded=list(prior.excluded)
        )

        # The prior never sees the scored videos
        prior_YX = prior_map(prior.videos, files, config, gazelle.spec.out_size)
        frames: list[ScoredFrame] = []
        broken: list[Exclusion] = []
        check = stop.checked(lambda: None)
        with Progress("videos scored", total=len(scored.videos)) as bar:
            for video in scored.videos:
                try:
                    of_video = score_video(video, files, gazelle, prior_YX, config, fabric.device)
                    frames += list(_checked(of_video, check))
                except DataError as error:
                    broken.append(Exclusion(str(video.path), f"cannot be decoded whole: {error.problem}"))
                bar.advance()
        excluded = [*scored.excluded, *broken]
        used = len(scored.videos) - len(broken)
        log.record_coverage("scored videos", expected=scored.expected, used=used, excluded=excluded)
        if not frames:
            raise DataError("no frame could be scored", found="; ".join(e.reason for e in excluded[:3]) or "no frames")

        _write_frames(log.folder / "frames.csv", frames)
        result = _summary(log.folder, frames, config.seed)
        log.record(scores=result.scores, difference=result.difference, num_frames=result.num_frames)
        return result


def _checked(frames: Iterable[ScoredFrame], check: Callable[[], None]) -> Iterator[ScoredFrame]:
    """The same frames; `check` is called at each, and what it raises ends them."""
    for frame in frames:
        check()
        yield frame


def prior_map(
    videos: tuple[VideoInfo, ...], files: GazeFiles, config: GazeScoreConfig, size: tuple[int, int]
) -> Tensor:
    """The mean of Gaussians [Y, X] at all known gaze points of some videos, float64; no frame is decoded."""
    total, count = torch.zeros(size, dtype=torch.float64), 0
    for video in videos:
        times = np.arange(num_grid_steps(video.duration_sec, config.fps)) / config.fps
        points, known = _points(video, files, times)
        for first in range(0, int(known.sum()), POINTS_PER_CHUNK):
            some = torch.from_numpy(points[known][first : first + POINTS_PER_CHUNK])
            total += gaussian_maps(some, size, config.sigma).sum(0)
            count += len(some)
    return total / count


@torch.inference_mode()
def score_video(
    video: VideoInfo,
    files: GazeFiles,
    gazelle: GazeLLE,
    prior_YX: Tensor,
    config: GazeScoreConfig,
    device: torch.device,
) -> Iterator[ScoredFrame]:
    """Score the frames of a video whose gaze is known, `config.fps` a second.

    Raises:
        DataError: the video cannot be decoded to its end.
    """
    if files.track(video) is None:
        return
    size = (config.gazelle.resolution, config.gazelle.resolution)
    step = 0
    with VideoReader(video.path) as reader:
        for clip in reader.read_grid(config.fps, [size], centre_square(video)):
            times = np.arange(step, step + len(clip.times_sec)) / config.fps
            step += len(times)
            points, known = _points(video, files, times)
            if not known.any():
                continue
            pixels = normalise(torch.from_numpy(clip.views[0][known]).to(device))
            heat_PYX = gazelle(pixels).heatmaps.float().cpu()
            points_P2 = torch.from_numpy(points[known]).float()
            prior_PYX = prior_YX.float().expand(len(points_P2), -1, -1)
            said = {
                name: metrics_of(maps, points_P2, config.sigma)
                for name, maps in ((GAZELLE, heat_PYX), (PRIOR, prior_PYX))
            }
            for index, (time, (x, y)) in enumerate(zip(times[known], points[known], strict=True)):
                scores = {name: {m: v[index].item() for m, v in values.items()} for name, values in said.items()}
                yield ScoredFrame(str(video.path), float(time), float(x), float(y), scores)


def metrics_of(maps_PYX: Tensor, points_P2: Tensor, sigma: float) -> dict[str, Tensor]:
    """All metrics [P] of heat maps against true points."""
    values = (
        gaze_auc(maps_PYX, points_P2),
        gaze_l2(maps_PYX, points_P2),
        gaze_nss(maps_PYX, points_P2),
        gaze_kl(maps_PYX, points_P2, sigma),
    )
    return dict(zip(METRICS, values, strict=True))


def _find(config: GazeScoreConfig, stop: StopFlag) -> tuple[VideoSet, VideoSet]:
    """The videos to score and those of the prior.

    Raises:
        DataError: none are left, or a video is in both.
    """
    with LateProgress("videos probed") as told:
        scored = find_videos(config.videos, config.glob, 0.0, on_progress=stop.checked(told))
    with LateProgress("prior videos probed") as told:
        prior = find_videos(config.prior_videos, config.glob, 0.0, on_progress=stop.checked(told))
    both = {v.path.resolve() for v in scored.videos} & {v.path.resolve() for v in prior.videos}
    if both:
        raise DataError(
            f"videos and prior_videos share {counted(len(both), 'video')}",
            expected="a prior from other videos",
            found=", ".join(sorted(map(str, both))[:3]),
        )
    return scored, prior


def _points(video: VideoInfo, files: GazeFiles, times_sec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    track = files.track(video)
    if track is None:
        return np.zeros((len(times_sec), 2)), np.zeros(len(times_sec), dtype=bool)
    return gaze_in_box(track, video, centre_square(video), times_sec)


def _summary(folder: Path, frames: list[ScoredFrame], seed: int) -> GazeScoreResult:
    scores = {
        name: {metric: float(np.mean([frame.scores[name][metric] for frame in frames])) for metric in METRICS}
        for name in (GAZELLE, PRIOR)
    }
    videos = [frame.video for frame in frames]
    difference: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        values = [frame.scores[GAZELLE][metric] - frame.scores[PRIOR][metric] for frame in frames]
        interval = mean_interval(values, videos, rng_for(seed, "intervals", metric))
        bounds = {"gazelle − prior": interval.value, "95 % low": interval.low, "95 % high": interval.high}
        for name, bound in bounds.items():
            if bound is not None:
                difference.setdefault(name, {})[metric] = bound
    return GazeScoreResult(folder, scores, difference, len(frames))


def _write_frames(path: Path, frames: list[ScoredFrame]) -> None:
    columns = [f"{name.replace(' ', '_')}_{metric}" for name in (GAZELLE, PRIOR) for metric in METRICS]
    with naming(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "time_sec", "x", "y", *columns])
        for frame in frames:
            values = [frame.scores[name][metric] for name in (GAZELLE, PRIOR) for metric in METRICS]
            place = [frame.time_sec, frame.x, frame.y]
            writer.writerow([frame.video, *(f"{value:.6g}" for value in (*place, *values))])
