"""The section of the comparison's report that asks whether the arms are right as often as they are sure."""

from collections.abc import Sequence

from hwm.evaluation.calibration_figures import reliability_diagram, selective_accuracy_curves
from hwm.evaluation.compare_sections import highest, pair_title, share_interval
from hwm.evaluation.drawing import Line
from hwm.evaluation.experiment import Arm, Experiment, ScoreName
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import Cell, Column, Row, Table
from hwm.evaluation.resampled_calibration import CALIBRATIONS
from hwm.evaluation.statistics import Interval

_SCORES: tuple[ScoreName, ...] = ("ece", "brier", "top1", "surest_half")


def calibration_section(report: Report, experiment: Experiment, mark: str) -> None:
    """Table of scores with intervals, differences of matched pairs, reliability and selective accuracy."""
    report.section(
        f"How sure, how right{mark}",
        "A model that says 80 % should be right in 80 % of these segments. Cross-entropy asks a probe for that on the "
        "training takes, the focal loss does not.",
    )
    report.table(_scores_table(experiment))
    if pairs := experiment.pairs():
        report.table(_pairs_table(experiment, pairs))
    shown = [arm for arm in experiment.arms.values() if arm.kind == "arm"] or list(experiment.arms.values())[:1]
    reliable = {arm.title: experiment.reliability(arm.name) for arm in shown}
    bounds = {label: (of.low, of.high) for label, of in reliable.items() if of.low is not None and of.high is not None}
    title = f"Reliability: is it right as often as it is sure?{mark}"
    report.figure(
        reliability_diagram("reliability", {label: of.bins for label, of in reliable.items()}, bounds, title),
        "On the line a model is right as often as it is sure; below it, less often. Segments of all seeds; bands are "
        "95 % intervals over takes.",
    )
    lines = [_selective_line(experiment, arm) for arm in shown]
    report.figure(
        selective_accuracy_curves("selective-accuracy", lines, f"Top-1 when only the surest are answered{mark}"),
        "A model that knows when it does not know rises to the left. Bands: 95 % intervals over takes and seeds.",
    )


def _scores_table(experiment: Experiment) -> Table:
    columns = [
        Column("Model"), Column("Calibration error (ECE)", "share", best="lowest"),
        Column("Brier", digits=3, kind="number", best="lowest"), Column("Top-1 of all", "share", best="highest"),
        Column("of the surest half", "share", best="highest"),
    ]  # fmt: skip
    rows = []
    for arm in experiment.arms.values():
        scores = [experiment.score(arm.name, name, experiment.headline_sec) for name in _SCORES]
        told = zip(scores, _SCORES, strict=True)
        cells: list[Cell] = [
            None if score is None else score.interval().within(0.0, highest(name, [arm])) for score, name in told
        ]
        rows.append(Row([arm.title, *cells], is_reference=arm.kind in ("oracle", "baseline")))
    note = (
        "ECE: mean distance of confidence and share right over 15 bins of equal width. Brier: squared distance 0 … 2 "
        "of the probabilities to the truth. 95 % intervals over takes and seeds. Of few segments, ECE is not zero even "
        "for a model that is calibrated."
    )
    if any(_asked_apart(arm) for arm in experiment.arms.values()):
        note += (
            " Of probes trained with the focal loss, which asks of each class apart, a probability is the class's own "
            "sigmoid, as `hwm predict` says it; they need not sum to 1, and their Brier score may exceed 2."
        )
    return Table(columns, rows, note)


def _pairs_table(experiment: Experiment, pairs: Sequence[tuple[str, str]]) -> Table:
    columns = [
        Column("Pair"), Column("ECE", "number", "points"), Column("Brier", "number", digits=3),
        Column("Top-1 of the surest half", "number", "points"),
    ]  # fmt: skip
    rows = []
    for arm, other in pairs:
        cells: list[Cell] = [pair_title(experiment, arm, other)]
        for name in CALIBRATIONS:
            gain = experiment.gain(arm, other, name, experiment.headline_sec)
            most = highest(name, [experiment.arms[arm], experiment.arms[other]])
            cells.append(
                None
                if gain is None
                else _scaled(gain.interval().within(-most, most), 1.0 if name == "brier" else 100.0)
            )
        rows.append(Row(cells, is_reference=experiment.arms[arm].kind in ("oracle", "baseline")))
    return Table(columns, rows, "Differences of matched arms; for ECE and Brier, below zero is better.")


def _selective_line(experiment: Experiment, arm: Arm) -> Line:
    found = experiment.selective_accuracy(arm.name)
    told = [share_interval(score) for score in found.accuracy]
    low, high = [i.low for i in told if i.low is not None], [i.high for i in told if i.high is not None]
    whole = len(low) == len(high) == len(told)
    return Line(
        arm.title, list(found.coverage), [i.value for i in told], low if whole else None, high if whole else None
    )


def _asked_apart(arm: Arm) -> bool:
    return any(run.asked_apart for run in arm.runs)


def _scaled(interval: Interval, factor: float) -> Interval:
    low, high = (None if bound is None else factor * bound for bound in (interval.low, interval.high))
    return interval._replace(value=factor * interval.value, low=low, high=high)
