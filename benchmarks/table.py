"""Figures as one line each, and as the Markdown table between the markers of docs/speed.md."""

from collections.abc import Mapping, Sequence
from datetime import date

from benchmarks.measure import Figure, Outcome, Skipped
from hwm.errors import ConfigError

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
HEADER = "| figure | what | median (quartiles) | bar | met | equal |\n|---|---|---|---|---|---|"
VERDICT = {True: "yes", False: "**no**", None: ""}


def one_line(outcome: Outcome) -> str:
    """For the terminal, while the suite runs."""
    if isinstance(outcome, Skipped):
        return f"{outcome.name}: not measured: {outcome.reason}"
    said = (
        f"{outcome.name}: {_value(outcome)} (bar {_bar(outcome) or 'none'}) {VERDICT[outcome.met]} {outcome.agreement}"
    )
    return said + (f"; {outcome.note}" if outcome.note else "")


def markdown(machine: Mapping[str, str], outcomes: Sequence[Outcome], remark: str = "") -> str:
    """The machine, the table, and a note for each figure that has one."""
    about = "; ".join(f"{name} {text}" for name, text in machine.items())
    lines = [f"Measured {date.today().isoformat()} on: {about}.", *([remark] if remark else []), "", HEADER]
    lines += [_row(outcome) for outcome in outcomes]
    notes = [f"- `{figure.name}`: {figure.note}" for figure in outcomes if isinstance(figure, Figure) and figure.note]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def into_document(text: str, table: str) -> str:
    """The document with what stands between the markers replaced.

    Raises:
        ConfigError: the markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError("the document has no place for the table", expected=f"{BEGIN} and later {END}, once each")
    return text[: text.index(BEGIN)] + f"{BEGIN}\n{table}\n{END}" + text[text.index(END) + len(END) :]


def _row(outcome: Outcome) -> str:
    if isinstance(outcome, Skipped):
        return f"| `{outcome.name}` | {outcome.what} | not measured: {outcome.reason} | | | |"
    cells = (
        f"`{outcome.name}`", outcome.what, _value(outcome), _bar(outcome), VERDICT[outcome.met], outcome.agreement
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _value(figure: Figure) -> str:
    spread = figure.value
    return f"{spread.median:.3g} {figure.unit} ({spread.low:.3g} – {spread.high:.3g})"


def _bar(figure: Figure) -> str:
    return "" if figure.bar is None else f"{'≤' if figure.at_most else '≥'} {figure.bar:g} {figure.unit}"
