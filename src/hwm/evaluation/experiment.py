"""Arms of a comparison on the same segments: their scores, and what each gains over another at every horizon.

In: the outputs of finished runs, arm by arm, seed by seed and horizon by horizon. Out: for any arm or pair of arms a
`Difference`, which knows its interval; verdicts by every metric (`paired_comparison`); gains by class; what is taken
for what; whether an arm is as often right as it is sure. All are computed on the same resamples of whole takes, so that
what two arms have in common cancels. Pairs are matched by seed. With several tasks (verb, noun, action) the last one is
meant unless said otherwise.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hwm.errors import DataError
from hwm.evaluation.calibration import Reliability, confidence_and_hits, probabilities, reliability_of
from hwm.evaluation.class_gains import ClassGain, class_gains
from hwm.evaluation.differences import Difference, difference_of
from hwm.evaluation.outputs import RunOutputs, TaskOutputs, align
from hwm.evaluation.paired_comparison import Comparison, compare_outputs
from hwm.evaluation.resampled import MetricName, resampled_metric
from hwm.evaluation.resampled_calibration import (
    COVERAGES,
    CalibrationName,
    resampled_calibration,
    resampled_reliability,
    resampled_selective_accuracy,
)
from hwm.evaluation.skill_by_take import TakeErrors
from hwm.evaluation.statistics import NUM_RESAMPLES, RESAMPLING_SEED, draw_takes, number_takes

Kind = Literal["arm", "control", "oracle", "baseline"]
ScoreName = MetricName | CalibrationName


class Run(NamedTuple):
    """One finished stage 2, and the training of its world model."""

    seed: int
    outputs: Mapping[float, RunOutputs]
    """By horizon in seconds."""
    scenarios: Mapping[str, str]
    """Row of the annotation → scenario (recipe, activity), "" where the data set has none."""
    probe: Sequence[Mapping[str, float]] = ()
    """Lines of stage 2's `metrics.jsonl`."""
    stage1: Sequence[Mapping[str, float]] = ()
    """Lines of stage 1's."""
    validation: Mapping[str, float] = {}
    """Stage 1's scores of the world model; see `world_scores`."""
    skill_by_take: TakeErrors | None = None
    """What the skill among them is made of; None where stage 1 is older than this record."""
    asked_apart: bool = False
    """Whether the probe's loss asked the classes apart (`focal`), so that its probabilities are sigmoids."""
    forecast: Mapping[str, Mapping[str, Mapping[str, float]]] = {}
    """Stage 1's forecast of gaze (`gaze_forecast`): truth, `estimated` or `measured` → forecast → metric_k → value."""


class Arm(NamedTuple):
    """One arm, control, oracle or baseline: a run for each seed."""

    name: str
    title: str
    kind: Kind
    matched: str
    """Name of the arm that it differs from in one thing; "" for the first."""
    runs: Sequence[Run]
    is_trained: bool = True
    """False for what needs no training, and says the same in every seed."""


class Selective(NamedTuple):
    """Top-1 of an arm when only its surest segments are answered."""

    coverage: Sequence[float]
    accuracy: Sequence[Difference]


class Reliable(NamedTuple):
    """The bins of an arm's confidence, over all its seeds."""

    bins: Reliability
    low: Sequence[float] | None
    """Bounds of the accuracy of each bin; None where there is no interval."""
    high: Sequence[float] | None


class Confusion(NamedTuple):
    """What was said (columns) of what was true (rows) within one scenario, averaged over seeds."""

    scenario: str
    names: Sequence[str]
    counts: NDArray[np.float64]
    """[true, said]; the last column is any class that is not a row."""
    num_classes: int
    """Classes that occur in the scenario; the rows are the commonest of them."""


class _Known(NamedTuple):
    """The segments of a horizon whose class is known, and resamples of their takes."""

    rows: list[int]
    """Places among all segments."""
    takes: list[str]
    take_of_N: NDArray[np.int64]
    draws_RP: NDArray[np.int64]
    """The first draws every take once."""


