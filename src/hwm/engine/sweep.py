"""Many probes (learning rate × weight decay) trained in one pass over stored features; none ever sees validation.

Features of the training segments are split by take: most train the probes, a held-out part chooses the winner (lowest
loss at the end). A probe has one head a task; its loss is the sum over tasks of the mean loss of the labels that are
known. Each probe has its own AdamW and schedule; all start from the same weights and see the same batches and the same
dropout, so a sweep equals its probes trained one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hwm.config import ProbeConfig
from hwm.data.segments import UNKNOWN
from hwm.engine.optim import adamw, raise_if_not_finite, set_lr, warmup_cosine
from hwm.engine.runtime import rng_for, seeded_draws, seeded_weights
from hwm.errors import DataError, RunError
from hwm.evaluation.metrics import sigmoid_focal_loss_sum
from hwm.models.step_probe import StepProbe, StepProbeSpec


class ProbeScore(NamedTuple):
    """One probe of the sweep on the held-out takes."""

    lr: float
    weight_decay: float
    train_loss: float
    holdout_loss: float
    holdout_top1: float
    """Of the next segment, mean over tasks."""


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
    labels: Mapping[str, np.ndarray]
    """Task → labels [S, Z] int64 of the segment and of the Z - 1 that follow it; below 0 where not known."""
    takes_S: tuple[str, ...]

    @property
    def num_views(self) -> int:
        """V."""
        return self.tokens_RTND.shape[0] // len(self.takes_S)

    def batch(self, samples: np.ndarray, view: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B,T,N,D] float32, and validity and gaze known [B,T], of some samples in one view."""
        rows = view * len(self.takes_S) + samples
        tokens = torch.from_numpy(np.ascontiguousarray(self.tokens_RTND[rows])).to(device).float()
        valid, known = (torch.from_numpy(mask[rows]).to(device) for mask in (self.valid_RT, self.gaze_known_RT))
        return tokens, valid, known

    def labels_of(self, samples: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Labels [B, Z] of each task."""
        return {task: torch.from_numpy(labels_SZ[samples]).to(device) for task, labels_SZ in self.labels.items()}


LossKind = Literal["cross-entropy", "focal"]


def segment_loss(kind: LossKind, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean loss of a segment; the focal loss of a segment is summed over the classes, as upstream."""
    if kind == "focal":
        return sigmoid_focal_loss_sum(logits_BC, labels_B) / len(labels_B)
    return F.cross_entropy(logits_BC, labels_B)


def train_sweep(
    data: ProbeData,
    num_classes: Mapping[str, int],
    config: ProbeConfig,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, float], None],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_step: Callable[[], None] = lambda: None,
) -> SweepResult:
    """Train every probe of the sweep.

    Args:
        data: features of the training segments.
        num_classes: C of each task of `data.labels`.
        config: the sweep.
        seed: seed of initial weights, held-out takes and batch order.
        device: where to train.
        on_epoch: called with the number of epochs done and the mean training loss of all probes.
        autocast: gives the context of a forward pass in training, `Fabric.autocast` for a mixed precision; scores are
            float32 all the same.
        on_step: called after each step of all probes; what it raises ends the training.

    Raises:
        RunError: a loss or gradient is not finite (before the step that would spread it).
    """
    held_S = split_by_take(data.takes_S, config.holdout_fraction, rng_for(seed, "holdout"))
    train, holdout = np.flatnonzero(~held_S), np.flatnonzero(held_S)
    spec = probe_spec(data, num_classes, config)
    settings = [(lr, decay) for lr in config.lrs for decay in config.weight_decays]
    probes = []
    for _ in settings:
        with seeded_weights(seed, "probe"):
            probes.append(StepProbe(spec).to(device))
    optimizers = [adamw(probe, lr, decay, fused=True) for probe, (lr, decay) in zip(probes, settings, strict=True)]

    steps_per_epoch = -(-len(train) // config.batch_size)
    num_steps, warmup = steps_per_epoch * config.num_epochs, round(steps_per_epoch * config.warmup_epochs)
    curves = np.zeros((config.num_epochs, len(probes)))
    step = 0
    for epoch in range(config.num_epochs):
        order = rng_for(seed, "order", epoch).permutation(train)
        for samples in np.array_split(order, steps_per_epoch):
            features = data.batch(samples, epoch % data.num_views, device)
            labels = data.labels_of(samples, device)
            for index, (probe, optimizer) in enumerate(zip(probes, optimizers, strict=True)):
                set_lr(optimizer, settings[index][0] * warmup_cosine(step, warmup, num_steps))
                with autocast(), seeded_draws(device, seed, "dropout", step):
                    loss = loss_of_known(config.loss, probe(*features), labels)
                loss.backward()
                raise_if_not_finite(probe, loss, f"probe {index}, step {step}")
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)  # here, so that one probe's gradients exist at a time
                curves[epoch, index] += loss.item() * len(samples) / len(train)
            step += 1
            on_step()
        on_epoch(epoch + 1, float(curves[epoch].mean()))
    labels = data.labels_of(np.tile(holdout, data.num_views), torch.device("cpu"))
    scores = []
    for index, (probe, (lr, decay)) in enumerate(zip(probes, settings, strict=True)):
        views = [logits_of(probe, data, holdout, view, device) for view in range(data.num_views)]
        logits = {task: torch.cat([view[task] for view in views]) for task in num_classes}
        right = [(logits[task][:, 0].argmax(1) == labels[task][:, 0]).float().mean().item() for task in num_classes]
        loss = loss_of_known(config.loss, logits, labels).item()
        scores.append(ProbeScore(lr, decay, float(curves[-1, index]), loss, sum(right) / len(right)))
    winner = min(range(len(scores)), key=lambda index: scores[index].holdout_loss)
    return SweepResult(probes[winner].eval(), winner, tuple(scores), tuple(curves[:, winner]))


