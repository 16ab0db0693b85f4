"""Simulated outputs of two models on the same segments, whose true difference is known (see interval_coverage.py).

A segment is right where a Gaussian is above a threshold. Its variance of 1 is shared out: the difficulty, the same for
both models (0.4, half of it the take's, half the segment's); the seed, apart for each model; of the rest the take has
`correlation`, apart for each model, a tenth of it anew for each seed; and what is left is noise, half of it the model's
and half the seed's. So the true difference over all takes and seeds is exact.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

SHARED = 0.4
BASE = 0.35


class World(NamedTuple):
    """What is simulated."""

    num_takes: int
    correlation: float
    """Share of a model's own variance that belongs to the take."""
    num_seeds: int
    seed_points: float
    """Standard deviation of each model's Top-1 over seeds, in points."""
    gain: float = 0.03
    """True difference, a fraction."""
    segments: tuple[int, int] = (8, 27)
    """Fewest and most segments of a take."""


class Segments(NamedTuple):
    """Hits of model a and of model b, J seeds each, and the take of each segment; several trials may follow."""

    a_NJ: NDArray[np.bool_]
    b_NJ: NDArray[np.bool_]
    take_of_N: NDArray[np.int64]
    size_P: NDArray[np.int64]
    """Segments of each take."""


def simulate_segments(world: World, rng: np.random.Generator, num_trials: int = 1) -> Segments:
    """Trials one after the other: the takes of trial t are numbered from t · num_takes."""
    size_P = rng.integers(world.segments[0], world.segments[1] + 1, num_trials * world.num_takes)
    take_of_N = np.repeat(np.arange(len(size_P)), size_P)
    threshold_M = stats.norm.ppf([BASE + world.gain, BASE])
    of_seed = (world.seed_points / 100 / float(stats.norm.pdf(threshold_M.mean()))) ** 2
    own = 1 - SHARED - of_seed
    of_take, of_both = 0.9 * world.correlation * own, 0.1 * world.correlation * own
    noise = own - of_take - of_both

    def normal(variance: float, *shape: int) -> NDArray[np.float32]:
        return np.float32(np.sqrt(variance)) * rng.standard_normal(shape, dtype=np.float32)

    num_segments, num_seeds = len(take_of_N), world.num_seeds
    difficulty_N = normal(SHARED / 2, len(size_P))[take_of_N] + normal(SHARED / 2, num_segments)
    hits = []
    for threshold in threshold_M:
        skill_N = difficulty_N + normal(of_take, len(size_P))[take_of_N] + normal(noise / 2, num_segments)
        anew_PJ = normal(of_both, len(size_P), num_seeds)
        anew_PJ += np.repeat(normal(of_seed, num_trials, num_seeds), world.num_takes, axis=0)
        hits.append(skill_N[:, None] + anew_PJ[take_of_N] + normal(noise / 2, num_segments, num_seeds) > -threshold)
    return Segments(hits[0], hits[1], take_of_N, size_P)


class Scored(NamedTuple):
    """Logits of two models, J seeds each, and the labels and takes of the segments."""

    logits_a: list[torch.Tensor]
    logits_b: list[torch.Tensor]
    labels_N: torch.Tensor
    takes: list[str]


def as_logits(segments: Segments) -> Scored:
    """The same hits as logits of two classes, the first of which is always true."""
    of_model = [
        [torch.from_numpy(np.stack([hits_N, ~hits_N], axis=1).astype(np.float32)) for hits_N in hits_NJ.T]
        for hits_NJ in (segments.a_NJ, segments.b_NJ)
    ]
    labels_N = torch.zeros(len(segments.take_of_N), dtype=torch.int64)
    return Scored(of_model[0], of_model[1], labels_N, [f"take {take}" for take in segments.take_of_N.tolist()])


def simulate_logits(
    num_takes: int, rng: np.random.Generator, strengths: tuple[float, float] = (1.8, 1.5), num_classes: int = 20
) -> Scored:
    """Logits of two models, three seeds each. Classes have frequencies 1/rank; two kinds of take hold them differently.

    `strengths` is how clearly each model sees the true class; it varies by take and seed. With equal strengths no
    metric differs.
    """
    take_of_N = np.repeat(np.arange(num_takes), rng.integers(8, 28, num_takes))
    frequency_C = 1 / np.arange(1, num_classes + 1)
    kinds = np.stack([frequency_C, np.roll(frequency_C, 3)])
    upto_KC = np.cumsum(kinds / kinds.sum(axis=1, keepdims=True), axis=1)
    upto_NC = upto_KC[rng.integers(0, 2, num_takes)[take_of_N]]
    labels_N = np.minimum((rng.random(len(take_of_N))[:, None] > upto_NC).sum(axis=1), num_classes - 1)
    truth_NC = np.eye(num_classes, dtype=np.float32)[labels_N]
    logits = []
    for strength in strengths:
        shared_NC = np.float32(0.6) * rng.standard_normal(truth_NC.shape, dtype=np.float32)
        clarity_P = strength + rng.normal(0, 0.4, num_takes)
        of_seed = []
        for _ in range(3):
            clarity_N = (clarity_P[take_of_N] + rng.normal(0, 0.05)).astype(np.float32)
            noise_NC = shared_NC + np.float32(0.8) * rng.standard_normal(truth_NC.shape, dtype=np.float32)
            of_seed.append(torch.from_numpy(clarity_N[:, None] * truth_NC + noise_NC))
        logits.append(of_seed)
    return Scored(logits[0], logits[1], torch.from_numpy(labels_N), [f"take {take}" for take in take_of_N.tolist()])
