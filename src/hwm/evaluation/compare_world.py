"""What the world models of a comparison have learned: skill by step and place, drift, retrieval, collapse, gaze ahead.

In: what stage 1 recorded of each world model (`world_scores`, `gaze_forecast`, `collapse`), a run a seed. Out: sections
of the report. Numbers are means over seeds, bands go from the lowest seed to the highest; the skill of a roll-out has
an interval over takes and seeds (`skill_by_take`). Skill near gaze is told of all models with one gaze map, whether
they are given it or not (`pipelines.validation_gaze`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hwm.evaluation.collapse import MIN_DEVIATION_RATIO, MIN_RANK_RATIO
from hwm.evaluation.drawing import Line
from hwm.evaluation.experiment import Run
from hwm.evaluation.figures_panels import Panel, line_panels
from hwm.evaluation.report import Report
from hwm.evaluation.report_parts import Cell, Column, Row, Table
from hwm.evaluation.skill_by_take import TakeErrors, skill, skill_gain

_PLACES = {
    "": "everywhere", "near/": "near gaze", "elsewhere/": "elsewhere", "moving/": "clips that change most",
    "static/": "clips that change least",
}  # fmt: skip
_METRICS = {
    "auc": "AUC (higher is better)", "nss": "NSS (higher is better)", "kl": "KL in nats (lower is better)",
    "l2": "L2 in px (lower is better)",
}  # fmt: skip
WITHOUT_GAZE = "without gaze"
"""The name of the world model that the others are told against."""
_FORECASTS = ("true tokens", "persistence", "centre prior")
"""Forecasts that no world model makes; they are the same for all of them, up to the read-out's fit."""


class World(NamedTuple):
    """One kind of world model: a run for each seed, and its time grid."""

    runs: Sequence[Run]
    fps: float
    """Steps a second."""
    view_px: int
    """Side of the encoder's view in pixels."""


def world_section(report: Report, worlds: Mapping[str, World]) -> None:
    """Skill, drift, retrieval and collapse of every world model that recorded them; then its forecast of gaze."""
    told = {label: world for label, world in worlds.items() if any(run.validation for run in world.runs)}
    if not told:
        return
    fps = next(iter(told.values())).fps
    report.section(
        "World models",
        "Latents imagined for held-out videos, beside copies of the last latent that was seen; a step is "
        f"{1 / fps:g} s. Means over seeds; bands from the lowest seed to the highest; below a skill stands its 95 % "
        "interval over takes and seeds.",
    )
    panels = [panel for place, title in _PLACES.items() if (panel := _skill_panel(told, place, title)).lines]
    report.figure(
        line_panels("skill-by-step", panels, "Skill of the world model by step imagined", "Steps ahead"),
        "Skill: share of the copy's error that is removed; 0 is no better than copying. “Near gaze” is split off by "
        "one gaze map for all models, whether they are given it or not.",
    )
    report.table(_skill_table(told))
    if (gains := _gain_table(told)).rows:
        report.table(gains)
    report.table(_rollout_table(told))
    _gaze_forecasts(report, told)


def _skill_panel(worlds: Mapping[str, World], place: str, title: str) -> Panel:
    lines = [line for label, world in worlds.items() if (line := _by_step(label, world.runs, f"{place}skill"))]
    return Panel(title, lines, percent=True)


def _by_step(label: str, runs: Sequence[Run], name: str) -> Line | None:
    """A number of the validation against the step, over the seeds that have it."""
    told = [_steps(run.validation, name) for run in runs]
    return over_seeds(label, [values for values in told if values])


def _steps(values: Mapping[str, float], name: str) -> dict[float, float]:
    """`name_1`, `name_2`, … as step → value."""
    found = {key.removeprefix(f"{name}_"): value for key, value in values.items() if key.startswith(f"{name}_")}
    return {float(step): value for step, value in found.items() if step.isdigit()}


def over_seeds(label: str, values: Sequence[Mapping[float, float]]) -> Line | None:
    """The mean over seeds at the places that all seeds have, and the range of the seeds; None where there is none."""
    places = sorted(set.intersection(*(set(of) for of in values))) if values else []
    if not places:
        return None
    of_seed = np.array([[of[place] for place in places] for of in values])
    if len(values) == 1:
        return Line(label, places, of_seed[0].tolist())
    return Line(label, places, of_seed.mean(0).tolist(), of_seed.min(0).tolist(), of_seed.max(0).tolist())


def _steps_told(worlds: Mapping[str, World]) -> list[float]:
    """The steps ahead that any of the validations has."""
    return sorted({step for of in worlds.values() for run in of.runs for step in _steps(run.validation, "skill")})


def _mean(runs: Sequence[Run], name: str) -> float | None:
    values = [run.validation[name] for run in runs if name in run.validation]
    return float(np.mean(values)) if values else None


def _skill_table(worlds: Mapping[str, World]) -> Table:
    steps = _steps_told(worlds)
    columns = [Column("Patches"), Column("World model", "text"), *(_step_column(step, "share") for step in steps)]
    rows = []
    for place, title in _PLACES.items():
        for label, world in worlds.items():
            sums = _sums([world.runs])
            cells: list[Cell] = []
            for step in steps:
                told = skill(*sums, place, int(step)) if sums else None
                cells.append(told.interval() if told else _mean(world.runs, f"{place}skill_{step:g}"))
            if any(cell is not None for cell in cells):
                rows.append(Row([title, label, *cells]))
    return Table(columns, rows, "Skill by steps ahead. Below zero: worse than copying the last latent.")