def probe_spec(data: ProbeData, num_classes: Mapping[str, int], config: ProbeConfig) -> StepProbeSpec:
    """Sizes of the probe that reads these features and answers these tasks; one query a task unless told otherwise."""
    slots, tokens, width = data.tokens_RTND.shape[1:]
    heads = {task: (data.labels[task].shape[1], count) for task, count in num_classes.items()}
    num_queries = len(heads) if config.num_queries is None else config.num_queries
    has_point = config.gaze_point != "none"
    return StepProbeSpec(
        width,
        slots,
        tokens,
        heads,
        config.num_heads,
        config.depth,
        num_queries,
        has_point,
        config.positions,
        config.pooler,
    )


def loss_of_known(kind: LossKind, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Sum over tasks of the mean loss over known labels.

    Args:
        kind: see `segment_loss`.
        logits: task → [B, Z, C].
        labels: task → [B, Z], below 0 where not known; a task without any known label adds nothing.

    Raises:
        RunError: no label at all is known.
    """
    losses = []
    for task, logits_BZC in logits.items():
        known_BZ = labels[task] > UNKNOWN
        if known_BZ.any():
            losses.append(segment_loss(kind, logits_BZC[known_BZ], labels[task][known_BZ]))
    if not losses:
        raise RunError("a batch has no known label", fix="please report this as a bug")
    return torch.stack(losses).sum()


@torch.inference_mode()
def logits_of(
    probe: StepProbe, data: ProbeData, samples: np.ndarray, view: int, device: torch.device, batch_size: int = 64
) -> dict[str, Tensor]:
    """Logits [len(samples), Z, C] of each task in one view, on the CPU."""
    probe.eval()
    parts = [samples[first : first + batch_size] for first in range(0, len(samples), batch_size)]
    said = [probe(*data.batch(part, view, device)) for part in parts]
    return {task: torch.cat([part[task].cpu() for part in said]) for task in data.labels}
