"""The report's plots, each as SVG, PNG and the numbers behind it as CSV.

Inputs are plain numbers and labels, outputs are `Figure`s. Shares are fractions 0..1 and drawn in percent. Figures are
built on `matplotlib.figure.Figure` objects, never through pyplot, and are the same byte for byte from the same numbers.

Readable on light and on dark pages: the background is transparent; series colours (after Okabe and Ito, safe for colour
blindness) keep a contrast of 3:1 on both; text is mid grey in the PNG and `currentColor` in the SVG, so that a page
that embeds it decides. Every series also differs by marker, never by colour alone.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hwm.errors import RunError

COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#b5649b", "#a67c00", "#6b6fd0")
MARKERS = ("o", "s", "^", "D", "v", "P")
TEXT = "#6b7581"
_WIDTH_IN = 7.6
_LEGEND_LETTERS = 88  # letters and handles that fit in one row of a legend
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": TEXT,
    "text.parse_math": False,  # a "$" in the name of a step is a dollar
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "grid.color": TEXT,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Figure:
    """One plot in the three forms that a reader may want."""

    name: str
    """File name without ending: lower-case letters, digits, dashes."""
    title: str
    """What the plot shows, in a few words; also its text for screen readers."""
    svg: str
    """Stand-alone SVG document; its text is text and takes the colour of its surroundings."""
    png: bytes
    """PNG at 200 dots an inch, transparent."""
    csv: str
    """The numbers drawn, one row a point, with full labels."""


class Line(NamedTuple):
    """A series of points, joined; optionally with an interval at each."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


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


def loss_curves(name: str, train: Sequence[Line], val: Sequence[Line], title: str = "Loss over training") -> Figure:
    """Training loss (thin line) and validation loss (marked line) of several runs; equal labels share a colour."""
    labels = list(dict.fromkeys(line.label for line in [*train, *val]))
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, "Step", "Loss")
        for line in train:
            colour = _colour(labels.index(line.label))
            axes.plot(line.x, line.y, color=colour, linewidth=1, alpha=0.75, label=_text(f"{line.label} · train"))
        for line in val:
            index = labels.index(line.label)
            axes.plot(
                line.x, line.y, color=_colour(index), marker=_marker(index), label=_text(f"{line.label} · held out")
            )
        _integer_steps(axes)
        _legend_above(axes)
        rows = [(*row, split) for split, lines in (("train", train), ("held out", val)) for row in _line_rows(lines)]
        return _finish(canvas, name, title, ("run", "step", "loss", "low", "high", "split"), rows)


def gate_over_training(name: str, lines: Sequence[Line], title: str = "Gaze gate over training") -> Figure:
    """The learned gate g of each run; with bounds (e.g. lowest and highest channel), a band around it."""
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, "Step", "Gate value g")
        axes.axhline(0, color=TEXT, linewidth=0.8)
        _draw_lines(axes, lines)
        _integer_steps(axes)
        _legend_above(axes)
        return _finish(canvas, name, title, ("run", "step", "gate", "low", "high"), _line_rows(lines))


def accuracy_over_horizon(
    name: str, lines: Sequence[Line], ceilings: Sequence[Line] = (), title: str = "Top-1 accuracy against horizon"
) -> Figure:
    """Share right of each model against the horizon in seconds, with intervals; dashed: the best possible."""
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, "Horizon τ: seconds between the last frame seen and the start of the step", "")
        _draw_lines(axes, lines)
        for index, line in enumerate(ceilings):
            style = ("--", ":", "-.")[index % 3]
            axes.plot(line.x, line.y, color=TEXT, linestyle=style, linewidth=1.2, label=_text(line.label))
        axes.set_xticks(sorted({horizon for line in [*lines, *ceilings] for horizon in line.x}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _legend_above(axes)
        rows = _line_rows([*lines, *ceilings])
        return _finish(canvas, name, title, ("model", "horizon_sec", "share", "low", "high"), rows)


def accuracy_bars(
    name: str, bars: Sequence[Bar], ceilings: Sequence[Ceiling] = (), title: str = "Top-1 accuracy"
) -> Figure:
    """One horizontal bar a model, whiskers where there is an interval, dashed lines at the best possible."""
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, "", "", height_in=0.9 + 0.36 * len(bars) + 0.2 * len(ceilings))
        models = [bar.label for bar in bars if not bar.is_baseline]
        for row, bar in enumerate(bars):
            colour = TEXT if bar.is_baseline else _colour(models.index(bar.label))
            axes.barh(row, bar.value, height=0.58, color=colour, alpha=0.4 if bar.is_baseline else 0.7)
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [row, row], color=TEXT, linewidth=1.4, solid_capstyle="butt")
                axes.plot([bar.low, bar.high], [row, row], "|", color=TEXT, markersize=7, markeredgewidth=1.2)
            # Values stand in a column right of the plot, where no whisker or ceiling crosses them.
            axes.annotate(
                f"{100 * bar.value:.1f}%",
                (1.07, row),
                xycoords=("axes fraction", "data"),
                ha="right",
                weight="bold",
                va="center",
            )
        for row, ceiling in enumerate(ceilings):
            bottom = len(bars) - 0.2 + 0.55 * row
            style = ("--", ":", "-.")[row % 3]
            axes.plot([ceiling.value] * 2, [-0.5, bottom + 0.2], linestyle=style, linewidth=1.2, color=TEXT)
            label = _text(f"{ceiling.label}: {100 * ceiling.value:.1f}%", limit=60)
            axes.annotate(
                label, (ceiling.value, bottom), (-5, 0), textcoords="offset points", ha="right", va="center", fontsize=8
            )
        axes.set_yticks(range(len(bars)), [_text(bar.label) for bar in bars])
        axes.set_ylim(len(bars) - 0.5 + 0.55 * len(ceilings), -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        rows = [(bar.label, "baseline" if bar.is_baseline else "model", bar.value, bar.low, bar.high) for bar in bars]
        rows += [(ceiling.label, "ceiling", ceiling.value, None, None) for ceiling in ceilings]
        return _finish(canvas, name, title, ("label", "kind", "share", "low", "high"), rows)


def per_class_scores(
    name: str, models: Sequence[str], classes: Sequence[ClassScore], title: str = "Recall of each step"
) -> Figure:
    """One row a class, one marker a model, and the number of segments; classes in the order given."""
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, "", "", height_in=1.1 + 0.24 * len(classes))
        for row, item in enumerate(classes):
            axes.plot([min(item.values), max(item.values)], [row, row], color=TEXT, alpha=0.4, linewidth=2.5)
        for index, model in enumerate(models):
            values = [item.values[index] for item in classes]
            axes.plot(
                values,
                range(len(classes)),
                linestyle="",
                marker=_marker(index),
                markersize=8 - 2 * (index % 3),  # where two models agree, both stay visible
                color=_colour(index),
                label=_text(model),
                clip_on=False,
            )
        axes.set_yticks(range(len(classes)), [f"{_text(item.name)}  ({item.num_segments})" for item in classes])
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.tick_params(axis="y", pad=8)  # room for a marker at 0%
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if models:
            _legend_above(axes)
        rows = [
            (item.name, item.num_segments, model, value)
            for item in classes
            for model, value in zip(models, item.values, strict=True)
        ]
        return _finish(canvas, name, title, ("class", "num_segments", "model", "share"), rows)