def _gain_table(worlds: Mapping[str, World]) -> Table:
    """What each world model that is given gaze gains in skill over the one that is not, on the same takes and seeds."""
    steps = _steps_told(worlds)
    columns = [Column("Patches"), Column("World model", "text"), *(_step_column(step, "share") for step in steps)]
    rows = []
    for place, title in _PLACES.items():
        for label, world in worlds.items():
            if label == WITHOUT_GAZE or WITHOUT_GAZE not in worlds:
                continue
            sums = _sums(_paired(world.runs, worlds[WITHOUT_GAZE].runs))
            told = [skill_gain(*sums, place, int(step)) if sums else None for step in steps]
            if any(told):
                rows.append(Row([title, label, *(gain.interval() if gain else None for gain in told)]))
    return Table(columns, rows, "Skill gained over the world model without gaze, in points, seed by seed.")


def _paired(runs: Sequence[Run], others: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of the seeds that both have, in one order."""
    of, of_other = ({run.seed: run for run in side} for side in (runs, others))
    seeds = sorted(set(of) & set(of_other))
    return [of[seed] for seed in seeds], [of_other[seed] for seed in seeds]


def _sums(sides: Sequence[Sequence[Run]]) -> list[list[TakeErrors]]:
    """What skill is made of, run by run; none where a run did not record it."""
    told = [[run.skill_by_take for run in runs if run.skill_by_take is not None] for runs in sides]
    is_whole = all(len(of) == len(runs) > 0 for of, runs in zip(told, sides, strict=True))
    return told if is_whole else []


def _rollout_table(worlds: Mapping[str, World]) -> Table:
    """One row a world model: the one-step skill with the true past, drift, retrieval, collapse."""
    last = _steps_told(worlds)[-1]
    columns = [
        Column("World model"), Column("Skill, true past", "share"), Column("Error growth", "number", "×", digits=2),
        Column("Contrast kept", "share"), Column("True step found, 1 step ahead", "share"),
        Column(f"{last:g} steps ahead", "share"), Column("Features vary", "number", "×", digits=2),
        Column("Rank", "number", "×", digits=2),
    ]  # fmt: skip
    rows = []
    for label, world in worlds.items():
        names = (
            "skill",
            f"drift/error_{last:g}",
            f"drift/norm_{last:g}",
            "retrieval/top1_1",
            f"retrieval/top1_{last:g}",
        )
        cells: list[Cell] = [_mean(world.runs, name) for name in names]
        cells += [_last_logged(world.runs, f"train/{name}") for name in ("deviation_ratio", "rank_ratio")]
        rows.append(Row([label, *cells]))
    note = (
        f"Error growth: error {last:g} steps ahead over that one step ahead. Contrast kept: how much imagined patches "
        "differ among each other, of what true ones do. True step found: how often the true step is the nearest of "
        "all steps of its video. Features vary and Rank: monitors of collapse, predictions over targets at the end of "
        f"training; alarm below {MIN_DEVIATION_RATIO:g} and {MIN_RANK_RATIO:g}."
    )
    return Table(columns, rows, note)


def _last_logged(runs: Sequence[Run], name: str) -> float | None:
    logged = [[line[name] for line in run.stage1 if name in line] for run in runs]
    values = [of[-1] for of in logged if of]
    return float(np.mean(values)) if values else None


def _gaze_forecasts(report: Report, worlds: Mapping[str, World]) -> None:
    """Imagined attention against the gaze of its step, for each kind of gaze that is known."""
    truths = list(dict.fromkeys(truth for world in worlds.values() for run in world.runs for truth in run.forecast))
    for truth in truths:
        lines = {metric: _forecast_lines(worlds, truth, metric) for metric in _METRICS}
        panels = [Panel(_METRICS[metric], of) for metric, of in lines.items() if of]
        report.figure(
            line_panels(f"gaze-forecast-{truth}", panels, f"Where will people look: {truth} gaze", "Steps ahead"),
            "Attention that the world model imagines, beside the last gaze that was seen (persistence), the training "
            "videos' mean (centre prior), and what the read-out says of the true later tokens: its own limit.",
        )
        report.table(_forecast_table(lines, truth))


def _forecast_lines(worlds: Mapping[str, World], truth: str, metric: str) -> list[Line]:
    lines = []
    for label, world in worlds.items():
        scale = float(world.view_px) if metric == "l2" else 1.0
        lines.append(_forecast_line(f"imagined, {label}", [world], truth, "imagined", metric, scale))
    with_gaze = [world for world in worlds.values() if any(run.forecast for run in world.runs)][:1]
    for forecast in _FORECASTS:
        scale = float(with_gaze[0].view_px) if metric == "l2" else 1.0
        lines.append(_forecast_line(forecast, with_gaze, truth, forecast, metric, scale))
    return [line for line in lines if line is not None]


def _forecast_line(
    label: str, worlds: Sequence[World], truth: str, forecast: str, metric: str, scale: float
) -> Line | None:
    told = [run.forecast.get(truth, {}).get(forecast, {}) for world in worlds for run in world.runs]
    values = [{step: scale * value for step, value in _steps(of, metric).items()} for of in told]
    return over_seeds(label, [of for of in values if of])


def _forecast_table(lines: Mapping[str, Sequence[Line]], truth: str) -> Table:
    steps = sorted({step for of in lines.values() for line in of for step in line.x})
    rows = []
    for metric, of in lines.items():
        for line in of:
            known = dict(zip(line.x, line.y, strict=True))
            rows.append(Row([_METRICS[metric].partition(" (")[0], line.label, *(known.get(step) for step in steps)]))
    columns = [Column("Metric"), Column("Forecast", "text"), *(_step_column(step, "number", 2) for step in steps)]
    return Table(columns, rows, f"Forecast of {truth} gaze by steps ahead; pixels of the encoder's view.")


def _step_column(step: float, kind: str, digits: int = 1) -> Column:
    return Column(f"{step:g} ahead", "share" if kind == "share" else "number", digits=digits)
