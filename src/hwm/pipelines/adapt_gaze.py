"""`hwm adapt-gaze CONFIG`: train a small Gaze-LLE-architecture model on the toy world's gaze.

Frames of both views and the true gaze point → heat maps. Loss: pixel-wise binary cross-entropy against a Gaussian at
the point, as Gaze-LLE's. In the exo view half of the frames come with the head's box, half without; in the ego view no
head is visible and none is given. Backbone and decoder are trained together: no released DINOv2 is this small.
Told on takes of other people: AUC and distance to the true point, beside a centre prior (the mean map of training).
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hwm.config import AdaptGazeConfig
from hwm.data.toyworld import load_truth, read_split
from hwm.data.transforms import centre_square, normalise, point_in_box
from hwm.data.video import VideoReader, probe_video
from hwm.engine.assemble import CHECKPOINTS
from hwm.engine.checkpoint import CheckpointStore
from hwm.engine.optim import adamw, clip_gradients, scheduled_lr, set_lr
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag, rng_for, seeded_weights, start
from hwm.evaluation.gaze_metrics import gaussian_maps, gaze_auc, gaze_l2
from hwm.models.dinov2 import DINOv2, DINOv2Spec
from hwm.models.gazelle import GazeLLE, GazelleSpec
from hwm.weights.load import save_model

FRAMES_PER_SEC = 4.0
VIEWS = {"exo": "cam01", "ego": "*_214-1"}
PATCH_SIZE = 14


class GazeFrames(NamedTuple):
    """Frames of one view with their truth; points and boxes in 0..1 of the square crop."""

    pixels_SYXR: np.ndarray
    points_S2: np.ndarray
    boxes_S4: np.ndarray | None


class AdaptGazeResult(NamedTuple):
    """The model that was made, and its scores by view: `auc`, `l2`, `prior_auc`, `prior_l2`."""

    folder: Path
    gazelle: Path
    scores: dict[str, dict[str, float]]


def run(config: AdaptGazeConfig, resume: bool = True) -> AdaptGazeResult:
    """Train, or go on training, a gaze model.

    Args:
        config: the run; its folder is `config.folder / config.name`.
        resume: go on from the newest checkpoint of the folder if there is one; else start anew.

    Raises:
        HwmError: a toy world that cannot be used, a loss that is not finite, a damaged run folder.
    """
    fabric = start(config.runtime)
    with RunLog.open(config, "adapt-gaze", resume=resume) as log, StopFlag() as stop:
        # Model
        side = config.resolution // PATCH_SIZE
        sizes = config.backbone
        backbone = DINOv2Spec(sizes.width, sizes.depth, sizes.num_heads, position_side=side)
        heads = config.decoder_width // 16
        decoder = GazelleSpec(config.decoder_width, num_heads=heads, position_grid=(side, side))
        with seeded_weights(config.seed, "gazelle"):
            model = GazeLLE(DINOv2(backbone), decoder).to(fabric.device)

        # Data
        world = read_split(config.world)
        train = {view: read_frames(config, world["train"], view) for view in VIEWS}
        optimizer = adamw(model, config.optim.lr, config.optim.weight_decay, config.optim.betas)
        store = CheckpointStore(log.folder / CHECKPOINTS, keep_last=1)
        first_step = log.resume_from(store, {"gazelle": model}, optimizer)

        # Loop
        num_steps = config.optim.num_steps
        with Progress(f"adapt-gaze {config.name}", total=num_steps, done=first_step) as bar:
            for step in range(first_step, num_steps):
                view = ("exo", "ego")[step % 2]
                rng = rng_for(config.seed, "batch", step)
                samples = rng.integers(len(train[view].points_S2), size=config.optim.batch_size)
                set_lr(optimizer, scheduled_lr(config.optim, step))
                loss = gaze_loss(model, train[view], samples, config.heatmap_sigma, rng, fabric.device)
                loss.backward()
                named = clip_gradients(model, {"total": loss}, config.optim.clip_norm, f"step {step}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done = step + 1
                log.add(done, {f"train/{view}": named["total"]})
                bar.advance(loss=named["total"])
                if done % config.log_every == 0 or done == num_steps:
                    log.flush(done)
                stopping = stop.agreed(fabric)
                if done % (10 * config.log_every) == 0 or done == num_steps or stopping:
                    log.save(store, done, {"gazelle": model}, optimizer)
                if stopping and done < num_steps:
                    raise SystemExit(EXIT_STOPPED)

        # Scores on other people
        model.eval()
        scores = {}
        for view in VIEWS:
            scores[view] = evaluate(model, read_frames(config, world["val"], view), train[view], config, fabric.device)
            log.write(num_steps, {f"{view}/{name}": value for name, value in scores[view].items()})
        log.record(scores=scores)
        save_model(model, log.folder / "gazelle", notes={"run": config.name, "scores": scores})
        return AdaptGazeResult(log.folder, log.folder / "gazelle", scores)


def read_frames(config: AdaptGazeConfig, takes: list[str], view: str) -> GazeFrames:
    """Decode the takes' frames of one view (4 a second) with the gaze point of each; points outside the crop are left.

    Raises:
        DataError: a video or its truth cannot be read.
    """
    pixels, points, boxes = [], [], []
    with Progress(f"{view} frames", total=len(takes)) as bar:
        for take in takes:
            folder = config.world / "takes" / take / "frame_aligned_videos"
            path = next(iter(sorted(folder.glob(f"{VIEWS[view]}.mp4"))))
            info, truth = probe_video(path), load_truth(config.world, take)
            box = centre_square(info)
            size = (config.resolution, config.resolution)
            with VideoReader(path) as reader:
                clips = list(reader.read_grid(FRAMES_PER_SEC, [size], box))
            times = np.concatenate([clip.times_sec for clip in clips])
            frame = np.searchsorted(truth.times_sec, times + 1e-6) - 1
            scale = np.array([info.width, info.height])
            gaze = (truth.gaze_exo if view == "exo" else truth.gaze_ego)[frame] * scale
            place = np.stack(point_in_box(gaze[:, 0], gaze[:, 1], box), axis=1)
            inside = ((place >= 0) & (place < 1)).all(axis=1)
            pixels.append(np.concatenate([clip.views[0] for clip in clips])[inside])
            points.append(place[inside])
            if view == "exo":
                corners = truth.head_box[frame].reshape(-1, 2, 2) * scale
                corner_places = np.stack(point_in_box(corners[..., 0], corners[..., 1], box), axis=-1)
                boxes.append(corner_places.reshape(-1, 4)[inside])
            bar.advance()
    return GazeFrames(np.concatenate(pixels), np.concatenate(points), np.concatenate(boxes) if boxes else None)


def gaze_loss(
    model: GazeLLE,
    frames: GazeFrames,
    samples: np.ndarray,
    sigma: float,
    rng: np.random.Generator,
    device: torch.device,
) -> Tensor:
    """Binary cross-entropy of a batch, at the resolution of the model's own logits."""
    images = normalise(torch.from_numpy(frames.pixels_SYXR[samples]).to(device))
    boxes = None
    if frames.boxes_S4 is not None:
        given = rng.random(len(samples)) < 0.5
        boxes = [[tuple(frames.boxes_S4[s].tolist()) if box else None] for s, box in zip(samples, given, strict=True)]
    logits = model(images, boxes).heatmap_logits
    points = torch.from_numpy(frames.points_S2[samples]).to(device, torch.float32)
    target = gaussian_maps(points, (logits.shape[1], logits.shape[2]), sigma)
    return binary_cross_entropy_with_logits(logits, target)


@torch.no_grad()
def evaluate(
    model: GazeLLE, frames: GazeFrames, train: GazeFrames, config: AdaptGazeConfig, device: torch.device
) -> dict[str, float]:
    """AUC and L2 without head boxes, as the world model uses Gazelle, beside the mean training map."""
    size = model.spec.out_size
    points = torch.from_numpy(frames.points_S2).float()
    maps = []
    for first in range(0, len(points), 64):
        images = normalise(torch.from_numpy(frames.pixels_SYXR[first : first + 64]).to(device))
        maps.append(model(images).heatmaps.cpu())
    estimated = torch.cat(maps)
    prior = gaussian_maps(torch.from_numpy(train.points_S2).float(), size, config.heatmap_sigma).mean(0)
    prior = prior.expand(len(points), -1, -1)
    named = {"": estimated, "prior_": prior}
    return {f"{name}auc": gaze_auc(maps, points).mean().item() for name, maps in named.items()} | {
        f"{name}l2": gaze_l2(maps, points).mean().item() for name, maps in named.items()
    }
