"""Headline and tables of the comparison's report: which arm is set against which, and the answer in words.

C − B   gaze in world model and probe, against gaze in the probe alone: the value of conditioning the world model
B − A   gaze in the probe, against none: the value of pooling latents where people look
C′ − A  gaze in the world model alone, against none
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from hwm.evaluation.differences import Difference
from hwm.evaluation.experiment import Arm, Experiment, ScoreName
from hwm.evaluation.paired_comparison import Comparison
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import Cell, Column, Row, Table, Tone, Verdict
from hwm.evaluation.resampled import METRICS
from hwm.evaluation.statistics import Interval
from hwm.evaluation.verdicts import Outcome

QUESTIONS = {
    ("world+probe", "probe"): "What conditioning the world model adds (C − B)",
    ("world", "none"): "What conditioning the world model adds, no gaze in the probe (C′ − A)",
    ("probe", "none"): "What the gaze point in the probe adds (B − A)",
}
"""In the order of their weight: the first that is there is the main one."""
_TONES: dict[Outcome, Tone] = {Outcome.BETTER: "good", Outcome.WORSE: "bad"}
_NAMES = {
    "top1": "Top-1",
    "top5": "Top-5",
    "mean_average_precision": "mAP",
    "class_mean_recall_at_1": "Recall@1",
    "class_mean_recall_at_5": "Recall@5",
}


def headline(
    report: Report, experiment: Experiment, best: Mapping[str, Mapping[float, float]], notes: Sequence[str], mark: str
) -> dict[str, str]:
    """The cards at the top of the page; returns question → answer in words."""
    report.section(f"At a glance{mark}")
    cards, answers = [], {}
    for pair, question in QUESTIONS.items():
        if pair in experiment.pairs() or (set(pair) <= experiment.arms.keys() and experiment.seeds(*pair)):
            found = experiment.headline(*pair)
            answers[question] = found.decision.text
            cards.append(_card(question + mark, found))
    if not answers:
        why = "no two of the arms A, B and C, of one seed, are here"
        answers["Does gaze help?"], notes = f"not asked: {why}", (f"Not asked: {why}.", *notes)
    cards.append(_best_arm(experiment, best))
    report.verdicts(cards)
    seeds = {len(experiment.seeds(arm.name)) for arm in experiment.arms.values() if arm.is_trained}
    report.paragraph(
        f"Each arm was trained with {_range(seeds)}, paired: arms of one seed share the initial weights of "
        "their world models, the order of their clips, the number of updates and the segments they are scored on, and "
        "differ in their gaze alone; a probe with a gaze point starts from weights of its own. A gain is against such "
        "a matched model, never against the same model with its input taken away. Intervals cover "
        f"{'other takes alone' if seeds == {1} else 'both other takes and other seeds'}; p values are after Holm's "
        "correction over the metrics."
    )
    *others, task = experiment.task_names
    if others:
        report.paragraph(f"Scores are those of the task {task} wherever no other is named ({', '.join(others)}).")
    for note in notes:
        report.note(note)
    return answers


def main_pair(experiment: Experiment) -> tuple[str, str] | None:
    """The pair of the first question that can be answered."""
    return next((pair for pair in QUESTIONS if pair in experiment.pairs()), None)


def class_pairs(experiment: Experiment) -> dict[str, tuple[str, str]]:
    """File name → pair whose gain is told class by class."""
    names = {"world-model": ("world+probe", "probe"), "gaze-point": ("probe", "none"), "world-alone": ("world", "none")}
    return {name: pair for name, pair in names.items() if pair in experiment.pairs()}


def pair_title(experiment: Experiment, arm: str, other: str) -> str:
    """The short names of two arms with a minus between them."""
    return " − ".join(short_title(experiment, name) for name in (arm, other))


def short_title(experiment: Experiment, arm: str) -> str:
    """The letter of an arm, or the whole title of what has none."""
    return experiment.arms[arm].title.partition(" · ")[0]


def share_interval(score: Difference) -> Interval:
    """The interval of a share, which lies within 0..1."""
    return score.interval().within(0.0, 1.0)


def highest(name: ScoreName, arms: Iterable[Arm]) -> float:
    """The most that a score can be: Brier goes to 2 (of sigmoids, to the number of classes), all others to 1."""
    asked_apart = any(run.asked_apart for arm in arms for run in arm.runs)
    return 1.0 if name != "brier" else math.inf if asked_apart else 2.0


def arms_table(experiment: Experiment, best: Mapping[str, float]) -> Table:
    """Every arm and baseline by every metric, with intervals."""
    columns = [Column("Model"), Column("Seeds", "count")]
    columns += [Column(_NAMES[metric], "share", best="highest") for metric in METRICS]
    rows = []
    for arm in experiment.arms.values():
        scores = [experiment.score(arm.name, metric, experiment.headline_sec) for metric in METRICS]
        cells: list[Cell] = [None if score is None else share_interval(score) for score in scores]
        is_reference = arm.kind in ("oracle", "baseline")
        num_seeds = len(experiment.seeds(arm.name)) if arm.is_trained else None
        rows.append(Row([arm.title, num_seeds, *cells], is_reference))
    nothing: list[Cell] = [None] * (len(METRICS) - 1)
    rows += [Row([label, None, value, *nothing], is_reference=True) for label, value in best.items()]
    note = (
        "Recall is the mean over classes. 95 % intervals, over takes and seeds. Set apart: oracles, which see the "
        "future's gaze, and baselines. The "
        "previous step's label is given to the baseline of that name; a video model has to infer it."
    )
    return Table(columns, rows, note)


def pairs_table(experiment: Experiment, pairs: Sequence[tuple[str, str]]) -> Table:
    """Each arm against the arm it is matched with, by Top-1."""
    columns = [
        Column("Pair"), Column("Top-1 gain", "number", "points"), Column("p, Holm", "number", digits=3),
        Column("Takes ahead", "count"), Column("behind", "count"), Column("Could see", "number", "points"),
        Column("Verdict", "text"),
    ]  # fmt: skip
    rows = []
    for arm, other in pairs:
        found = experiment.headline(arm, other)
        signs = found.sign_test
        ahead, behind = (None, None) if signs is None else (signs.num_ahead, signs.num_behind)
        visible = found.difference.smallest_detectable()
        cells: list[Cell] = [
            pair_title(experiment, arm, other), _in_points(found), _p(found.adjusted_p), ahead, behind,
            None if visible is None else 100 * visible, str(found.decision.outcome),
        ]  # fmt: skip
        rows.append(Row(cells, experiment.arms[arm].kind in ("oracle", "baseline")))
    note = (
        f"Differences of {100 * experiment.bound:g} points or less do not matter here: “no difference” says that the "
        "gain lies within that bound, “not decided” that these data could not tell. “Could see” is the smallest true "
        "gain that such data would find with a chance of 80 %."
    )
    return Table(columns, rows, note)


def metrics_table(experiment: Experiment, arm: str, other: str) -> Table:
    """One pair by every task and metric."""
    first, second = (experiment.arms[name].title for name in (arm, other))
    columns = [
        Column("Metric"), Column(first.partition(" · ")[0], "share"), Column(second.partition(" · ")[0], "share"),
        Column("Difference", "number", "points"), Column("Seeds", "text"), Column("p", "number", digits=3),
        Column("p, Holm", "number", digits=3), Column("Verdict", "text"),
    ]  # fmt: skip
    found = experiment.verdicts(arm, other)
    many = len({item.task for item in found}) > 1
    rows = []
    for item in found:
        name = f"{item.task}: {_NAMES[item.metric]}" if many else _NAMES[item.metric]
        of_seed = " ".join(f"{100 * value:+.1f}" for value in item.difference.of_seed).replace("-", "−")
        rows.append(
            Row(
                [
                    name,
                    item.value_a,
                    item.value_b,
                    _in_points(item),
                    of_seed,
                    _p(item.difference.p_value),
                    _p(item.adjusted_p),
                    str(item.decision.outcome),
                ]
            )
        )
    return Table(columns, rows, note=f"{first} against {second}, seed by seed.")


def mean_scores(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Arm or baseline → metric → mean over seeds, at the headline's horizon."""
    at = experiment.headline_sec
    scores: dict[str, dict[str, float]] = {}
    for arm in experiment.arms.values():
        found = {metric: experiment.score(arm.name, metric, at) for metric in METRICS}
        scores[arm.title] = {metric: score.value for metric, score in found.items() if score is not None}
    return scores


