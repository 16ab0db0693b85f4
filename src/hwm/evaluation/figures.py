"""The report's plots, each as SVG, PNG and the numbers behind it as CSV.

Inputs are plain numbers and labels, outputs are `Figure`s (see `drawing`). Shares are fractions 0..1 and drawn in
percent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.ticker import PercentFormatter

from hwm.errors import RunError
from hwm.evaluation.drawing import (
    TEXT,
    Figure,
    Line,
    colour_of,
    dashes_of,
    draw_lines,
    finish,
    integer_steps,
    label_text,
    legend_above,
    line_rows,
    marker_of,
    new_axes,
    style_of,
)


class Bar(NamedTuple):
    """One share 0..1 with its interval; baselines are drawn in grey."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    is_baseline: bool = False


class Ceiling(NamedTuple):
    """A share 0..1 that no model can pass."""

    label: str
    value: float


class ClassScore(NamedTuple):
    """The share 0..1 that each model reaches on one class, in the order of the model labels."""

    name: str
    num_segments: int
    values: Sequence[float]


def loss_curves(
    name: str, train: Sequence[Line], val: Sequence[Line], title: str = "Loss over training", x_label: str = "Step"
) -> Figure:
    """Training loss (thin line) and validation loss (marked line) of several runs; equal labels share a colour."""
    labels = list(dict.fromkeys(line.label for line in [*train, *val]))
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, x_label, "Loss")
        for line in [*train, *val]:
            if line.low is not None and line.high is not None:
                colour = colour_of(labels.index(line.label))
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.12, linewidth=0)
        for line in train:
            index = labels.index(line.label)
            axes.plot(
                line.x,
                line.y,
                color=colour_of(index),
                linestyle=dashes_of(index),
                linewidth=1,
                alpha=0.75,
                label=label_text(f"{line.label} · train"),
            )
        for line in val:
            index = labels.index(line.label)
            axes.plot(
                line.x,
                line.y,
                color=colour_of(index),
                marker=marker_of(index),
                linestyle=dashes_of(index),
                label=label_text(f"{line.label} · held out"),
            )
        integer_steps(axes)
        legend_above(axes)
        rows = [(*row, split) for split, lines in (("train", train), ("held out", val)) for row in line_rows(lines)]
        return finish(canvas, name, title, ("run", "step", "loss", "low", "high", "split"), rows)


