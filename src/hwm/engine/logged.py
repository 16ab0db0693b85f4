"""What a run logged, read back: files that grew by a line at a time, whose last line a crash may have cut short.

A run folder -> the lines of `metrics.jsonl` or `timings.jsonl`; those up to a step, and how many of these are lost.
"""

import json
import re
from pathlib import Path

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
"""Files of a run folder that grow by a line at a time."""

_BEGINS = re.compile(r'\{"step": (\d+),')
"""How each line begins, so that one without an end still tells its step."""


def read_metrics(folder: Path, name: str = METRICS) -> list[dict[str, float]]:
    """All lines of a run's `metrics.jsonl` (or `timings.jsonl`); a last line cut short by a crash is left out."""
    return [json.loads(line) for line in _lines(folder / name) if _step_of(line) is not None]


def lines_until(path: Path, step: int) -> tuple[list[str], int]:
    """The whole lines of steps up to and including `step`, and how many more of these there were that cannot be read.

    A line that cannot be read is one of them where a line of them comes after it, or where it still tells its own step.
    What a crash cut short is the last line and of a later step: that step will be done again, and nothing is lost.
    """
    lines = _lines(path)
    steps = [_step_of(line) for line in lines]
    kept = [number for number, found in enumerate(steps) if found is not None and found <= step]
    last = kept[-1] if kept else -1
    lost = [
        number
        for number, found in enumerate(steps)
        if found is None and (number < last or ((said := _BEGINS.match(lines[number])) and int(said[1]) <= step))
    ]
    return [lines[number] for number in kept], len(lost)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
