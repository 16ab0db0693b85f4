"""What a linear map can read off frozen encoder features of the toy world: which object, which in use, where to look.

    python scripts/linear_probes.py WORLD [ENCODER]      ENCODER: `mini` (default) or a folder of ours

Frames of the exo view, 4 a second, each encoded alone. Ridge regression (one-hot) on the training takes, scored on the
takes of other people. Shares of right answers, beside the encoder's own random initialisation:

    object    which of 8 kinds stands at a patch                 from that patch's feature
    used      which of 8 kinds the person works on                from the feature of the patch where it is by then
    gaze      at which of the 8 places the person looks           from the average of all patches
              (not while the object in use is looked at, which stands at none of them)

With all patches laid side by side even random features answer the last one almost perfectly (the head is always in the
same place), so that question would tell nothing; the average has no places, only what the features themselves say.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.data.toyworld import load_truth, read_split
from hwm.data.toyworld.rules import OBJECT_KINDS
from hwm.data.transforms import centre_square, normalise, point_in_box
from hwm.data.video import VideoReader, probe_video
from hwm.engine.runtime import seeded_weights
from hwm.losses import effective_rank, layer_normed
from hwm.models.vjepa2 import VJEPA2Encoder
from hwm.weights.load import load_encoder

FPS = 4.0
RESOLUTION = 128
OBJECT_STRIDE = 12
FRAME_STRIDE = 2
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class TakeFrames(NamedTuple):
    """Frames of one take with the answers to the three questions; −1 where there is none."""

    pixels_SYXR: np.ndarray
    objects_SO2: np.ndarray
    kinds_O: np.ndarray
    gaze_S: np.ndarray
    used_S: np.ndarray
    """Which of the objects is in use."""


Questions = dict[str, tuple[Tensor, np.ndarray]]


def read_take(world: Path, take: str) -> TakeFrames:
    """Decode a take and look its answers up in the truth."""
    path = world / "takes" / take / "frame_aligned_videos" / "cam01.mp4"
    info, truth = probe_video(path), load_truth(world, take)
    box = centre_square(info)
    with VideoReader(path) as reader:
        clips = list(reader.read_grid(FPS, [(RESOLUTION, RESOLUTION)], box))
    frame = np.searchsorted(truth.times_sec, np.concatenate([clip.times_sec for clip in clips]) + 1e-6) - 1
    points = truth.objects_exo[frame] * np.array([info.width, info.height])
    slots = np.array(truth.object_slots)
    attended, step = truth.object_index[frame], truth.step_index[frame]
    return TakeFrames(
        np.concatenate([clip.views[0] for clip in clips]),
        np.stack(point_in_box(points[..., 0], points[..., 1], box), axis=-1),
        np.array([OBJECT_KINDS.index(kind) for kind in truth.object_kinds]),
        np.where((attended >= 0) & truth.turned[frame] & (attended != step), slots[attended], -1),
        step,
    )


@torch.no_grad()
def ask(encoder: VJEPA2Encoder, takes: list[TakeFrames]) -> Questions:
    """Features and answers of each question over all takes."""
    rows: dict[str, tuple[list[Tensor], list[int]]] = {name: ([], []) for name in ("object", "used", "gaze")}
    for take in takes:
        frames = normalise(torch.from_numpy(take.pixels_SYXR))
        z_SND = torch.cat([layer_normed(encoder.encode_frames(part)) for part in frames.split(64)])
        rows_of_grid, cols = encoder.spec.grid(RESOLUTION, RESOLUTION)
        for s in range(0, len(z_SND), FRAME_STRIDE):
            if take.gaze_S[s] >= 0:
                rows["gaze"][0].append(z_SND[s].mean(0))
                rows["gaze"][1].append(int(take.gaze_S[s]))
            for item, (kind, (x, y)) in enumerate(zip(take.kinds_O, take.objects_SO2[s], strict=True)):
                asked = {"object": s % OBJECT_STRIDE == 0, "used": item == take.used_S[s]}
                for name in [name for name in asked if asked[name] and 0 <= x < 1 and 0 <= y < 1]:
                    rows[name][0].append(z_SND[s, int(y * rows_of_grid) * cols + int(x * cols)])
                    rows[name][1].append(int(kind))
    return {name: (torch.stack(features).double(), np.array(answers)) for name, (features, answers) in rows.items()}


def ridge_accuracy(train: tuple[Tensor, np.ndarray], test: tuple[Tensor, np.ndarray]) -> float:
    """Share of right answers; the strength is chosen on the last fifth of `train`."""
    cut = len(train[1]) * 4 // 5
    first, last = (train[0][:cut], train[1][:cut]), (train[0][cut:], train[1][cut:])
    best = max(STRENGTHS, key=lambda strength: _accuracy(_fit(*first, strength), *last))
    return _accuracy(_fit(*train, best), *test)


def _fit(x: Tensor, answers: np.ndarray, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(0)
    target = torch.eye(len(OBJECT_KINDS), dtype=x.dtype)[torch.from_numpy(answers)]
    gram = (x - mean).T @ (x - mean)
    penalty = strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
    return mean, torch.linalg.solve(gram + penalty, (x - mean).T @ (target - target.mean(0))), target.mean(0)


def _accuracy(model: tuple[Tensor, Tensor, Tensor], x: Tensor, answers: np.ndarray) -> float:
    mean, weight, bias = model
    return float((((x - mean) @ weight + bias).argmax(1).numpy() == answers).mean())


def evaluate(encoder: VJEPA2Encoder, train: list[TakeFrames], test: list[TakeFrames]) -> dict[str, float]:
    """Accuracy of each question, and the two collapse monitors on the test frames."""
    asked, answered = ask(encoder, train), ask(encoder, test)
    scores = {name: ridge_accuracy(asked[name], answered[name]) for name in asked}
    features = answered["object"][0]
    scores |= {"deviation": float(features.std(0).mean()), "effective_rank": effective_rank(features)}
    return {name: round(value, 4) for name, value in scores.items()}


def compare(world: Path, encoder: VJEPA2Encoder) -> dict[str, dict[str, float]]:
    """The encoder, its random initialisation, and the commonest answer."""
    split = read_split(world)
    train, test = ([read_take(world, take) for take in split[part]] for part in ("train", "val"))
    with seeded_weights(0, "encoder"):
        random = VJEPA2Encoder(encoder.spec).eval()
    answered = ask(random, test)
    commonest = {name: round(float(np.bincount(a).max() / len(a)), 4) for name, (_, a) in answered.items()}
    return {
        "trained": evaluate(encoder, train, test),
        "random": evaluate(random, train, test),
        "commonest answer": commonest,
    }


if __name__ == "__main__":
    chosen = sys.argv[2] if len(sys.argv) > 2 else "mini"
    print(json.dumps(compare(Path(sys.argv[1]), load_encoder(chosen)), indent=1))
