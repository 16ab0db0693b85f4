"""One self-contained `report.html`: verdicts, tables, plots, pictures, provenance and everything that was left out.

    report = Report("Does gaze help?", "Toy world, 3 seeds")
    report.section("Scores", "Share right, 1 s before the step starts.")
    report.table(Table(columns, rows))
    report.write(run_folder / "report.html")

The page needs no network, no script and no other file: a content policy inside it forbids all of them. It follows the
reader's light or dark setting, fits a phone, and prints. Each plot, picture and video is also written beside it, under
`figures/`. Files are written aside and renamed, so that a reader never meets half a report.
"""

import csv
import html
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from hwm.errors import RunError, naming
from hwm.evaluation.drawing import Figure
from hwm.evaluation.report_parts import (
    Clip,
    Column,
    Picture,
    Row,
    Table,
    Verdict,
    clip_block,
    data_uri,
    fact_list,
    figure_block,
    picture_strip,
    png_bytes,
    prose,
    table_block,
    verdict_cards,
)
from hwm.terminal import counted

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_EXCLUSIONS_SHOWN = 200


class Report:
    """A page under construction: call the blocks in reading order, then `write`.

    Args:
        title: the heading of the page.
        subtitle: one or two sentences under it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title, self._subtitle = title, subtitle
        self._blocks: list[str] = []
        self._sections: list[str] = []
        self._files: dict[str, bytes] = {}

    def section(self, title: str, lead: str = "") -> None:
        """Start a section; the blocks that follow belong to it, and the table of contents names it."""
        if self._sections:
            self._blocks.append("</section>")
        self._sections.append(title)
        self._blocks.append(f'<section id="section-{len(self._sections)}"><h2>{html.escape(title)}</h2>')
        if lead:
            self._blocks.append(f'<p class="lead">{prose(lead)}</p>')

    def paragraph(self, text: str) -> None:
        """Plain text."""
        self._blocks.append(f"<p>{prose(text)}</p>")

    def note(self, text: str) -> None:
        """A caveat that the reader must not miss, e.g. that estimated attention is not measured gaze."""
        self._blocks.append(f'<p class="note">{prose(text)}</p>')

    def verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Headline cards."""
        self._blocks.append(verdict_cards(verdicts))

    def table(self, table: Table) -> None:
        """A table."""
        self._blocks.append(table_block(table))

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A plot, also written as SVG, PNG and CSV."""
        self._keep(f"{figure.name}.svg", figure.svg.encode())
        self._keep(f"{figure.name}.png", figure.png)
        self._keep(f"{figure.name}.csv", figure.csv.encode())
        self._blocks.append(figure_block(figure, caption))

    def pictures(self, pictures: Sequence[Picture], caption: str = "") -> None:
        """A strip of images, also written as PNG."""
        for picture in pictures:
            self._keep(f"{picture.name}.png", png_bytes(picture.pixels))
        self._blocks.append(picture_strip(pictures, caption))

    def clip(self, clip: Clip) -> None:
        """A short video, also written as MP4."""
        self._keep(f"{clip.name}.mp4", clip.mp4)
        self._blocks.append(clip_block(clip))

    def provenance(self, groups: Mapping[str, Mapping[str, object]]) -> None:
        """Where the numbers come from: groups of names and values (code, weights, data, protocol, machine)."""
        for title, facts in groups.items():
            self._blocks.append(f"<h3>{html.escape(title)}</h3>{fact_list(facts)}")

    def folded(self, title: str, facts: Mapping[str, object]) -> None:
        """Names and values that few readers want, folded away; on paper they are shown."""
        self._blocks.append(f"<details><summary>{html.escape(title)}</summary>{fact_list(facts)}</details>")

    def coverage(self, expected: int, scored: int, exclusions: Sequence[tuple[str, str]]) -> None:
        """How many segments were scored, and each that was not, with its reason.

        Args:
            expected: segments in the annotation.
            scored: segments behind the numbers of the report.
            exclusions: (item, reason) of each of the others.

        Raises:
            RunError: scored and excluded do not add up to expected.
        """
        if scored + len(exclusions) != expected:
            raise RunError(
                "the report does not account for every segment",
                expected=f"{expected} segments",
                found=f"{scored} scored + {len(exclusions)} excluded = {scored + len(exclusions)}",
                fix="this is a defect of the pipeline that wrote the report: a segment was skipped without a reason",
            )
        self.paragraph(f"{scored:,} of {counted(expected, 'segment')} scored; {len(exclusions):,} left out.")
        if not exclusions:
            return
        counts = Counter(reason for _, reason in exclusions).most_common()
        self.table(
            Table([Column("Reason"), Column("Segments", "count")], [Row([reason, count]) for reason, count in counts])
        )
        listing = io.StringIO()
        writer = csv.writer(listing, lineterminator="\n")
        writer.writerows([("item", "reason"), *exclusions])
        self._keep("exclusions.csv", listing.getvalue().encode("utf-8", "backslashreplace"))
        shown = Table(
            [Column("Segment"), Column("Reason")], [Row(list(pair)) for pair in exclusions[:_EXCLUSIONS_SHOWN]]
        )
        summary = "Each of them" if len(exclusions) <= _EXCLUSIONS_SHOWN else f"The first {_EXCLUSIONS_SHOWN}"
        link = data_uri(listing.getvalue().encode("utf-8", "backslashreplace"), "text/csv")
        self._blocks.append(
            f"<details><summary>{summary}</summary>{table_block(shown)}</details>"
            f'<p class="downloads"><a download="exclusions.csv" href="{link}">All as CSV</a></p>'
        )

    def html(self) -> str:
        """The page as it stands."""
        style = files("hwm.evaluation").joinpath("report.css").read_text(encoding="utf-8")
        links = "".join(
            f'<li><a href="#section-{number}">{html.escape(title)}</a></li>'
            for number, title in enumerate(self._sections, start=1)
        )
        subtitle = f'<p class="subtitle">{prose(self._subtitle)}</p>' if self._subtitle else ""
        title = html.escape(self._title)
        close = "</section>" if self._sections else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{style}</style></head>\n"
            f'<body><div class="frame"><nav aria-label="Contents"><ul>{links}</ul></nav>'
            f"<main><header><h1>{title}</h1>{subtitle}</header>\n{chr(10).join(self._blocks)}{close}\n"
            "<footer>Written by hwm. This page is complete: it loads nothing and runs no script.</footer>"
            "</main></div></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page to `path` and its plots, pictures and videos to `figures/` beside it; returns `path`."""
        folder = path.parent / "figures"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._files:
            folder.mkdir(exist_ok=True)
        for name, content in self._files.items():
            _replace(folder / name, content)
        _replace(path, self.html().encode("utf-8", "backslashreplace"))  # file names may hold stray bytes
        return path

    def _keep(self, name: str, content: bytes) -> None:
        if name in self._files:
            raise RunError("two parts of the report have one file name", expected="a name of its own", found=name)
        if Path(name).name != name or name.startswith("."):
            raise RunError("a part of the report has no plain file name", expected="e.g. take-3.png", found=name)
        self._files[name] = content


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            aside.write_bytes(content)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
