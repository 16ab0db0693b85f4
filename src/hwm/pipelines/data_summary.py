"""What `hwm data check` says at the end: counts, exclusions by reason with the cure, notes, kinds of videos.

`DataCheckResult` -> tables of plain text and the lines below them; the command line makes them safe to show.
"""

import shlex
from collections import Counter
from typing import NamedTuple

from hwm.data.decoding import NOT_THERE
from hwm.data.exclusions import Exclusion, summarise
from hwm.data.manifest import DataManifest
from hwm.pipelines.data_advice import advice_for
from hwm.pipelines.data_check import DataCheckResult
from hwm.terminal import counted


class SummaryTable(NamedTuple):
    """A table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(manifest: DataManifest) -> list[SummaryTable]:
    """The tables of a manifest, those without rows left out."""
    made = [_counts(manifest), _coverage(manifest), _exclusions(manifest), _notes(manifest), _kinds(manifest)]
    return [table for table in made if table.rows]


def closing(result: DataCheckResult, source: str) -> list[str]:
    """The lines below the tables.

    Args:
        result: of the check.
        source: the CONFIG that was checked and what was changed of it, for the command to run next.
    """
    gone = sum(record.reason == NOT_THERE for record in result.manifest.videos.values())
    kept = len(result.manifest.videos) - result.num_checked - gone
    checked = f"{counted(result.num_checked, 'video')} checked in {result.seconds:.1f} s"
    checked = f"{checked}, {kept} unchanged since the last check"
    lines = [f"{checked}, {gone} not there" if gone else checked]
    lines += [f"a run would refuse {part}: {why}" for part, why in result.manifest.unusable.items()]
    lines.append(f"manifest: {result.path}")
    if not result.manifest.unusable:
        lines.append(f"hold a run to it: {source} {result.setting}={shlex.quote(str(result.path))}")
    return lines


def _counts(manifest: DataManifest) -> SummaryTable:
    columns = tuple(dict.fromkeys(name for counts in manifest.counts.values() for name in counts))
    rows = tuple(
        (part, *(str(counts[name]) if name in counts else "" for name in columns))
        for part, counts in manifest.counts.items()
    )
    return SummaryTable("annotations, metadata and disk", ("", *columns), rows)


def _coverage(manifest: DataManifest) -> SummaryTable:
    rows = tuple(
        (name, str(part.expected), str(part.used), str(len(part.excluded))) for name, part in manifest.coverage.items()
    )
    return SummaryTable("expected = used + excluded", ("", "expected", "used", "excluded"), rows)


def _exclusions(manifest: DataManifest) -> SummaryTable:
    rows = []
    for name, part in manifest.coverage.items():
        for reason, count in summarise(Exclusion(item.item, item.reason) for item in part.excluded).items():
            advice = advice_for(reason)
            rows.append((name, str(count), reason, advice.cure if advice else "see docs/data.md"))
    return SummaryTable("left out", ("", "count", "reason", "what to do"), tuple(rows))


def _notes(manifest: DataManifest) -> SummaryTable:
    counts = Counter(note for record in manifest.videos.values() for note in record.notes)
    return SummaryTable("used, and worth a look", ("count", "note"), _by_count(counts))


def _kinds(manifest: DataManifest) -> SummaryTable:
    known = [record.facts for record in manifest.videos.values() if record.facts is not None]
    kinds = Counter(f"{f.width} × {f.height}, {f.fps:g} frames a second, {f.codec}" for f in known)
    chosen = Counter(record.chosen_as for record in manifest.videos.values() if record.facts is not None)
    return SummaryTable("videos in use", ("count", "kind"), (*_by_count(kinds), *_by_count(chosen)))


def _by_count(counts: "Counter[str]") -> tuple[tuple[str, str], ...]:
    return tuple((str(count), name) for name, count in counts.most_common())
