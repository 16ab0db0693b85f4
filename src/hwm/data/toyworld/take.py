"""One take from plan to files: three videos, the gaze track and the truth. A pure function of (plan, config).

Inputs: a `TakePlan` and the `ToyWorldConfig`. Output: files below the world's folder. Runs in any process.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hwm.config import ToyWorldConfig
from hwm.data.encoding import write_video
from hwm.data.toyworld.formats import GAZE_HZ, TakePlan, Truth, save_truth, stable_number, write_gaze_csv
from hwm.data.toyworld.look import EGO_FOLLOW, HEAD_CENTRE, HEAD_RADIUS, Look, sample_look
from hwm.data.toyworld.scene import (
    CameraTrack,
    Views,
    cameras_at,
    ego_frames,
    ego_normalised,
    exo_frames,
    exo_normalised,
)
from hwm.data.toyworld.timeline import gaze_at, hands_at, looks_at, objects_at, step_at

_SIDE_EVERY = 3
"""The grey side camera keeps every third pixel of the ego view."""


def stream_rng(seed: int, take: int, stream: str) -> np.random.Generator:
    """The generator of one purpose (`script`, `look`, `exo-noise`, …) of one take."""
    return np.random.default_rng([seed, take, *stream.encode()])


def _grey(frame: np.ndarray) -> np.ndarray:
    """The side camera's picture: small, grey, with even sides."""
    small = frame[::_SIDE_EVERY, ::_SIDE_EVERY]
    rows, columns = small.shape[0] // 2 * 2, small.shape[1] // 2 * 2
    return np.broadcast_to(small[:rows, :columns, 1:2], (rows, columns, 3))


def _keeping_grey(frames: Iterator[np.ndarray], grey: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass frames on, and keep a small grey copy of each."""
    for frame in frames:
        grey.append(_grey(frame))
        yield frame


def truth_of(plan: TakePlan, look: Look, views: Views, fps: int) -> Truth:
    """Everything known of each video frame of a take."""
    script = plan.script
    times = np.arange(round(script.duration_sec * fps)) / fps
    gaze, hands = gaze_at(script, look, times), hands_at(script, look, times)
    cameras = cameras_at(look, gaze, views, times)
    shifts = objects_at(script, look, times)
    objects_exo = np.moveaxis(look.exo_points[:-1] + shifts.exo, 1, 0)
    objects_ego = np.moveaxis(look.ego_points[:-1] + shifts.ego, 1, 0)
    centre = np.broadcast_to(HEAD_CENTRE, (len(times), 2))
    corners = [exo_normalised(centre + side * HEAD_RADIUS, cameras, views) for side in (-1, 1)]
    return Truth(
        times_sec=times,
        gaze_exo=exo_normalised(gaze.exo, cameras, views),
        gaze_ego=ego_normalised(gaze.ego, cameras, views),
        head_box=np.concatenate(corners, axis=-1),
        object_index=gaze.object_index,
        turned=gaze.turned,
        step_index=step_at(script, times),
        hands_exo=np.stack([exo_normalised(hands.exo[:, hand], cameras, views) for hand in (0, 1)], axis=1),
        object_changed=looks_at(script, len(look.kinds), times),
        objects_exo=np.stack([exo_normalised(points, cameras, views) for points in objects_exo], axis=1),
        objects_ego=np.stack([ego_normalised(points, cameras, views) for points in objects_ego], axis=1),
        object_kinds=look.kinds,
        object_slots=look.slots,
    )


def look_of(plan: TakePlan, config: ToyWorldConfig) -> Look:
    """The look of a take, drawn apart from its script."""
    follow = EGO_FOLLOW if config.ego_camera == "follows" else 0.0
    return sample_look(plan.script.recipe, plan.person, stream_rng(config.seed, plan.number, "look"), follow)


def write_take(plan: TakePlan, config: ToyWorldConfig, out: Path) -> int:
    """Draw and write one take.

    Args:
        plan: what happens.
        config: size, rate and seed.
        out: folder of the world.

    Returns:
        Number of video frames.
    """
    views, script, look = Views.of(config.height), plan.script, look_of(plan, config)
    folder = out / "takes" / plan.name
    videos = folder / "frame_aligned_videos"
    truth = truth_of(plan, look, views, config.fps)
    times = truth.times_sec
    gaze, hands = gaze_at(script, look, times), hands_at(script, look, times)
    cameras = cameras_at(look, gaze, views, times)
    if config.views != "ego":
        noise = stream_rng(config.seed, plan.number, "exo-noise")
        exo = exo_frames(script, look, gaze, hands, cameras, views, times, noise)
        write_video(videos / "cam01.mp4", exo, config.fps, crf=21, g=24, bf=0, preset="veryfast")
    if config.views != "exo":
        noise = stream_rng(config.seed, plan.number, "ego-noise")
        grey: list[np.ndarray] = []
        ego = _keeping_grey(ego_frames(script, look, hands, cameras, views, times, noise), grey)
        write_video(videos / f"{plan.aria}_214-1.mp4", ego, config.fps, crf=21, g=24, bf=0, preset="veryfast")
        write_video(videos / f"{plan.aria}_1201-1.mp4", grey, config.fps, crf=21, g=24, preset="ultrafast")
    _write_gaze(plan, look, views, config.seed, folder)
    save_truth(out / "truth" / f"{plan.name}.npz", truth)
    return len(times)


def _write_gaze(plan: TakePlan, look: Look, views: Views, seed: int, folder: Path) -> None:
    times = np.arange(int(plan.script.duration_sec * GAZE_HZ)) / GAZE_HZ
    gaze = gaze_at(plan.script, look, times)
    cameras: CameraTrack = cameras_at(look, gaze, views, times)
    # Aria's clock counts from when the device was switched on, not from the take's first frame.
    clock_us = 100_000_000 + stable_number(seed, "clock", plan.name, below=900_000_000)
    points = ego_normalised(gaze.ego, cameras, views)
    write_gaze_csv(folder / "eye_gaze" / "general_eye_gaze_2d.csv", points, clock_us)
