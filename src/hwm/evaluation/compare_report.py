"""The page that `hwm compare` ends with: does gaze help, how sure is that, and what would have been seen if it did.

An `Experiment` with the training of its world models, coverage, provenance and pictures -> `report.html` with
`figures/` beside it, and `metrics.json` for machines. What is an oracle or made under the legacy protocol says so
wherever it is printed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hwm.evaluation import compare_sections as sections
from hwm.evaluation.compare_calibration import calibration_section
from hwm.evaluation.compare_metrics import write_metrics
from hwm.evaluation.compare_world import World, over_seeds, world_section
from hwm.evaluation.differences import Difference
from hwm.evaluation.experiment import Experiment, Run
from hwm.evaluation.figures import Bar, Ceiling, Line, accuracy_bars, accuracy_over_horizon, gate_over_training
from hwm.evaluation.figures import loss_curves as draw_losses
from hwm.evaluation.figures_compare import Gain, confusion_matrix, gain_bars, gain_over_horizon
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import Picture
from hwm.terminal import counted

LEGACY = "LEGACY PROTOCOL: clips show the action"
MAX_STEPS = 40
"""Steps in a plot of gains; with thousands of classes it could not be drawn, and nobody would read it."""
MAX_CONFUSED = 24
"""Steps in a matrix of what is taken for what."""
_CONFUSED_ARMS = ("world+probe", "world", "probe", "none")


class CompareFindings(NamedTuple):
    """All that the page tells."""

    experiment: Experiment
    worlds: Mapping[str, World]
    """World model in words → what stage 1 recorded of it."""
    best: Mapping[str, Mapping[float, float]]
    """Best possible Top-1: label → horizon in seconds → share; empty where nobody knows."""
    coverage: tuple[int, Sequence[tuple[str, str]]]
    """Validation segments expected, and (item, reason) of those left out."""
    provenance: Mapping[str, Mapping[str, object]]
    notes: Sequence[str]
    """What a reader must know before the numbers."""
    is_legacy: bool
    settings: Mapping[str, Mapping[str, object]] = {}
    """Stage in words → the settings that all its runs share."""


class Written(NamedTuple):
    """What was written, and the answer in short."""

    report: Path
    metrics: Path
    verdicts: dict[str, str]
    """Question → answer in words."""
    scores: dict[str, dict[str, float]]
    """Arm or baseline → metric → mean over seeds."""


def write_report(
    out: Path,
    findings: CompareFindings,
    pictures: Sequence[Picture],
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write `report.html`, `figures/` and `metrics.json` to a folder.

    Args:
        out: the folder.
        findings: what was found.
        pictures: annotated frames.
        on_part: is told how many parts are computed, of how many: of tens of thousands of segments each takes minutes.
    """
    experiment = findings.experiment
    mark = f" · {LEGACY}" if findings.is_legacy else ""
    report = Report(
        f"Does gaze help?{mark}",
        f"The step that comes next, named {experiment.headline_sec:g} s before it starts, by models that differ in "
        f"their gaze alone: {counted(experiment.num_scored, 'segment')} of {counted(experiment.num_takes, 'take')}.",
    )
    parts = (
        lambda: _arms(report, findings, mark),
        lambda: _horizons(report, findings, mark),
        lambda: _classes(report, experiment, mark),
        lambda: calibration_section(report, experiment, mark),
        lambda: world_section(report, findings.worlds),
        lambda: _training(report, findings),
    )
    on_part(0, 1 + len(parts))
    verdicts = sections.headline(report, experiment, findings.best, findings.notes, mark)
    for done, part in enumerate(parts, start=1):
        on_part(done, 1 + len(parts))
        part()
    on_part(1 + len(parts), 1 + len(parts))
    if pictures:
        report.section(
            "Won and lost by gaze",
            "The last frame that was seen before a step, with Gaze-LLE's estimate of where people look. In turn: won, "
            "lost, right in both, wrong in both; none was chosen for its looks. Below each: the five best guesses at "
            "every horizon, the true step marked ✓.",
        )
        report.pictures(pictures)
    report.section("Coverage and provenance")
    expected, excluded = findings.coverage
    report.coverage(expected, expected - len(excluded), list(excluded))
    unknown = expected - len(excluded) - experiment.num_scored
    if unknown:
        report.paragraph(f"In no score: {counted(unknown, 'segment')} of these, whose class is not in training.")
    report.provenance(findings.provenance)
    for stage, settings in findings.settings.items():
        report.folded(f"Settings of {stage} that all arms share", settings)
    metrics = write_metrics(
        out / "metrics.json", experiment, findings.worlds, findings.best, findings.provenance, findings.notes
    )
    return Written(report.write(out / "report.html"), metrics, verdicts, sections.mean_scores(experiment))


