"""The blocks that a report is built of, and their HTML.

Inputs are small frozen records (a table, a verdict, a picture), outputs are strings of HTML. Whatever comes from
outside (names of takes, steps and files) passes through `html.escape`; media are data URIs, so that nothing is loaded.
"""

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image as PillowImage

from hwm.errors import RunError
from hwm.evaluation.drawing import Figure
from hwm.evaluation.statistics import Interval
from hwm.terminal import counted

Cell = str | int | float | Interval | None
Tone = Literal["good", "bad", "neutral"]
_GLYPH = {"good": "▲", "bad": "▼", "neutral": "●"}
_MISSING = "–"


class Column(NamedTuple):
    """One column of a table; numbers are right aligned, the first column names the row."""

    name: str
    kind: Literal["text", "share", "number", "count"] = "text"
    """`share`: a fraction 0..1, shown in percent; `number`: as it is; `count`: an integer."""
    unit: str = ""
    """Shown after the name; shares say % by themselves."""
    digits: int = 1
    """Decimals of shares and numbers."""
    best: Literal["highest", "lowest"] | None = None
    """Which value is set in bold; ties as displayed are all bold, reference rows never."""


class Row(NamedTuple):
    """One row of a table: a cell a column. None is shown as a dash, an `Interval` with its bounds below the value."""

    cells: Sequence[Cell]
    is_reference: bool = False
    """A ceiling, an oracle or the like: set apart and left out of the search for the best."""


class Table(NamedTuple):
    """A table; `note` stands below it. Line breaks within cells of text are kept."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""


class Verdict(NamedTuple):
    """One headline: a question, a number, and what it means in words."""

    label: str
    value: str
    words: str
    tone: Tone = "neutral"
    detail: str = ""
    interval: Interval | None = None
    """Drawn as a whisker against zero where given."""


class Picture(NamedTuple):
    """One image: uint8 [Y, X, 3], a file name without ending, its text, and what more there is to say of it."""

    name: str
    pixels: np.ndarray
    caption: str
    alt: str = ""
    table: Table | None = None
    """Stands below the caption."""


class Clip(NamedTuple):
    """One short video: the bytes of an MP4 and, for paper, a still."""

    name: str
    mp4: bytes
    caption: str
    poster: np.ndarray | None = None


def difference_verdict(label: str, difference: Interval, detail: str = "") -> Verdict:
    """The verdict on a paired difference of shares: better or worse only where the interval excludes zero.

    Args:
        label: the question, e.g. "Gaze in the world model against no gaze".
        difference: difference of two fractions 0..1.
        detail: text put before the interval.
    """
    bounds = f"{round(100 * difference.level)} % interval of {counted(difference.num_takes, 'take')}"
    if difference.low is None or difference.high is None:
        words, tone, bounds = "Too few takes to say", "neutral", "No interval: it needs at least two takes"
    else:
        bounds = f"{bounds}: {_signed(difference.low)} to {_signed(difference.high)}"
        words, tone = ("Better", "good") if difference.low > 0 else ("Worse", "bad")
        if not difference.excludes_zero:
            words, tone = "No difference shown", "neutral"
    detail = f"{detail} {bounds}.".strip()
    return Verdict(label, f"{_signed(difference.value)} points", words, tone, detail, difference)


def verdict_cards(verdicts: Sequence[Verdict]) -> str:
    """A row of headline cards; their whiskers share one scale, so that they can be compared."""
    bounds = [abs(b) for v in verdicts if v.interval for b in v.interval[:3] if b is not None]
    reach = 1.15 * max([*bounds, 1e-9])
    cards = []
    for verdict in verdicts:
        words = f"{_GLYPH[verdict.tone]} {verdict.words}"
        whisker = _whisker(verdict.interval, verdict.tone, reach) if verdict.interval else "<div></div>"
        detail = f'<p class="detail">{prose(verdict.detail)}</p>'
        cards.append(
            f'<div class="card"><h3>{prose(verdict.label)}</h3><p class="value">{prose(verdict.value)}</p>'
            f'<p class="verdict {verdict.tone}">{prose(words)}</p>{whisker}{detail}</div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def table_block(table: Table) -> str:
    """A table that scrolls sideways where it does not fit."""
    for row in table.rows:
        if len(row.cells) != len(table.columns):
            raise RunError(
                "a table row does not fit its columns",
                expected=f"{len(table.columns)} cells",
                found=f"{len(row.cells)} cells in the row {str(row.cells[:1])[:80]}",
            )
    best_of_column = [_best_display(table, index) for index in range(len(table.columns))]
    heads = "".join(_head(column, is_first=index == 0) for index, column in enumerate(table.columns))
    body, reference_seen = [], False
    for row in table.rows:
        classes = ["reference"] if row.is_reference else []
        if row.is_reference and not reference_seen:
            classes, reference_seen = ["reference", "first-reference"], True
        cells = "".join(
            _cell(column, cell, is_first=index == 0, best=None if row.is_reference else best_of_column[index])
            for index, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True))
        )
        body.append(f'<tr class="{" ".join(classes)}">{cells}</tr>' if classes else f"<tr>{cells}</tr>")
    note = f'<p class="table-note">{prose(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def figure_block(figure: Figure, caption: str) -> str:
    """A plot as inline SVG, with links to the three files, all inside the page."""
    inline = figure.svg[figure.svg.index("<svg") :]
    label = html.escape(figure.title, quote=True)
    inline = inline.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    links = " · ".join(
        f'<a download="{figure.name}.{ending}" href="{data_uri(content, kind)}">{ending.upper()}</a>'
        for ending, kind, content in (
            ("svg", "image/svg+xml", figure.svg.encode()),
            ("png", "image/png", figure.png),
            ("csv", "text/csv", figure.csv.encode()),
        )
    )
    text = f"{prose(caption)} " if caption else ""
    return (
        f'<figure><div class="plot" tabindex="0">{inline}</div>'
        f'<figcaption>{text}<span class="downloads">{links}</span></figcaption></figure>'
    )


def picture_strip(pictures: Sequence[Picture], caption: str) -> str:
    """Pictures side by side, as many as fit, each with its caption."""
    cells = []
    for picture in pictures:
        height, width = picture.pixels.shape[:2]
        cells.append(
            f'<figure><img src="{data_uri(png_bytes(picture.pixels), "image/png")}" width="{width}" height="{height}" '
            f'alt="{html.escape(picture.alt or picture.caption, quote=True)}" loading="lazy">'
            f"<figcaption>{prose(picture.caption)}</figcaption>"
            f"{'' if picture.table is None else table_block(picture.table)}</figure>"
        )
    text = f"<figcaption>{prose(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="strip">{"".join(cells)}</div>{text}</figure>'


def clip_block(clip: Clip) -> str:
    """A video with controls, silent and looping; on paper its still."""
    poster, still, label = "", "", html.escape(clip.caption, quote=True)
    if clip.poster is not None:
        uri = data_uri(png_bytes(clip.poster), "image/png")
        poster = f' poster="{uri}"'
        still = f'<img class="poster" src="{uri}" alt="{label}">'
    source = data_uri(clip.mp4, "video/mp4")
    return (
        f'<figure><video controls loop muted playsinline preload="metadata" aria-label="{label}"{poster} '
        f'src="{source}"></video>{still}'
        f"<figcaption>{prose(clip.caption)}</figcaption></figure>"
    )


def prose(text: str) -> str:
    """Text of a page: markup is escaped, and a number stays with its per cent."""
    return html.escape(text).replace(" %", "&nbsp;%")


def fact_list(facts: Mapping[str, object]) -> str:
    """Names and values, the values in a fixed-width face and broken anywhere (paths, hashes)."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


