"""The page that `hwm demo` ends with: what was found, against what could have been found.

Scores of the arms and baselines on the same segments, the ceilings of the toy world, curves of both stages, annotated
frames, coverage and where every number comes from → `report.html`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwm.evaluation.figures import Bar, Ceiling, ClassScore, Line, accuracy_bars, gate_over_training, loss_curves
from hwm.evaluation.figures import per_class_scores as draw_classes
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import Clip, Column, Picture, Row, Table, Verdict, difference_verdict
from hwm.evaluation.statistics import RESAMPLING_SEED, Interval, mean_interval
from hwm.terminal import counted


class Arm(NamedTuple):
    """One stage-2 run, on the same segments in the same order as the others."""

    name: str
    scores: Mapping[str, float]
    hits_S: np.ndarray
    """Whether the first guess was right, bool [S]."""
    stage1: Sequence[Mapping[str, float]] = ()
    """Lines of stage 1's `metrics.jsonl`; empty where the arm has no stage 1 of its own."""
    validation: Mapping[str, float] = {}
    """Stage 1's skill by horizon."""
    class_recall: Mapping[str, tuple[float, int]] = {}
    """Step name → recall and number of segments."""


class Arms(NamedTuple):
    """Where gaze is: both, one or neither of probe and world model, matched in seed, clips and segments."""

    both: Arm
    probe: Arm
    world_model: Arm
    nowhere: Arm
    encoder: Arm
    """No gaze and no world model: the probe reads what was observed."""


class BestScores(NamedTuple):
    """The best possible Top-1 on these segments: expected over all draws, and on what happened to be drawn."""

    with_gaze: float
    without_gaze: float
    realised_with_gaze: float
    realised_without_gaze: float


class DemoFindings(NamedTuple):
    """All that the page tells."""

    arms: Arms
    baselines: Mapping[str, Mapping[str, float]]
    best: BestScores
    takes_S: Sequence[str]
    horizon_sec: float
    view: str
    expected: int
    exclusions: Sequence[tuple[str, str]]
    provenance: Mapping[str, Mapping[str, object]]
    seconds: float


def write_report(path: Path, findings: DemoFindings, pictures: Sequence[Picture], clip: Clip) -> Path:
    """Write the page, and its figures beside it."""
    report = Report(
        "Does the next step show before it starts?",
        f"hwm demo on a toy world: key steps named {findings.horizon_sec:g} s before they start, seen by "
        f"{findings.view}.",
    )
    _headline(report, findings)
    _examples(report, pictures, clip)
    _anticipation(report, findings)
    _world_model(report, findings)
    report.section("Coverage and provenance")
    report.coverage(findings.expected, len(findings.takes_S), list(findings.exclusions))
    report.provenance(findings.provenance)
    return report.write(path)


def _headline(report: Report, findings: DemoFindings) -> None:
    arms = findings.arms
    majority = findings.baselines["majority"]["top1"]
    report.section(
        "At a glance",
        "A world model watches a person work and imagines the time up to the next step; a small probe names that step.",
    )
    report.verdicts(
        [
            Verdict(
                "Top-1, gaze in world model and probe",
                f"{100 * arms.both.scores['top1']:.1f} %",
                f"{100 * majority:.1f} % by always naming the commonest step",
                detail=f"Best possible: {100 * findings.best.with_gaze:.1f} % knowing where the person looks, "
                f"{100 * findings.best.without_gaze:.1f} % knowing the steps so far alone.",
            ),
            difference_verdict(
                "Gaze in the world model as well, against the probe alone",
                _gain(arms.both, arms.probe, findings.takes_S),
                "What conditioning the world model adds: same seed, clips and segments.",
            ),
            difference_verdict(
                "Gaze in the probe against none",
                _gain(arms.probe, arms.nowhere, findings.takes_S),
                "Latents pooled where the person looks; same world model, which sees no gaze.",
            ),
            *_skill_verdict(arms),
        ]
    )
    report.note(
        "In this view the person's head can be seen, so the model without gaze tokens can also learn where it points: "
        "the ceiling for all arms is the one with gaze known. One seed and a toy world settle nothing about real video."
    )


def _skill_verdict(arms: Arms) -> list[Verdict]:
    """Skill at the last step that it can be told for; none where nothing changes in the validation videos."""
    told = set(_horizons(arms.world_model)) & set(_horizons(arms.nowhere))
    if not told:
        return []
    farthest = max(told)
    skill, without = (arm.validation[f"skill_{farthest}"] for arm in (arms.world_model, arms.nowhere))
    return [
        Verdict(
            "World model against copying the last step",
            f"{100 * skill:.1f} %",
            f"of the copy's error removed {counted(farthest, 'step')} ahead, on takes of other people",
            detail=f"Without gaze: {100 * without:.1f} %.",
        )
    ]