def _arms(report: Report, findings: CompareFindings, mark: str) -> None:
    experiment = findings.experiment
    at = experiment.headline_sec
    report.section(f"Arms, controls and baselines{mark}", f"{at:g} s before the step starts; means over seeds.")
    best = {label: values[at] for label, values in findings.best.items() if at in values}
    report.table(sections.arms_table(experiment, best))
    bars = []
    for arm in experiment.arms.values():
        score = experiment.score(arm.name, "top1", at)
        assert score is not None  # every arm has a run at the headline's horizon
        interval = sections.share_interval(score)
        bars.append(Bar(arm.title, interval.value, interval.low, interval.high, arm.kind in ("baseline", "oracle")))
    ceilings = [Ceiling(label, value) for label, value in best.items()]
    report.figure(accuracy_bars("top1", bars, ceilings, title=f"Top-1 accuracy{mark}"))
    if pairs := experiment.pairs():
        report.table(sections.pairs_table(experiment, pairs))
        shown = [pair for pair in pairs if experiment.arms[pair[0]].is_trained] or pairs
        gains = [_gain(sections.pair_title(experiment, a, b), experiment.gain(a, b, "top1", at)) for a, b in shown]
        report.figure(
            gain_bars("gains", gains, f"Gain in Top-1 over the matched model{mark}"),
            "Filled where the interval excludes zero.",
        )
        main = sections.main_pair(experiment) or pairs[0]
        report.table(sections.metrics_table(experiment, *main))


def _horizons(report: Report, findings: CompareFindings, mark: str) -> None:
    experiment = findings.experiment
    if len(experiment.horizons) < 2:
        return
    report.section(
        f"How far ahead{mark}",
        "The same probes, asked at other horizons. The segments differ a little: a step that starts before a horizon "
        "has passed cannot be asked at it.",
    )
    shown = [arm for arm in experiment.arms.values() if arm.kind == "arm"]
    lines = [
        line
        for arm in shown
        if (
            line := _line(
                arm.title, experiment.horizons, [experiment.score(arm.name, "top1", h) for h in experiment.horizons]
            )
        )
    ]
    previous = experiment.arms.get("previous-step")
    of_previous = [] if previous is None else [
        (horizon, score.value)
        for horizon in experiment.horizons
        if (score := experiment.score(previous.name, "top1", horizon)) is not None
    ]  # fmt: skip
    ceilings = [Line(previous.title, *zip(*of_previous, strict=True))] if previous and of_previous else []
    for label, values in findings.best.items():
        known = [horizon for horizon in experiment.horizons if horizon in values]
        ceilings.append(Line(label, known, [values[horizon] for horizon in known]))
    report.figure(
        accuracy_over_horizon("top1-by-horizon", lines, ceilings, title=f"Top-1 accuracy against horizon{mark}")
    )
    gains = [
        line
        for a, b in experiment.pairs()
        if experiment.arms[a].kind == "arm"
        and (
            line := _line(
                sections.pair_title(experiment, a, b),
                experiment.horizons,
                [experiment.gain(a, b, "top1", h) for h in experiment.horizons],
                lowest=-1.0,
            )
        )
    ]
    if gains:
        report.figure(gain_over_horizon("gain-by-horizon", gains, f"Gain in Top-1 against horizon{mark}"))