def data_uri(content: bytes, kind: str) -> str:
    """The content itself as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def png_bytes(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 [Y, X, 3].

    Raises:
        RunError: another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise RunError(
            "a picture has the wrong form", expected="uint8 [Y, X, 3]", found=f"{pixels.dtype} {pixels.shape}"
        )
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _head(column: Column, is_first: bool) -> str:
    unit = "%" if column.kind == "share" else column.unit
    name = re.sub(r"\S+-\S+", r'<span class="whole">\g<0></span>', html.escape(column.name))  # "Top-5" on one line
    text = name + (f'&nbsp;<span class="unit">{html.escape(unit)}</span>' if unit else "")
    style = "" if is_first or column.kind == "text" else ' class="number"'
    return f'<th scope="col"{style}>{text}</th>'


def _cell(column: Column, cell: Cell, is_first: bool, best: str | None) -> str:
    text = _display(column, cell)
    if is_first:
        return f'<th scope="row">{html.escape(text)}</th>'
    if column.kind == "text":
        return f'<td class="break">{prose(text)}</td>'
    inner = html.escape(text)
    if best is not None and text == best:
        inner = f'<span class="best">{inner}</span>'
    if isinstance(cell, Interval) and cell.low is not None:
        low, high = (_display(column, bound) for bound in (cell.low, cell.high))
        inner += f'<span class="range">{html.escape(low)} … {html.escape(high)}</span>'
    return f'<td class="number">{inner}</td>'


def _display(column: Column, cell: Cell) -> str:
    value = cell.value if isinstance(cell, Interval) else cell
    if value is None:
        return _MISSING
    if isinstance(value, str) or column.kind == "text":
        return str(value)
    if math.isnan(value):
        return "NaN"
    if column.kind == "count":
        return f"{value:,.0f}"
    shown = round(100 * value if column.kind == "share" else value, column.digits) + 0.0  # no −0.0
    return f"{shown:.{column.digits}f}".replace("-", "−")


def _best_display(table: Table, index: int) -> str | None:
    """How the best value of a column is displayed; None where the column has none, or where all rows are equal."""
    column = table.columns[index]
    if column.best is None:
        return None
    shown: dict[str, float] = {}
    for row in table.rows:
        cell = row.cells[index]
        value = cell.value if isinstance(cell, Interval) else cell
        if not row.is_reference and isinstance(value, int | float) and not math.isnan(value):
            shown[_display(column, value)] = value
    if len(shown) < 2:
        return None
    choose = max if column.best == "highest" else min
    return choose(shown, key=lambda text: shown[text])


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def _whisker(interval: Interval, tone: Tone, reach: float) -> str:
    """A small drawing of the interval on the scale -reach..reach."""
    if interval.low is None or interval.high is None:
        return "<div></div>"  # keeps the rows of neighbouring cards in line
    low, middle, high = (120 + 116 * bound / reach for bound in (interval.low, interval.value, interval.high))
    return (
        '<svg viewBox="0 0 240 24" aria-hidden="true"><path d="M4 9H236" stroke="currentColor" stroke-opacity=".35"/>'
        '<path d="M120 3V15" stroke="currentColor"/>'
        '<text x="120" y="23.5" font-size="8.5" text-anchor="middle" fill="currentColor">0</text>'
        f'<g class="{tone}" stroke="currentColor" stroke-width="2.2" stroke-linecap="round">'
        f'<path d="M{low:.1f} 9H{high:.1f}"/><circle cx="{middle:.1f}" cy="9" r="3.6" fill="currentColor"/></g></svg>'
    )