def _examples(report: Report, pictures: Sequence[Picture], clip: Clip) -> None:
    report.section(
        "What it sees and says",
        "The last frame that was seen before each step, with Gaze-LLE's estimate of where the person looks.",
    )
    report.clip(clip)
    report.pictures(pictures)


def _anticipation(report: Report, findings: DemoFindings) -> None:
    report.section("Stage 2: which step comes next?")
    rng = np.random.default_rng(RESAMPLING_SEED)
    intervals = {arm.name: mean_interval(arm.hits_S.astype(float), findings.takes_S, rng) for arm in findings.arms}
    columns = [
        Column("Model"),
        Column("Top-1", "share", best="highest"),
        Column("Top-5", "share", best="highest"),
        Column("mAP", "share", best="highest"),
        Column("Class-mean recall@1", "share", best="highest"),
        Column("Class-mean recall@5", "share", best="highest"),
    ]
    rows = [Row(["Best possible, gaze known", findings.best.with_gaze, None, None, None, None], is_reference=True)]
    rows += [Row([arm.name, intervals[arm.name], *_rest(arm.scores)]) for arm in findings.arms]
    rows += [
        Row([name, scores["top1"], *_rest(scores)], is_reference=True) for name, scores in findings.baselines.items()
    ]
    rows.append(Row(["Best possible, history alone", findings.best.without_gaze, None, None, None, None], True))
    report.table(
        Table(
            columns,
            rows,
            note="Intervals: 95 %, by resampling takes. Ceilings are exact expectations under the rules of the toy "
            f"world; on the steps that happened to be drawn the best observer scores "
            f"{100 * findings.best.realised_with_gaze:.1f} % with gaze and "
            f"{100 * findings.best.realised_without_gaze:.1f} % without.",
        )
    )
    bars = [_bar(arm.name, intervals[arm.name]) for arm in findings.arms]
    bars += [Bar(name, scores["top1"], is_baseline=True) for name, scores in findings.baselines.items()]
    ceilings = [
        Ceiling("best possible, gaze known", findings.best.with_gaze),
        Ceiling("best possible, history alone", findings.best.without_gaze),
    ]
    report.figure(accuracy_bars("top1", bars, ceilings))
    names = list(findings.arms.both.class_recall)
    classes = [
        ClassScore(name, findings.arms.both.class_recall[name][1], [arm.class_recall[name][0] for arm in findings.arms])
        for name in names
    ]
    report.figure(draw_classes("recall-by-step", [arm.name for arm in findings.arms], classes))


def _world_model(report: Report, findings: DemoFindings) -> None:
    report.section("Stage 1: the world model", "Skill is 1 − error / error of copying the last step, on other people.")
    trained = [arm for arm in findings.arms if arm.stage1]
    horizons = _horizons(trained[0])
    columns = [Column("Model"), Column("1 step, true past", "share", best="highest")]
    columns += [Column(f"rolled out {k}", "share", best="highest") for k in horizons]
    rows = [
        Row([arm.name, *(arm.validation.get(name) for name in ("skill", *(f"skill_{k}" for k in horizons)))])
        for arm in trained
    ]
    report.table(Table(columns, rows, note="One step is a quarter of a second."))
    report.figure(
        loss_curves(
            "stage1-loss",
            [_line(arm, "train/teacher_forced") for arm in trained],
            [_line(arm, "val/l1") for arm in trained],
            title="Stage 1: L1 one step ahead",
        )
    )
    report.figure(gate_over_training("gate", [_line(arm, "train/gate") for arm in trained[:1]]))


def _horizons(arm: Arm) -> list[int]:
    """Steps ahead that stage 1 was validated at."""
    return sorted(int(name.removeprefix("skill_")) for name in arm.validation if name.startswith("skill_"))


def _gain(arm: Arm, other: Arm, takes: Sequence[str]) -> Interval:
    """Paired difference of Top-1, with its interval over takes."""
    difference = arm.hits_S.astype(float) - other.hits_S.astype(float)
    return mean_interval(difference, takes, np.random.default_rng(RESAMPLING_SEED))


def _line(arm: Arm, metric: str) -> Line:
    lines = [line for line in arm.stage1 if metric in line]
    return Line(arm.name, [line["step"] for line in lines], [line[metric] for line in lines])


def _rest(scores: Mapping[str, float]) -> list[float]:
    return [
        scores[name] for name in ("top5", "mean_average_precision", "class_mean_recall_at_1", "class_mean_recall_at_5")
    ]


def _bar(name: str, interval: Interval) -> Bar:
    return Bar(name, interval.value, interval.low, interval.high)