def _card(question: str, found: Comparison) -> Verdict:
    outcome, text = found.decision
    interval = found.difference.interval().within(-1.0, 1.0)
    value = f"{100 * interval.value:+.1f} points".replace("-", "−")
    text = text.replace("-", "−")
    detail = f"{text[:1].upper()}{text[1:]}."
    question = question.replace(" − ", "\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}")  # "C − B" stays on one line
    return Verdict(question, value, str(outcome).capitalize(), _TONES.get(outcome, "neutral"), detail, interval)


def _best_arm(experiment: Experiment, best: Mapping[str, Mapping[float, float]]) -> Verdict:
    """How good the arm with the most gaze is at all."""
    at = experiment.headline_sec
    shown = next(name for name in ("world+probe", "world", "probe", *experiment.arms) if name in experiment.arms)
    score = experiment.score(shown, "top1", at)
    assert score is not None
    untrained = [arm for arm in experiment.arms.values() if not arm.is_trained]
    others = {arm.title: found.value for arm in untrained if (found := experiment.score(arm.name, "top1", at))}
    others |= {label: values[at] for label, values in best.items() if at in values}
    detail = "; ".join(f"{name} {100 * value:.1f} %" for name, value in others.items())
    interval = share_interval(score)
    words = "one take gives no interval"
    if interval.low is not None and interval.high is not None:
        words = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f}"
    title = experiment.arms[shown].title
    return Verdict(f"Top-1, {title}", f"{100 * score.value:.1f} %", words, detail=f"Beside it: {detail}.")


def _in_points(found: Comparison) -> Cell:
    interval = found.difference.interval().within(-1.0, 1.0)
    low, high = (None if bound is None else 100 * bound for bound in (interval.low, interval.high))
    return interval._replace(value=100 * interval.value, low=low, high=high)


def _p(value: float | None) -> Cell:
    """A p value of three digits; none is zero."""
    return "<0.001" if value is not None and value < 0.0005 else value


def _range(seeds: set[int]) -> str:
    low, high = min(seeds), max(seeds)
    told = f"{low}" if low == high else f"{low} to {high}"
    return f"{told} seed{'s' if high > 1 else ''}"
