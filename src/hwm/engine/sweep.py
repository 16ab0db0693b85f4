"""Many probes (learning rate × weight decay) trained in one pass over stored features; none ever sees validation.

Features of the training segments are split by take: most train the probes, a held-out part chooses the winner (lowest
cross-entropy at the end). Each probe has its own AdamW and schedule; all start from the same weights and see the same
batches, so a sweep equals its probes trained one by one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hwm.config import ProbeConfig
from hwm.engine.optim import adamw, raise_if_not_finite, set_lr, warmup_cosine
from hwm.engine.runtime import rng_for, seeded_weights
from hwm.errors import DataError
from hwm.models.step_probe import StepProbe, StepProbeSpec


class ProbeScore(NamedTuple):
    """One probe of the sweep on the held-out takes."""

    lr: float
    weight_decay: float
    train_loss: float
    holdout_loss: float
    holdout_top1: float


class SweepResult(NamedTuple):
    """The winning probe, all scores, and the training loss of the winner at each epoch."""

    probe: StepProbe
    winner: int
    scores: tuple[ProbeScore, ...]
    loss_curve: tuple[float, ...]


def split_by_take(takes: Sequence[str], holdout_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Bool [S], true for samples of the held-out takes: whole takes, at least one on each side.

    Raises:
        DataError: fewer than two takes.
    """
    names = sorted(set(takes))
    if len(names) < 2:
        raise DataError("the probe needs training segments of two takes or more", found=f"takes: {names}")
    num_held = min(max(1, round(len(names) * holdout_fraction)), len(names) - 1)
    held = {names[i] for i in rng.permutation(len(names))[:num_held]}
    return np.array([take in held for take in takes])


class ProbeData(NamedTuple):
    """Stored features of S samples in V views (horizons): row v·S + s is view v of sample s."""

    tokens_RTND: np.ndarray
    valid_RT: np.ndarray
    gaze_known_RT: np.ndarray
    labels_S: np.ndarray
    takes_S: tuple[str, ...]

    @property
    def num_views(self) -> int:
        """V."""
        return self.tokens_RTND.shape[0] // len(self.labels_S)

    def batch(self, samples: np.ndarray, view: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features [B,T,N,D] float32, validity and gaze known [B,T] and labels [B] of some samples in one view."""
        rows = view * len(self.labels_S) + samples
        tokens = torch.from_numpy(np.ascontiguousarray(self.tokens_RTND[rows])).to(device).float()
        valid, known = (torch.from_numpy(mask[rows]).to(device) for mask in (self.valid_RT, self.gaze_known_RT))
        return tokens, valid, known, torch.from_numpy(self.labels_S[samples]).to(device)


def train_sweep(
    data: ProbeData,
    num_classes: int,
    config: ProbeConfig,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, float], None],
) -> SweepResult:
    """Train every probe of the sweep.

    Args:
        data: features of the training segments.
        num_classes: C.
        config: the sweep.
        seed: seed of initial weights, held-out takes and batch order.
        device: where to train.
        on_epoch: called with the number of epochs done and the mean training loss of all probes.

    Raises:
        RunError: a loss or gradient is not finite (before the step that would spread it).
    """
    held_S = split_by_take(data.takes_S, config.holdout_fraction, rng_for(seed, "holdout"))
    train, holdout = np.flatnonzero(~held_S), np.flatnonzero(held_S)
    slots, tokens, width = data.tokens_RTND.shape[1:]
    spec = StepProbeSpec(
        width, slots, tokens, num_classes, config.num_heads, config.depth, config.num_queries,
        config.gaze_point != "none",
    )  # fmt: skip
    settings = [(lr, decay) for lr in config.lrs for decay in config.weight_decays]
    probes = []
    for _ in settings:
        with seeded_weights(seed, "probe"):
            probes.append(StepProbe(spec).to(device))
    optimizers = [adamw(probe, lr, decay) for probe, (lr, decay) in zip(probes, settings, strict=True)]

    steps_per_epoch = -(-len(train) // config.batch_size)
    num_steps, warmup = steps_per_epoch * config.num_epochs, round(steps_per_epoch * config.warmup_epochs)
    curves = np.zeros((config.num_epochs, len(probes)))
    step = 0
    for epoch in range(config.num_epochs):
        order = rng_for(seed, "order", epoch).permutation(train)
        for samples in np.array_split(order, steps_per_epoch):
            *features, labels = data.batch(samples, epoch % data.num_views, device)
            for index, (probe, optimizer) in enumerate(zip(probes, optimizers, strict=True)):
                set_lr(optimizer, settings[index][0] * warmup_cosine(step, warmup, num_steps))
                loss = F.cross_entropy(probe(*features), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                raise_if_not_finite(probe, loss, f"probe {index}, step {step}")
                optimizer.step()
                curves[epoch, index] += loss.item() * len(samples) / len(train)
            step += 1
        on_epoch(epoch + 1, float(curves[epoch].mean()))
    scores = []
    for index, (probe, (lr, decay)) in enumerate(zip(probes, settings, strict=True)):
        logits = torch.cat([logits_of(probe, data, holdout, view, device) for view in range(data.num_views)])
        labels = torch.from_numpy(np.tile(data.labels_S[holdout], data.num_views))
        loss = F.cross_entropy(logits, labels).item()
        top1 = (logits.argmax(1) == labels).float().mean().item()
        scores.append(ProbeScore(lr, decay, float(curves[-1, index]), loss, top1))
    winner = min(range(len(scores)), key=lambda index: scores[index].holdout_loss)
    return SweepResult(probes[winner].eval(), winner, tuple(scores), tuple(curves[:, winner]))


@torch.inference_mode()
def logits_of(
    probe: StepProbe, data: ProbeData, samples: np.ndarray, view: int, device: torch.device, batch_size: int = 64
) -> Tensor:
    """Logits [len(samples), C] of one view, on the CPU."""
    probe.eval()
    parts = [samples[first : first + batch_size] for first in range(0, len(samples), batch_size)]
    return torch.cat([probe(*data.batch(part, view, device)[:3]).cpu() for part in parts])