def share_curves(
    name: str, lines: Sequence[Line], axis_labels: tuple[str, str],
    table: tuple[Sequence[str], Sequence[Sequence[object]]], title: str, *, diagonal: bool = False,
) -> Figure:  # fmt: skip
    """Curves of one share against another, both 0..1, if asked with the diagonal; the table goes to the CSV."""
    if not lines:
        raise RunError(f"figure {name} has nothing to draw", expected="at least one curve", found="none")
    with mpl.rc_context(_style(name)):
        canvas, axes = _axes(title, *axis_labels)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8)
        _draw_lines(axes, lines)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _legend_above(axes)
        return _finish(canvas, name, title, *table)


def _style(name: str) -> dict[Any, Any]:
    return {**_STYLE, "svg.hashsalt": name}  # the salt makes ids a function of the content, apart for each figure


def _axes(title: str, x_label: str, y_label: str, height_in: float = 3.5) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = canvas.add_subplot()
    axes.set_title(_text(title, limit=90), color=TEXT)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return canvas, axes


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        colour = _colour(index)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        marker = _marker(index) if len(line.x) <= 30 else None
        axes.plot(line.x, line.y, color=colour, marker=marker, label=_text(line.label))


def _integer_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.02)


def _legend_above(axes: Axes) -> None:
    """A legend between title and plot, in as many columns as fit the width."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(3, len(labels), _LEGEND_LETTERS // (max(map(len, labels)) + 7)))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=columns, borderaxespad=0.2)
    axes.set_title(axes.get_title(loc="left"), pad=12 + 14.5 * -(-len(labels) // columns))


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _text(text: str, limit: int = 42) -> str:
    """A label that can be drawn: not too long, and a box for letters that the font lacks (the CSV keeps them all)."""
    glyphs = get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap()
    text = text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
    return "".join(letter if ord(letter) in glyphs else "□" for letter in text)


def _line_rows(lines: Iterable[Line]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for line in lines:
        bounds = [None] * len(line.x)
        rows += zip([line.label] * len(line.x), line.x, line.y, line.low or bounds, line.high or bounds, strict=True)
    return rows


def _finish(canvas: Canvas, name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Figure:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise RunError("a figure's name becomes a file name", expected="lower-case letters, digits, dashes", found=name)
    if not rows:
        raise RunError(f"figure {name} has nothing to draw", expected="at least one point", found="none")
    svg, png, table = io.StringIO(), io.BytesIO(), io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # else every run would give another file
    canvas.savefig(svg, format="svg", transparent=True, metadata=nothing)
    canvas.savefig(png, format="png", transparent=True, dpi=200, metadata={"Software": None})
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return Figure(name, title, _theme(svg.getvalue(), name), png.getvalue(), table.getvalue())


def _theme(svg: str, name: str) -> str:
    """Make a drawn SVG take its text colour and fonts from the page, scale with it, and keep its ids to itself."""
    svg = svg.replace(TEXT, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)  # it would style the whole page
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    root = f'<svg color="{TEXT}" stroke-linejoin="round" '
    return re.sub(r'<svg (.*?)width="[\d.]+pt" height="[\d.]+pt"', rf"{root}\1", svg, count=1, flags=re.S)