def gate_over_training(name: str, lines: Sequence[Line], title: str = "Gaze gate over training") -> Figure:
    """The learned gate g of each run; with bounds (e.g. lowest and highest channel), a band around it."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "Step", "Gate value g")
        axes.axhline(0, color=TEXT, linewidth=0.8)
        draw_lines(axes, lines)
        integer_steps(axes)
        legend_above(axes)
        return finish(canvas, name, title, ("run", "step", "gate", "low", "high"), line_rows(lines))


def accuracy_over_horizon(
    name: str, lines: Sequence[Line], ceilings: Sequence[Line] = (), title: str = "Top-1 accuracy against horizon"
) -> Figure:
    """Share right of each model against the horizon in seconds, with intervals; dashed: the best possible."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "Horizon τ: seconds between the last frame seen and the start of the step", "")
        draw_lines(axes, lines)
        for index, line in enumerate(ceilings):
            style = ("--", ":", "-.")[index % 3]
            axes.plot(line.x, line.y, color=TEXT, linestyle=style, linewidth=1.2, label=label_text(line.label))
        axes.set_xticks(sorted({horizon for line in [*lines, *ceilings] for horizon in line.x}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        legend_above(axes)
        rows = line_rows([*lines, *ceilings])
        return finish(canvas, name, title, ("model", "horizon_sec", "share", "low", "high"), rows)


def accuracy_bars(
    name: str, bars: Sequence[Bar], ceilings: Sequence[Ceiling] = (), title: str = "Top-1 accuracy"
) -> Figure:
    """One horizontal bar a model, whiskers where there is an interval, dashed lines at the best possible."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "", "", height_in=0.9 + 0.36 * len(bars) + 0.2 * len(ceilings))
        models = [bar.label for bar in bars if not bar.is_baseline]
        for row, bar in enumerate(bars):
            colour = TEXT if bar.is_baseline else colour_of(models.index(bar.label))
            axes.barh(row, bar.value, height=0.58, color=colour, alpha=0.4 if bar.is_baseline else 0.7)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color=TEXT, linewidth=1.4, solid_capstyle="butt")
                axes.plot([bar.low, bar.high], [row, row], "|", color=TEXT, markersize=7, markeredgewidth=1.2)
            # Values stand in a column right of the plot, where no whisker or ceiling crosses them.
            axes.annotate(
                f"{100 * bar.value:.1f}%",
                (1.02, row),
                xycoords=("axes fraction", "data"),
                ha="left",
                weight="bold",
                va="center",
            )
        # The lowest one's words stand highest, and its line ends there: no line crosses the words of another.
        numbered = sorted(enumerate(ceilings), key=lambda item: item[1].value)
        for row, (number, ceiling) in enumerate(numbered):
            bottom = len(bars) - 0.2 + 0.55 * row
            style = ("--", ":", "-.")[number % 3]
            axes.plot([ceiling.value] * 2, [-0.5, bottom + 0.2], linestyle=style, linewidth=1.2, color=TEXT)
            label = label_text(f"{ceiling.label}: {100 * ceiling.value:.1f}%", limit=60)
            axes.annotate(
                label, (ceiling.value, bottom), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8
            )
        axes.set_yticks(range(len(bars)), [label_text(bar.label) for bar in bars])
        axes.set_ylim(len(bars) - 0.5 + 0.55 * len(ceilings), -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        rows = [(bar.label, "baseline" if bar.is_baseline else "model", bar.value, bar.low, bar.high) for bar in bars]
        rows += [(ceiling.label, "ceiling", ceiling.value, None, None) for ceiling in ceilings]
        return finish(canvas, name, title, ("label", "kind", "share", "low", "high"), rows)


def per_class_scores(
    name: str, models: Sequence[str], classes: Sequence[ClassScore], title: str = "Recall of each step"
) -> Figure:
    """One row a class, one marker a model, and the number of segments; classes in the order given."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "", "", height_in=1.1 + 0.24 * len(classes))
        for row, item in enumerate(classes):
            axes.plot([min(item.values), max(item.values)], [row, row], color=TEXT, alpha=0.4, linewidth=2.5)
        for index, model in enumerate(models):
            values = [item.values[index] for item in classes]
            axes.plot(
                values,
                range(len(classes)),
                linestyle="",
                marker=marker_of(index),
                markersize=8 - 2 * (index % 3),  # where two models agree, both stay visible
                color=colour_of(index),
                label=label_text(model),
                clip_on=False,
            )
        axes.set_yticks(range(len(classes)), [f"{label_text(item.name)}  ({item.num_segments})" for item in classes])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.tick_params(axis="y", pad=8)  # room for a marker at 0%
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if models:
            legend_above(axes)
        rows = [
            (item.name, item.num_segments, model, value)
            for item in classes
            for model, value in zip(models, item.values, strict=True)
        ]
        return finish(canvas, name, title, ("class", "num_segments", "model", "share"), rows)


def share_curves(
    name: str, lines: Sequence[Line], axis_labels: tuple[str, str],
    table: tuple[Sequence[str], Sequence[Sequence[object]]], title: str, *, diagonal: bool = False,
) -> Figure:  # fmt: skip
    """Curves of one share against another, both 0..1, if asked with the diagonal; the table goes to the CSV."""
    if not lines:
        raise RunError(f"figure {name} has nothing to draw", expected="at least one curve", found="none")
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, *axis_labels)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8)
        draw_lines(axes, lines)
        for line in axes.lines:
            line.set_clip_on(False)  # a marker at 100% is whole
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        legend_above(axes)
        return finish(canvas, name, title, *table)
