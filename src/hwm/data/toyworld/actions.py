"""Key steps as verb and noun, and files that several formats share.

In: the leaves of the recipes ("Pour water from the kettle", object `kettle`). Out: the verb (`pour`) and the noun
(`kettle`) that Ego4D and EPIC-KITCHENS label instead of a key step; no two key steps share both.
"""

import csv
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.rules import RECIPES, Step


class Action(NamedTuple):
    """One key step of one take, as verb and noun."""

    start_sec: float
    end_sec: float
    verb: str
    noun: str
    step: Step


def action_of(step: Step) -> tuple[str, str]:
    """Verb and noun of a key step: the first word of its name and its object."""
    return step.name.split()[0].lower(), step.kind


def actions_of(plan: TakePlan) -> list[Action]:
    """The actions of a take in order of time."""
    script = plan.script
    steps = [RECIPES[script.recipe].steps[item] for item in script.steps]
    times = zip(steps, script.starts_sec, script.ends_sec, strict=True)
    return [Action(start, end, *action_of(step), step) for step, start, end in times]


def taxonomy() -> tuple[list[str], list[str]]:
    """All verbs and all nouns, each in alphabetical order."""
    pairs = [action_of(step) for recipe in RECIPES for step in recipe.steps]
    return sorted({verb for verb, _ in pairs}), sorted({noun for _, noun in pairs})


def video_folder(out: Path, plan: TakePlan) -> Path:
    """Where the frame-aligned videos of a take are."""
    return out / "takes" / plan.name / "frame_aligned_videos"


def ego_video(out: Path, plan: TakePlan) -> Path:
    """The ego view of a take."""
    return video_folder(out, plan) / f"{plan.aria}_214-1.mp4"


def link(source: Path, target: Path) -> None:
    """The same file under a second name: a hard link, or a copy where the disk has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