class Experiment:
    """Arms that saw the same segments.

    Args:
        arms: all arms, in the order of the report.
        headline_sec: the horizon of tables and verdicts.
        bound: differences of Top-1 of this share or less do not matter.

    Raises:
        DataError: two runs did not see the same segments, or a seed stands twice in an arm.
    """

    def __init__(self, arms: Sequence[Arm], headline_sec: float, bound: float) -> None:
        self.arms = {arm.name: arm for arm in arms}
        self.headline_sec, self.bound = headline_sec, bound
        self.horizons = sorted({horizon for arm in arms for run in arm.runs for horizon in run.outputs})
        self._outputs: dict[tuple[str, int, float], RunOutputs] = {}
        for horizon in self.horizons:
            named = {(arm.name, run.seed, horizon): run for arm in arms for run in arm.runs if horizon in run.outputs}
            aligned = align([run.outputs[horizon] for run in named.values()])
            self._outputs |= dict(zip(named, aligned, strict=True))
        self._resampled: dict[tuple[str, int, float, ScoreName], NDArray[np.float64]] = {}
        self._known_at: dict[float, _Known] = {}
        self._verdicts: dict[tuple[str, str], tuple[Comparison, ...]] = {}
        _require_one_run_a_seed(arms)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks; the last one is meant where none is named."""
        return tuple(self._any(self.headline_sec).tasks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of the last task."""
        return _last_task(self._any(self.headline_sec)).classes.names

    @property
    def num_scored(self) -> int:
        """Segments of the headline whose class is known."""
        return len(self._known(self.headline_sec).rows)

    @property
    def num_takes(self) -> int:
        """Takes of these segments: the number of independent observations."""
        return self._known(self.headline_sec).draws_RP.shape[1]

    def seeds(self, *arms: str, horizon: float | None = None) -> list[int]:
        """Seeds that all these arms have at a horizon (by default the headline's)."""
        at = self.headline_sec if horizon is None else horizon
        of_arm = [{seed for name, seed, sec in self._outputs if (name, sec) == (arm, at)} for arm in arms]
        return sorted(set.intersection(*of_arm))

    def pairs(self) -> list[tuple[str, str]]:
        """Each arm with the arm that it is matched with, where both are there and share a seed."""
        pairs = [(arm.name, arm.matched) for arm in self.arms.values() if arm.matched in self.arms]
        return [pair for pair in pairs if self.seeds(*pair)]

    def score(self, arm: str, metric: ScoreName, horizon: float) -> Difference | None:
        """The metric itself (its difference from zero); None where the arm has no run at this horizon."""
        return self._difference([arm], metric, horizon)

    def gain(self, arm: str, other: str, metric: ScoreName, horizon: float) -> Difference | None:
        """The one's score less the other's; None where they share no seed at this horizon."""
        return self._difference([arm, other], metric, horizon)

    def verdicts(self, arm: str, other: str) -> tuple[Comparison, ...]:
        """The one against the other at the headline's horizon, by every task and metric."""
        if (arm, other) not in self._verdicts:
            rng = np.random.default_rng(RESAMPLING_SEED)
            seeds = self.seeds(arm, other)
            a, b = ([self._outputs[name, seed, self.headline_sec] for seed in seeds] for name in (arm, other))
            found = compare_outputs(a, b, rng, bounds={"top1": self.bound}, num_resamples=NUM_RESAMPLES)
            self._verdicts[arm, other] = found
        return self._verdicts[arm, other]

    def headline(self, arm: str, other: str) -> Comparison:
        """The verdict by Top-1 of the last task."""
        task = list(self._any(self.headline_sec).tasks)[-1]
        return next(v for v in self.verdicts(arm, other) if (v.task, v.metric) == (task, "top1"))

    def class_gains(self, arm: str, other: str) -> tuple[ClassGain, ...]:
        """Gain in recall of every class that occurs, the largest gain first."""
        seeds = self.seeds(arm, other)
        a, b = ([self._logits(name, seed, self.headline_sec) for seed in seeds] for name in (arm, other))
        rows, takes, *_ = self._known(self.headline_sec)
        labels_N = _last_task(self._any(self.headline_sec)).labels_S[rows]
        gains = class_gains(a, b, labels_N, takes, 1, np.random.default_rng(RESAMPLING_SEED), NUM_RESAMPLES)
        return tuple(sorted(gains, key=lambda gain: -gain.difference.value))

    def selective_accuracy(self, arm: str) -> Selective:
        """Top-1 at the headline's horizon against the share of the segments that is answered, the surest first."""
        labels_N, take_of_N, draws_RP, num_takes = self._drawn(self.headline_sec)
        of_seed = [
            resampled_selective_accuracy(logits_NC, labels_N, take_of_N, draws_RP, COVERAGES, asked_apart)
            for logits_NC, asked_apart in self._of_seeds(arm)
        ]
        shares_RKJ = np.stack(of_seed, axis=2)
        accuracy = [difference_of(shares_RKJ[0, k], shares_RKJ[1:, k], num_takes) for k in range(len(COVERAGES))]
        return Selective(COVERAGES, accuracy)

    def reliability(self, arm: str) -> Reliable:
        """Confidence against accuracy at the headline's horizon: the segments of all seeds in bins of equal width.

        Bounds are those of takes, of which some resamples may leave a bin empty; such resamples say nothing of it.
        """
        labels_N, take_of_N, draws_RP, num_takes = self._drawn(self.headline_sec)
        of_seed = [confidence_and_hits(logits_NC, labels_N, apart) for logits_NC, apart in self._of_seeds(arm)]
        confidence, right = (np.concatenate(values) for values in zip(*of_seed, strict=True))
        bins = reliability_of(confidence, right)
        if num_takes < 2:
            return Reliable(bins, None, None)
        share_RB = resampled_reliability(confidence, right, np.tile(take_of_N, len(of_seed)), draws_RP)
        seen = share_RB[1:, ~np.isnan(share_RB[0])]
        told = [
            difference_of(np.array([value]), column[~np.isnan(column)][:, None], num_takes).interval()
            for value, column in zip(bins.accuracy, seen.T, strict=True)
        ]
        low = [max(0.0, interval.low) for interval in told if interval.low is not None]
        high = [min(1.0, interval.high) for interval in told if interval.high is not None]
        return Reliable(bins, low, high)

    def guesses(self, arm: str, seed: int, row: str, count: int) -> dict[float, list[tuple[str, float]]]:
        """The best guesses about a segment with their probabilities, by horizon; horizons that lack it are left out."""
        told = {}
        for horizon in self.horizons:
            outputs = self._outputs.get((arm, seed, horizon))
            place = [] if outputs is None else [i for i, s in enumerate(outputs.segments) if s.row == row]
            if outputs is not None and place:
                chances = probabilities(_last_task(outputs).logits_SC[place[0]], self._asked_apart(arm, seed))
                best = chances.topk(min(count, len(self.class_names)))
                named = [self.class_names[label] for label in best.indices.tolist()]
                told[horizon] = list(zip(named, best.values.tolist(), strict=True))
        return told

    def confusions(self, arm: str, max_classes: int) -> list[Confusion]:
        """First guesses against the truth, one matrix a scenario, the largest scenario first.

        Args:
            arm: whose guesses.
            max_classes: a scenario of more classes has rows for its commonest ones alone.
        """
        rows = self._known(self.headline_sec).rows
        outputs = self._any(self.headline_sec)
        scenario_of = self.arms[arm].runs[0].scenarios
        scenarios = [scenario_of[outputs.segments[row].row] for row in rows]
        labels = _last_task(outputs).labels_S[rows].tolist()
        said = [self._logits(arm, seed, self.headline_sec).argmax(1).tolist() for seed in self.seeds(arm)]
        matrices = []
        for scenario in sorted(set(scenarios), key=lambda name: (-scenarios.count(name), name)):
            inside = [index for index, name in enumerate(scenarios) if name == scenario]
            occurring = Counter(labels[index] for index in inside)
            present = sorted(sorted(occurring, key=lambda label: (-occurring[label], label))[:max_classes])
            place = {label: row for row, label in enumerate(present)}
            counts = np.zeros((len(present), len(present) + 1))
            for guesses in said:
                for index in (index for index in inside if labels[index] in place):
                    counts[place[labels[index]], place.get(guesses[index], len(present))] += 1 / len(said)
            names = [self.class_names[label] for label in present]
            matrices.append(Confusion(scenario, names, counts, len(occurring)))
        return matrices

    def _difference(self, arms: Sequence[str], metric: ScoreName, horizon: float) -> Difference | None:
        """Score of the first arm, less that of the second if there is one, over the seeds they share."""
        seeds = self.seeds(*arms, horizon=horizon)
        if not seeds:
            return None
        of_arm = [np.stack([self._on_draws(arm, seed, horizon, metric) for seed in seeds], axis=1) for arm in arms]
        both_RJ = of_arm[0] if len(of_arm) == 1 else of_arm[0] - of_arm[1]
        return difference_of(both_RJ[0], both_RJ[1:], self._known(horizon).draws_RP.shape[1])

    def _on_draws(self, arm: str, seed: int, horizon: float, metric: ScoreName) -> NDArray[np.float64]:
        """The metric on all segments, then on each resample; the resamples are the same for all arms."""
        key = (arm, seed, horizon, metric)
        if key not in self._resampled:
            labels_N, take_of_N, draws_RP, _ = self._drawn(horizon)
            logits_NC = self._logits(arm, seed, horizon)
            if metric == "ece" or metric == "brier" or metric == "surest_half":
                values_R = resampled_calibration(
                    metric, logits_NC, labels_N, take_of_N, draws_RP, self._asked_apart(arm, seed)
                )
            else:
                values_R = resampled_metric(metric, logits_NC, labels_N, take_of_N, draws_RP)
            self._resampled[key] = values_R
        return self._resampled[key]

    def _drawn(self, horizon: float) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64], int]:
        """Labels [N] and takes [N] of the scored segments, all takes once and then each resample, number of takes."""
        known = self._known(horizon)
        labels_N = _last_task(self._any(horizon)).labels_S[known.rows]
        return labels_N, known.take_of_N, known.draws_RP, known.draws_RP.shape[1]

    def _of_seeds(self, arm: str) -> list[tuple[Tensor, bool]]:
        """Logits [N, C] of each seed at the headline's horizon, and whether its classes were asked apart."""
        return [(self._logits(arm, s, self.headline_sec), self._asked_apart(arm, s)) for s in self.seeds(arm)]

    def _asked_apart(self, arm: str, seed: int) -> bool:
        return next(run.asked_apart for run in self.arms[arm].runs if run.seed == seed)

    def _logits(self, arm: str, seed: int, horizon: float) -> Tensor:
        """Logits [N, C] of the last task, on the segments whose class is known."""
        return _last_task(self._outputs[arm, seed, horizon]).logits_SC[self._known(horizon).rows]

    def _known(self, horizon: float) -> _Known:
        if horizon not in self._known_at:
            outputs = self._any(horizon)
            rows = (_last_task(outputs).labels_S >= 0).nonzero().flatten().tolist()
            if not rows:
                raise DataError("there is nothing to compare", expected="a segment whose class is known", found="none")
            of_all = outputs.takes
            takes = [of_all[row] for row in rows]
            take_of_N, num_takes = number_takes(takes, len(rows))
            draws_RP = draw_takes(num_takes, NUM_RESAMPLES, np.random.default_rng(RESAMPLING_SEED))
            draws_RP = np.vstack([np.ones((1, num_takes), dtype=draws_RP.dtype), draws_RP])
            self._known_at[horizon] = _Known(rows, takes, take_of_N, draws_RP)
        return self._known_at[horizon]

    def _any(self, horizon: float) -> RunOutputs:
        """The outputs of some run at a horizon: all have the same segments."""
        return next(outputs for (_, _, sec), outputs in self._outputs.items() if sec == horizon)


def _last_task(outputs: RunOutputs) -> TaskOutputs:
    return list(outputs.tasks.values())[-1]


def _require_one_run_a_seed(arms: Sequence[Arm]) -> None:
    for arm in arms:
        seeds = [run.seed for run in arm.runs]
        if len(set(seeds)) < len(seeds):
            raise DataError(
                f"two runs of the arm {arm.title} have one seed",
                expected="one run a seed",
                found=", ".join(map(str, sorted(seeds))),
                fix="give the runs of one comparison only",
            )
