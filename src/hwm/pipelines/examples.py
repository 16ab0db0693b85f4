"""Annotated frames and one clip of a stage-2 run: what was seen, where attention was estimated, what was said.

Segments of validation → pictures of the last observed frame (Gazelle's heat map, the three best guesses, the true step)
and an MP4 that runs from the start of the observation to the start of the step. Frames after the last observed one are
marked: the model did not see them.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from hwm.data.segments import Segment
from hwm.data.transforms import centre_square, normalise
from hwm.data.video import VideoReader, write_video
from hwm.engine.assemble import load_stage1
from hwm.evaluation.calibration import probabilities
from hwm.evaluation.report_parts import Clip, Picture
from hwm.models.world_model import WorldModel
from hwm.pipelines.anticipate import AnticipateResult, Sample
from hwm.viz.overlay import Forecast, annotate, annotate_clip

GUESSES = 5
CLIP_SEGMENTS = 4
HOLD_STEPS = 4
"""Grid steps that the clip rests on the step's first frame, so that the answer can be read."""


class Watched(NamedTuple):
    """Frames of one view [F, Y, X, R] with Gazelle's heat maps [F, H, W] and the seconds to the step's start."""

    frames: np.ndarray
    heat: np.ndarray | None
    seconds_to_start: list[float]


def choose_examples(with_gaze: AnticipateResult, without: AnticipateResult, count: int) -> list[int]:
    """Segments to show, without a favourite: in turn won by gaze, lost by it, right in both and wrong in both."""
    right, other = (result.logits_SC.argmax(1) == result.labels_S for result in (with_gaze, without))
    kinds = [right & ~other, ~right & other, right & other, ~right & ~other]
    queues = [torch.nonzero(kind).flatten().tolist() for kind in kinds]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(len(queue) // 2))
    return chosen


def annotated_examples(
    stage1: Path, with_gaze: AnticipateResult, without: AnticipateResult, count: int
) -> tuple[list[Picture], Clip]:
    """Pictures of `count` segments, and a clip of the first of them.

    Raises:
        HwmError: the stage-1 run or a video cannot be read.
    """
    world = load_stage1(stage1).world
    without_right = (without.logits_SC.argmax(1) == without.labels_S).tolist()
    pictures, films = [], []
    for number, index in enumerate(choose_examples(with_gaze, without, count), start=1):
        sample = with_gaze.samples[index]
        forecast = guesses(with_gaze, index)
        truth = with_gaze.classes.names[int(with_gaze.labels_S[index])]
        watched = _watch(world, sample)
        outcome = f"with gaze {_word(forecast[0][0] == truth)}, without {_word(without_right[index])}"
        caption = f"{sample.segment.take}, {sample.observation.last_time_sec:.2f} s: {outcome}"
        pictures.append(Picture(f"example-{number}", _last_frame(watched, sample, forecast, truth), caption))
        if number <= CLIP_SEGMENTS:
            told = [Forecast(forecast, truth, seconds) for seconds in watched.seconds_to_start]
            films.append(annotate_clip(watched.frames, told, watched.heat, short_side=512))
    film = np.concatenate(films)
    caption = (
        "From the first observed frame to the start of the step. The forecast is the one made at the last observed "
        "frame; the frames after it were not seen by the model."
    )
    return pictures, Clip("examples", _encode(film, world.grid.fps), caption, poster=film[0])


def last_frame(world: WorldModel, result: AnticipateResult, index: int) -> np.ndarray:
    """The last frame that was seen of a segment, with the heat map and the forecast, uint8 [Y, X, R].

    Raises:
        HwmError: the video cannot be read.
    """
    sample = result.samples[index]
    truth = result.classes.names[int(result.labels_S[index])]
    return _last_frame(_watch(world, sample), sample, guesses(result, index), truth)


def _last_frame(watched: Watched, sample: Sample, forecast: list[tuple[str, float]], truth: str) -> np.ndarray:
    seen_until = sample.segment.start_sec - sample.observation.last_time_sec
    last = sum(seconds >= seen_until for seconds in watched.seconds_to_start) - 1
    heat = None if watched.heat is None else watched.heat[last]
    return annotate(
        watched.frames[last], Forecast(forecast, truth, watched.seconds_to_start[last]), heat, short_side=512
    )


def _word(is_right: bool) -> str:
    return "right" if is_right else "wrong"


def guesses(result: AnticipateResult, index: int) -> list[tuple[str, float]]:
    """The best guesses about a segment with their probabilities, best first."""
    best = probabilities(result.logits_SC[index], result.asked_apart).topk(min(GUESSES, len(result.classes)))
    return [
        (result.classes.names[label], share)
        for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _watch(world: WorldModel, sample: Sample) -> Watched:
    """Frames from the start of the observation to the start of the step, on the time grid."""
    segment, observation, _ = sample
    fps = world.grid.fps
    steps = range(max(0, observation.first_step), observation.last_step + observation.num_future + 1)
    times = [min(step / fps, _last_time(segment)) for step in steps]
    times += [times[-1]] * HOLD_STEPS
    side = round(centre_square(segment.video).height)
    sizes = [(side, side)]
    if world.grid.gazelle_resolution is not None:
        sizes.append((world.grid.gazelle_resolution, world.grid.gazelle_resolution))
    with VideoReader(segment.video.path) as reader:
        views = reader.read(times, sizes, centre_square(segment.video)).views
    heat = None
    if world.observer.gazelle is not None:
        with torch.inference_mode():
            heat = world.observer.gazelle(normalise(torch.from_numpy(views[1]))).heatmaps.numpy()
    return Watched(views[0], heat, [segment.start_sec - time for time in times])


def _last_time(segment: Segment) -> float:
    return segment.video.duration_sec - 1e-3


def _encode(frames: np.ndarray, fps: float) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "examples.mp4"
        write_video(path, iter(frames), fps, crf=23, preset="veryfast")
        return path.read_bytes()
