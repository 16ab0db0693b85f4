"""Several small plots of one kind in one figure, with one legend; see `drawing` for their form."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hwm.evaluation.drawing import (
    TEXT,
    WIDTH_IN,
    Figure,
    Line,
    colour_of,
    dashes_of,
    draw_lines,
    finish,
    label_text,
    line_rows,
    marker_of,
    set_title,
    style_of,
)

_LEGEND_LETTERS = 100


class Panel(NamedTuple):
    """One of the plots: its title and its series; `percent` where values are shares, drawn around a line at zero."""

    title: str
    lines: Sequence[Line]
    percent: bool = False


def line_panels(name: str, panels: Sequence[Panel], title: str, x_label: str) -> Figure:
    """Series against whole numbers, a plot a panel; a label has one colour in all of them, shares have one scale.

    Args:
        name: file name without ending.
        panels: at least one; a panel may lack some of the labels.
        title: what the figure shows.
        x_label: of all panels.
    """
    labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines))
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(style_of(name)):
        canvas = Canvas(figsize=(WIDTH_IN, 0.75 + 2.1 * rows), layout="constrained")
        set_title(canvas, title)
        is_one_scale = all(panel.percent for panel in panels)
        grid = canvas.subplots(rows, columns, squeeze=False, sharey=is_one_scale).ravel()
        for panel, axes in zip(panels, grid, strict=False):
            axes.set_title(panel.title, color=TEXT)
            if panel.percent:
                axes.axhline(0, color=TEXT, linewidth=0.6)
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            draw_lines(axes, panel.lines, [labels.index(line.label) for line in panel.lines])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.set_xlabel(x_label)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        handles = [
            Line2D(
                [],
                [],
                color=colour_of(place),
                marker=marker_of(place),
                linestyle=dashes_of(place),
                label=label_text(label, limit=48),
            )
            for place, label in enumerate(labels)
        ]
        in_a_row = max(
            1, min(len(labels), _LEGEND_LETTERS // (max(len(label_text(label, limit=48)) for label in labels) + 6))
        )
        canvas.legend(handles=handles, loc="outside lower left", ncols=in_a_row)
        drawn = [(panel.title, *row) for panel in panels for row in line_rows(panel.lines)]
        return finish(canvas, name, title, ("panel", "label", "x", "y", "low", "high"), drawn)
