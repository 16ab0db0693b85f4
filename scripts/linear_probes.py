"""What can be read off frozen encoder features of the toy world by a linear map: which object, where, where the head points.

    python scripts/linear_probes.py WORLD [ENCODER ...]      (ENCODER: `mini`, a folder, or `random`)

Frames of the exo view at the grid's 4 steps a second, each encoded alone; ridge regression on takes that do not share a
person with the test takes. Three questions, each a share of right answers (chance is the share of the majority class):

    object    which of 8 kinds stands at a patch             features of that patch
    slot      on which of 8 places the milk carton/… stands  features of all patches, one regression a kind, averaged
    gaze      at which of 8 places the person looks          features of all patches
    hand      which of 8 places the busy hand works at       features of all patches
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from hwm.data.toyworld import load_truth
from hwm.data.transforms import centre_square, normalise
from hwm.data.video import VideoReader, probe_video
from hwm.losses import effective_rank, layer_normed
from hwm.models.vjepa2 import VJEPA2Encoder

FPS = 4.0


def exo_point_in_square(point: np.ndarray, width: int, height: int) -> np.ndarray:
    """Points 0..1 of the wide picture → 0..1 of its central square."""
    out = np.array(point, dtype=float)
    out[..., 0] = (out[..., 0] * width - (width - height) / 2) / height
    return out


def load_frames(world: Path, takes: list[str], resolution: int) -> list[dict]:
    """Frames and answers of each take."""
    loaded = []
    for take in takes:
        path = world / "takes" / take / "frame_aligned_videos" / "cam01.mp4"
        info, truth = probe_video(path), load_truth(world, take)
        with VideoReader(path) as reader:
            clips = list(reader.read_grid(FPS, [(resolution, resolution)], centre_square(info)))
        times = np.concatenate([clip.times_sec for clip in clips])
        frame = np.clip(np.searchsorted(truth.times_sec, times + 1e-6) - 1, 0, None)
        slots, kinds = np.array(truth.object_slots), np.array(truth.object_kinds)
        attended, step = truth.object_index[frame], truth.step_index[frame]
        loaded.append(
            {
                "pixels": np.concatenate([clip.views[0] for clip in clips]),
                "objects": exo_point_in_square(truth.objects_exo[frame], info.width, info.height),
                "kinds": kinds,
                "slots": slots,
                "gaze": np.where((attended >= 0) & truth.turned[frame], slots[attended], -1),
                "hand": np.where(step >= 0, slots[step], -1),
            }
        )
    return loaded


@torch.no_grad()
def encode(encoder: VJEPA2Encoder, takes: list[dict]) -> list[torch.Tensor]:
    """Layer-normed features [S, N, D] of each take."""
    features = []
    for take in takes:
        frames = normalise(torch.from_numpy(take["pixels"]))
        features.append(torch.cat([layer_normed(encoder.encode_frames(part)) for part in frames.split(64)]))
    return features


def ridge_accuracy(train: tuple[torch.Tensor, np.ndarray], test: tuple[torch.Tensor, np.ndarray]) -> float:
    """Share of right answers of a one-hot ridge regression; the strength is chosen on the last fifth of `train`."""
    classes = int(max(train[1].max(), test[1].max())) + 1
    def fit(x: torch.Tensor, y: np.ndarray, strength: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = x.mean(0)
        x = x - mean
        target = torch.eye(classes)[torch.from_numpy(y)]
        bias = target.mean(0)
        if x.shape[0] < x.shape[1]:
            gram = x @ x.T
            scale = strength * gram.diagonal().mean()
            weight = x.T @ torch.linalg.solve(gram + scale * torch.eye(len(x)), target - bias)
        else:
            gram = x.T @ x
            scale = strength * gram.diagonal().mean()
            weight = torch.linalg.solve(gram + scale * torch.eye(x.shape[1]), x.T @ (target - bias))
        return mean, weight, bias
    def accuracy(model: tuple[torch.Tensor, torch.Tensor, torch.Tensor], x: torch.Tensor, y: np.ndarray) -> float:
        mean, weight, bias = model
        return float((((x - mean) @ weight + bias).argmax(1).numpy() == y).mean())
    cut = len(train[1]) * 4 // 5
    strengths = (1e-3, 1e-2, 1e-1, 1.0)
    inner = [accuracy(fit(train[0][:cut], train[1][:cut], s), train[0][cut:], train[1][cut:]) for s in strengths]
    return accuracy(fit(*train, strengths[int(np.argmax(inner))]), *test)


def questions(takes: list[dict], features: list[torch.Tensor], stride: int = 3) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Features and answers of each question."""
    kinds = sorted({kind for take in takes for kind in take["kinds"]} | {"mug", "carton", "kettle", "jar", "bread", "pan", "bowl", "bottle"})
    out: dict[str, list] = {"object": [], "gaze": [], "hand": []}
    for take, z in zip(takes, features, strict=True):
        side = round(z.shape[1] ** 0.5)
        for s in range(0, len(z), stride):
            for o, (x, y) in enumerate(take["objects"][s]):
                col, row = int(x * side), int(y * side)
                if s % (4 * stride) == 0 and 0 <= col < side and 0 <= row < side:
                    out["object"].append((z[s, row * side + col], kinds.index(take["kinds"][o])))
            if take["gaze"][s] >= 0:
                out["gaze"].append((z[s].flatten(), take["gaze"][s]))
            if take["hand"][s] >= 0:
                out["hand"].append((z[s].flatten(), take["hand"][s]))
    return {name: (torch.stack([x for x, _ in rows]), np.array([y for _, y in rows])) for name, rows in out.items()}


def evaluate(encoder: VJEPA2Encoder, train: list[dict], test: list[dict]) -> dict[str, float]:
    """Accuracy of each question, and the two collapse monitors."""
    z_train, z_test = encode(encoder, train), encode(encoder, test)
    asked, answered = questions(train, z_train), questions(test, z_test)
    scores = {name: ridge_accuracy(asked[name], answered[name]) for name in asked}
    flat = torch.cat([z[::10].flatten(0, 1) for z in z_test])
    scores["deviation"] = float(flat.std(0).mean())
    scores["effective_rank"] = effective_rank(flat[:4000])
    return {name: round(value, 4) for name, value in scores.items()}
