"""Two models on the same segments over paired seeds: every metric of every task, with its interval, tests and verdict.

In: the aligned `RunOutputs` of model a and of model b, one run a seed. Out: one `Comparison` a task and metric. All of
them share one set of resamples; Holm's correction goes over the whole family.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.differences import Difference, resampled_model
from hwm.evaluation.metrics import top_k_hits
from hwm.evaluation.outputs import RunOutputs, TaskOutputs, align
from hwm.evaluation.resampled import METRICS, MetricName
from hwm.evaluation.statistics import draw_takes, number_takes
from hwm.evaluation.tests_of_difference import SignTest, holm, permutation_test, sign_test
from hwm.evaluation.verdicts import Decision, decide

BOUNDS: Mapping[MetricName, float] = MappingProxyType({"top1": 0.02})
"""Differences that do not matter, by metric: two points of Top-1. A metric without a bound claims no equivalence."""


class Comparison(NamedTuple):
    """Model a against model b by one metric of one task."""

    task: str
    metric: MetricName
    value_a: float
    """Mean over seeds."""
    value_b: float
    difference: Difference
    adjusted_p: float | None
    """After Holm over the family; None where there is no p value."""
    bound: float | None
    decision: Decision
    sign_test: SignTest | None
    """Over takes, of the hits; None for metrics that are no mean of hits."""
    permutation_p: float | None
    """Models swapped take by take; None like the sign test."""
    num_segments: int
    """Segments whose class is known in training."""


def compare_outputs(
    runs_a: Sequence[RunOutputs],
    runs_b: Sequence[RunOutputs],
    rng: np.random.Generator,
    metrics: Sequence[MetricName] = METRICS,
    bounds: Mapping[MetricName, float] = BOUNDS,
    num_resamples: int = 2000,
) -> tuple[Comparison, ...]:
    """Compares two models by every metric of every task that has a known label.

    Args:
        runs_a: outputs of model a, one run a seed.
        runs_b: outputs of model b, the same seeds in the same order.
        rng: source of resamples and permutations.
        metrics: names of `resampled.METRICS`.
        bounds: metric → difference that does not matter, a fraction.
        num_resamples: resamples of the takes.

    Raises:
        DataError: the runs are not of the same segments and classes, or not the same seeds; no label is known.
        RunError: a logit is not finite.
    """
    aligned = align([*runs_a, *runs_b])
    runs_a, runs_b = aligned[: len(runs_a)], aligned[len(runs_a) :]
    found: list[_Measured] = []
    for name, task in aligned[0].tasks.items():
        if (task.labels_S >= 0).any():
            of_task = [run.tasks[name] for run in runs_a], [run.tasks[name] for run in runs_b]
            found += _compare_task(name, *of_task, aligned[0].takes, rng, metrics, num_resamples)
    if not found:
        raise DataError("there is nothing to compare", expected="a segment whose class is known", found="none")
    return _with_verdicts(found, bounds)


class _Measured(NamedTuple):
    task: str
    metric: MetricName
    value_a: float
    value_b: float
    difference: Difference
    sign_test: SignTest | None
    permutation_p: float | None
    num_segments: int


def _compare_task(
    name: str, tasks_a: Sequence[TaskOutputs], tasks_b: Sequence[TaskOutputs], takes: Sequence[str],
    rng: np.random.Generator, metrics: Sequence[MetricName], num_resamples: int,
) -> list[_Measured]:  # fmt: skip
    known_S = tasks_a[0].labels_S >= 0
    labels_N = tasks_a[0].labels_S[known_S]
    takes = [take for take, known in zip(takes, known_S.tolist(), strict=True) if known]
    take_of_N, num_takes = number_takes(takes, num_segments=len(labels_N))
    draws_RP = draw_takes(num_takes, num_resamples, rng)
    logits_a, logits_b = ([task.logits_SC[known_S] for task in tasks] for tasks in (tasks_a, tasks_b))
    found = []
    for metric in metrics:
        a, b = (resampled_model(metric, logits, labels_N, take_of_N, draws_RP) for logits in (logits_a, logits_b))
        signs, permuted = None, None
        if metric in ("top1", "top5"):
            gain_N = _hits(logits_a, labels_N, metric) - _hits(logits_b, labels_N, metric)
            signs, permuted = sign_test(gain_N, takes), permutation_test(gain_N, takes, rng)
        values = float(a.value_J.mean()), float(b.value_J.mean())
        found.append(_Measured(name, metric, *values, a.minus(b), signs, permuted, len(labels_N)))
    return found


def _hits(logits: Sequence[Tensor], labels_N: Tensor, metric: MetricName) -> np.ndarray:
    """Share of seeds that hit each segment."""
    hits = [top_k_hits(logits_NC, labels_N, int(metric[3:])).double() for logits_NC in logits]
    return torch.stack(hits).mean(dim=0).numpy()


def _with_verdicts(found: Sequence[_Measured], bounds: Mapping[MetricName, float]) -> tuple[Comparison, ...]:
    p_values = [item.difference.p_value for item in found]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    told = []
    for item, p_value in zip(found, p_values, strict=True):
        adjusted_p = None if p_value is None else next(adjusted)
        bound = bounds.get(item.metric)
        decision = decide(item.difference, bound, adjusted_p)
        told.append(Comparison(**item._asdict(), adjusted_p=adjusted_p, bound=bound, decision=decision))
    return tuple(told)
