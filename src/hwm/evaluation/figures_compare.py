"""Plots of differences and of what is taken for what; see `drawing` for their form.

Shares are fractions 0..1; differences of shares are drawn in percentage points.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MultipleLocator
from numpy.typing import NDArray

from hwm.evaluation.drawing import (
    TEXT,
    Figure,
    Line,
    colour_of,
    draw_lines,
    finish,
    label_text,
    legend_above,
    line_rows,
    new_axes,
    style_of,
)


class Gain(NamedTuple):
    """A difference of two shares with its interval; `support` is how many segments stand behind it."""

    label: str
    value: float
    low: float | None
    high: float | None
    support: int | None = None


def gain_bars(name: str, gains: Sequence[Gain], title: str) -> Figure:
    """One row a gain: a dot and its interval against zero; rows in the order given."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "Difference in percentage points", "", height_in=1.0 + 0.26 * len(gains))
        axes.axvline(0, color=TEXT, linewidth=0.9)
        for row, gain in enumerate(gains):
            is_sure = gain.low is not None and gain.high is not None and (gain.low > 0 or gain.high < 0)
            colour = TEXT if not is_sure else colour_of(2 if gain.value > 0 else 1)
            if gain.low is not None and gain.high is not None:
                axes.plot([gain.low, gain.high], [row, row], color=colour, linewidth=1.8, solid_capstyle="round")
            axes.plot([gain.value], [row], "o", color=colour, markersize=5.5, fillstyle="full" if is_sure else "none")
        counts = ["" if gain.support is None else f"  ({gain.support})" for gain in gains]
        labels = [f"{label_text(gain.label)}{count}" for gain, count in zip(gains, counts, strict=True)]
        axes.set_yticks(range(len(gains)), labels)
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.06)
        axes.xaxis.set_major_formatter(FuncFormatter(_points))
        rows = [(gain.label, gain.value, gain.low, gain.high, gain.support) for gain in gains]
        return finish(canvas, name, title, ("label", "difference", "low", "high", "num_segments"), rows)


def gain_over_horizon(name: str, lines: Sequence[Line], title: str) -> Figure:
    """Differences of two shares against the horizon in seconds, with intervals, around a line at zero."""
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "Horizon τ in seconds", "percentage points")
        axes.axhline(0, color=TEXT, linewidth=0.9)
        draw_lines(axes, lines)
        axes.set_xticks(sorted({horizon for line in lines for horizon in line.x}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(FuncFormatter(_points))
        legend_above(axes)
        header = ("pair", "horizon_sec", "difference", "low", "high")
        return finish(canvas, name, title, header, line_rows(lines))


def confusion_matrix(name: str, names: Sequence[str], counts: NDArray[np.float64], title: str) -> Figure:
    """What was said of what was true: shares of each row by colour and number.

    Args:
        name: file name without ending.
        names: of the C classes.
        counts: [C, C + 1]: true class by named class; the last column is any other class.
        title: what it shows.
    """
    num_classes = len(names)
    with mpl.rc_context(style_of(name)):
        canvas, axes = new_axes(title, "What the model named", "", height_in=2.9 + 0.3 * num_classes)
        shares = counts / counts.sum(axis=1, keepdims=True)
        for row in range(num_classes):
            for column in range(num_classes + 1):
                _square(axes, row, column, float(shares[row, column]), is_right=row == column)
        below = [label_text(text, 24) for text in (*names, "any other")]
        slant = 38 if num_classes < 16 else 58  # the columns of many classes are narrow: flatter names would collide
        axes.set_xticks(range(num_classes + 1), below, rotation=slant, ha="right", rotation_mode="anchor", fontsize=8)
        totals = np.rint(counts.sum(axis=1)).astype(int)
        axes.set_yticks(
            range(num_classes), [f"{label_text(text, 34)}  ({n})" for text, n in zip(names, totals, strict=True)]
        )
        axes.set_xlim(-0.5, num_classes + 0.5)
        axes.set_ylim(num_classes - 0.5, -0.5)
        axes.xaxis.set_minor_locator(MultipleLocator(1))
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        named = [*names, "any other"]
        rows = [(names[i], named[j], counts[i, j], shares[i, j]) for i in range(num_classes) for j in range(len(named))]
        return finish(canvas, name, title, ("true", "named", "segments", "share"), rows)


def _square(axes: Axes, row: int, column: int, share: float, *, is_right: bool) -> None:
    """One cell: as opaque as its share; its number, if it rounds to a percent at all."""
    place = (column - 0.47, row - 0.45)
    colour = colour_of(0 if is_right else 1)
    patch = FancyBboxPatch(
        place,
        0.94,
        0.9,
        boxstyle="round,pad=0,rounding_size=0.08",
        facecolor=colour,
        linewidth=0,
        alpha=0.08 + 0.42 * share,
    )
    axes.add_patch(patch)
    if share >= 0.005:
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)


def _points(value: float, _: int) -> str:
    return f"{100 * value:+.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"
