"""How the report's plots are drawn: one style, one palette, and each plot as SVG, PNG and CSV.

In: matplotlib axes made here. Out: `Figure`s, the same byte for byte from the same numbers. Figures are built on
`matplotlib.figure.Figure` objects, never through pyplot.

Readable on light and on dark pages: the background is transparent; series colours (after Okabe and Ito, safe for colour
blindness) keep a contrast of 3:1 on both; text is mid grey in the PNG and `currentColor` in the SVG, so that a page
that embeds it decides. Every series also differs by marker, never by colour alone; where there are more series than
colours, the next ones have the colours again with other markers and dashes.
"""

import csv
import io
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator

from hwm.errors import RunError

COLOURS = ("#2b7bba", "#d55e00", "#009e73", "#b5649b", "#a67c00", "#6b6fd0")
MARKERS = ("o", "s", "^", "D", "v", "P")
Dashes = Literal["-", "--", ":", "-."]
DASHES: tuple[Dashes, ...] = get_args(Dashes)
TEXT = "#6b7581"
WIDTH_IN = 7.6
LEGEND_LETTERS = 88  # letters and handles that fit in one row of a legend
CJK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Source Han Sans SC", "Source Han Sans CN",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans GB",
    "Hiragino Sans", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
"""Fonts with Chinese, Japanese or Korean letters, as systems ship them; the first that is installed is used."""
STYLE = {
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
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
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


def style_of(name: str) -> dict[Any, Any]:
    """Settings of matplotlib for one figure."""
    installed = set(fontManager.get_font_names())
    families = ["DejaVu Sans", *[font for font in CJK_FONTS if font in installed][:1]]
    return {
        **STYLE,
        "font.family": families,
        "svg.hashsalt": name,
    }  # the salt makes ids a function of the content, apart for each figure


def new_axes(title: str, x_label: str, y_label: str, height_in: float = 3.5) -> tuple[Canvas, Axes]:
    """A titled canvas of the report's width."""
    canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = canvas.add_subplot()
    set_title(canvas, title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return canvas, axes


def set_title(canvas: Canvas, title: str) -> None:
    """What a figure shows, from its left edge on: above the axes, beside wide labels, there is less room."""
    canvas.suptitle(label_text(title, limit=82), x=0.01, ha="left", fontsize=10, fontweight="bold", color=TEXT)


def draw_lines(axes: Axes, lines: Sequence[Line], places: Sequence[int] | None = None) -> None:
    """Each series with its colour and marker, and a band where it has bounds.

    Args:
        axes: where to draw.
        lines: the series.
        places: their places in the palette; by default their order.
    """
    for index, line in zip(range(len(lines)) if places is None else places, lines, strict=True):
        colour = colour_of(index)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        marker = marker_of(index) if len(line.x) <= 30 else None
        axes.plot(line.x, line.y, color=colour, marker=marker, linestyle=dashes_of(index), label=label_text(line.label))


def integer_steps(axes: Axes) -> None:
    """An axis of training steps."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0.02)


def legend_above(axes: Axes) -> None:
    """A legend between title and plot, in as many columns as fit the width."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(3, len(labels), LEGEND_LETTERS // (max(map(len, labels)) + 7)))
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=columns, borderaxespad=0.2)


def colour_of(index: int) -> str:
    """Colour of a series."""
    return COLOURS[index % len(COLOURS)]


def marker_of(index: int) -> str:
    """Marker of a series."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def dashes_of(index: int) -> Dashes:
    """Dashes of a series that is a line."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def label_text(text: str, limit: int = 42) -> str:
    """A label to draw: at most as wide as `limit` Latin letters, a box for what is no letter (not in the CSV).

    Letters that no font here has are drawn as boxes in the PNG alone: the SVG's text is text, and the page's font has
    them.
    """
    text = "".join(letter if letter.isprintable() else "□" for letter in text)
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= limit:
        return text
    fitting = sum(end < limit for end in itertools.accumulate(widths))
    return text[:fitting].rstrip() + "…"


def line_rows(lines: Iterable[Line]) -> list[tuple[object, ...]]:
    """The rows of a figure's CSV: label, x, y, low, high."""
    rows: list[tuple[object, ...]] = []
    for line in lines:
        bounds = [None] * len(line.x)
        rows += zip([line.label] * len(line.x), line.x, line.y, line.low or bounds, line.high or bounds, strict=True)
    return rows


def finish(canvas: Canvas, name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Figure:
    """The figure in its three forms.

    Args:
        canvas: what was drawn.
        name: file name without ending.
        title: what it shows.
        header: columns of the CSV.
        rows: the numbers drawn; None is an empty cell.

    Raises:
        RunError: nothing to draw, or a name that is no plain file name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise RunError("a figure's name becomes a file name", expected="lower-case letters, digits, dashes", found=name)
    if not rows:
        raise RunError(f"figure {name} has nothing to draw", expected="at least one point", found="none")
    svg, png, table = io.StringIO(), io.BytesIO(), io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # else every run would give another file
    with warnings.catch_warnings():  # one a letter, and all that is to be said stands in `label_text`
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.savefig(svg, format="svg", transparent=True, metadata=nothing)
        canvas.savefig(png, format="png", transparent=True, dpi=200, metadata={"Software": None})
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return Figure(name, title, _theme(svg.getvalue(), name), png.getvalue(), table.getvalue())


def _theme(svg: str, name: str) -> str:
    """Make a drawn SVG take its text colour and fonts from the page, scale with it, and keep its ids to itself."""
    svg = svg.replace(TEXT, "currentColor")
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, 'DejaVu Sans', sans-serif", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)  # it would style the whole page
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    root = f'<svg color="{TEXT}" stroke-linejoin="round" '
    return re.sub(r'<svg (.*?)width="[\d.]+pt" height="[\d.]+pt"', rf"{root}\1", svg, count=1, flags=re.S)