def _classes(report: Report, experiment: Experiment, mark: str) -> None:
    pair = sections.main_pair(experiment)
    report.section(
        f"Which steps{mark}", "Recall at 1; in brackets the number of segments. Classes with few segments say little."
    )
    for name, (arm, other) in sections.class_pairs(experiment).items():
        told = experiment.class_gains(arm, other)
        commonest = sorted(told, key=lambda gain: (-gain.support, gain.label))[:MAX_STEPS]  # never by their gain
        shown = [gain for gain in told if gain in commonest]
        gains = [_gain(experiment.class_names[gain.label], gain.difference, gain.support) for gain in shown]
        caption = "No correction for the number of steps." + _of_all(len(gains), len(told), "; metrics.json has all")
        title = f"{sections.pair_title(experiment, arm, other)}: gain by step{mark}"
        report.figure(gain_bars(f"gain-by-step-{name}", gains, title), caption)
    named = pair[0] if pair else next(name for name in (*_CONFUSED_ARMS, *experiment.arms) if name in experiment.arms)
    for number, confusion in enumerate(experiment.confusions(named, MAX_CONFUSED), start=1):
        where = f" · {confusion.scenario}" if confusion.scenario else ""
        title = f"{sections.short_title(experiment, named)}: what is taken for what{where}{mark}"
        matrix = confusion_matrix(f"confusion-{number}", confusion.names, confusion.counts, title)
        report.figure(matrix, _of_all(len(confusion.names), confusion.num_classes).strip())


def _of_all(num_shown: int, num_steps: int, where: str = "") -> str:
    """Which steps a plot shows, where it leaves some out."""
    return "" if num_shown == num_steps else f" The {num_shown} steps with most segments, of {num_steps:,}{where}."


def _training(report: Report, findings: CompareFindings) -> None:
    worlds = {label: of.runs for label, of in findings.worlds.items() if any(run.stage1 for run in of.runs)}
    probes = {arm.title: arm.runs for arm in findings.experiment.arms.values() if arm.kind == "arm"}
    if not (worlds or any(run.probe for runs in probes.values() for run in runs)):
        return
    report.section("Training", "Means over seeds; the band goes from the lowest seed to the highest.")
    if worlds:
        train = [
            line for label, runs in worlds.items() if (line := _band(label, runs, "stage1", "train/teacher_forced"))
        ]
        held_out = [line for label, runs in worlds.items() if (line := _band(label, runs, "stage1", "val/l1"))]
        report.figure(draw_losses("stage1-loss", train, held_out, title="Stage 1: L1 one step ahead"))
        gates = [line for label, runs in worlds.items() if (line := _band(label, runs, "stage1", "train/gate"))]
        report.figure(
            gate_over_training("gate", gates),
            "The gate starts at zero, where the model is the one without gaze. Without gaze it lets in a constant.",
        )
    losses = [line for label, runs in probes.items() if (line := _band(label, runs, "probe", "probe/loss"))]
    if losses:
        report.figure(
            draw_losses("probe-loss", losses, [], title="Stage 2: loss of the probe that was chosen", x_label="Epoch")
        )


def _gain(label: str, difference: Difference | None, support: int | None = None) -> Gain:
    assert difference is not None  # pairs share a seed
    interval = difference.interval().within(-1.0, 1.0)
    return Gain(label, interval.value, interval.low, interval.high, support)


def _line(
    label: str, horizons: Sequence[float], values: Iterable[Difference | None], lowest: float = 0.0
) -> Line | None:
    """A series over horizons, with intervals where all points have one; None where no point is known."""
    told = zip(horizons, values, strict=True)
    known = [(horizon, value.interval().within(lowest, 1.0)) for horizon, value in told if value is not None]
    if not known:
        return None
    low = [interval.low for _, interval in known if interval.low is not None]
    high = [interval.high for _, interval in known if interval.high is not None]
    whole = len(low) == len(high) == len(known)
    x, y = [horizon for horizon, _ in known], [interval.value for _, interval in known]
    return Line(label, x, y, low if whole else None, high if whole else None)


def _band(label: str, runs: Sequence[Run], part: str, metric: str) -> Line | None:
    """The mean over seeds of a logged value, at the steps that all seeds have, and the range of the seeds."""
    logged = [{line["step"]: line[metric] for line in getattr(run, part) if metric in line} for run in runs]
    return over_seeds(label, [values for values in logged if values])
