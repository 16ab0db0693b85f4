"""How the command line shows what pipelines return: facts, tables of scores, tables of text.

tell(result)     folder, numbers, and a table for each group of scores
show(table)      a `SummaryTable`
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_only
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from hwm.terminal import printable

if TYPE_CHECKING:
    from hwm.pipelines.data_summary import SummaryTable


_FEW = 4
"""Columns of scores that fit a terminal of 80 characters."""


def tell(result: Any) -> None:
    """Prints what a pipeline found: folder, numbers, and tables of scores."""
    if getattr(rank_zero_only, "rank", 0):  # one of several processes is enough
        return
    facts: Mapping[str, Any] = result if isinstance(result, Mapping) else result._asdict()
    console = Console()
    scores: dict[str, Mapping[str, float]] = {}
    for name, value in facts.items():
        if _holds_only(value, Mapping):
            scores |= value
            continue
        for line in _lines_of(name, value):
            console.print(Text(printable(line)), soft_wrap=True)
    for table in tables_of(scores):
        console.print(table)


def _holds_only(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(inner, kind) for inner in value.values())


def _lines_of(name: str, value: Any) -> list[str]:
    """A fact as lines of text; none for what is no number, text, path or mapping of them, such as a flag."""
    if _holds_only(value, str):
        return [f"{question}: {answer}" for question, answer in value.items()]
    if isinstance(value, Mapping):
        return _numbers(name, {key: inner for key, inner in value.items() if isinstance(inner, int | float)})
    is_told = isinstance(value, str | int | float | Path) and not isinstance(value, bool)
    return [f"{name}: {value}"] if is_told else []


def _numbers(name: str, values: Mapping[str, float]) -> list[str]:
    """Numbers on one line; below it a line for each that is told by step ahead (`skill_1`, `skill_2`, …)."""
    single: list[str] = []
    by_step: dict[str, list[str]] = {}
    for key, value in values.items():
        base, _, step = key.rpartition("_")
        if base and step.isdigit():
            by_step.setdefault(base, []).append(f"{step}: {value:.4g}")
        else:
            single.append(f"{key} {value:.4g}")
    return [f"{name}: {'  '.join(single)}", *(f"  {base} by step: {'  '.join(told)}" for base, told in by_step.items())]


def tables_of(scores: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """One table for each part of `part/metric`: a table of all tasks and subsets would be too wide to read."""
    metrics: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for row in scores.values() for metric in row):
        metrics.setdefault(metric.rpartition("/")[0], []).append(metric)
    tables = []
    for part, names in metrics.items():
        told = {name: row for name, row in scores.items() if any(metric in row for metric in names)}
        cells = {
            (metric, name): _value(row[metric]) if metric in row else ""
            for metric in names
            for name, row in told.items()
        }
        labels = {metric: metric.rpartition("/")[2].replace("_", " ") for metric in names}
        if len(told) <= _FEW:  # many metrics of few: the metrics go down
            table = Table(part, *(Column(name, justify="right") for name in told))
            for metric in names:
                table.add_row(labels[metric], *(cells[metric, name] for name in told))
        else:
            table = Table(part, *(Column(labels[metric], justify="right") for metric in names))
            for name in told:
                table.add_row(name, *(cells[metric, name] for metric in names))
        tables.append(table)
    return tables


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def show(table: "SummaryTable") -> None:
    """Prints a table of text; where the terminal is too narrow for its longest words, each row line by line."""
    console = Console()
    cells = [tuple(printable(cell) for cell in row) for row in (table.columns, *table.rows)]
    widths = _column_widths(cells, console.width - 3 * len(table.columns) - 1)
    if widths is None:
        for line in _row_by_row(table.title, *cells):
            console.print(Text(line), soft_wrap=True)
        return
    head, *rows = cells
    columns = (Column(Text(name), width=width) for name, width in zip(head, widths, strict=True))
    shown = Table(*columns, title=Text(table.title, style="table.title"), title_justify="left")
    for row in rows:
        shown.add_row(*map(Text, row))
    console.print(shown)


def _column_widths(cells: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Widths that break no word: each column's longest word at least, and the rest where most is wanted.

    None where the longest words do not fit beside one another.
    """
    columns = list(zip(*cells, strict=True))
    widths = [max(cell_len(word) for cell in column for word in (*cell.split(), "")) for column in columns]
    wanted = [max(map(cell_len, column)) for column in columns]
    if sum(widths) > room:
        return None
    while sum(widths) < min(room, sum(wanted)):
        lacking = [want - width for want, width in zip(wanted, widths, strict=True)]
        widths[lacking.index(max(lacking))] += 1
    return widths


def _row_by_row(title: str, head: Sequence[str], *rows: Sequence[str]) -> list[str]:
    """The rows of a table as lines: what names the row, and below it each of its other cells."""
    lines = [title]
    for row in rows:
        named, *others = (f"{name}: {cell}" if name else cell for name, cell in zip(head, row, strict=True))
        lines += [named, *(f"  {other}" for other in others)]
    return lines
