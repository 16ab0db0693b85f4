"""Traps in measured gaze.

In: a drawn world and the takes that get them. Out: other gaze files, `Trap`s.
"""

import shutil
from pathlib import Path

from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.traps.record import Trap
from hwm.data.toyworld.traps.takes import Takes

EMPTY = range(12, 15)
OUTSIDE = {22: (-35.5, 700.0), 23: (700.0, 1408.0), 24: (1500.25, -3.0)}
"""Row → point in pixels of the 1408 × 1408 frame; 1408 itself is the first pixel that is not in it."""
GAP = range(40, 52)


def damaged_rows(out: Path, plan: TakePlan) -> list[Trap]:
    """Empty cells, points outside the picture and missing rows, in one file."""
    path = out / "takes" / plan.name / "eye_gaze" / "general_eye_gaze_2d.csv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines):
        frame, clock, _, _ = line.split(",")
        if number in EMPTY:
            line = f"{frame},{clock},,"
        elif number in OUTSIDE:
            line = f"{frame},{clock},{OUTSIDE[number][0]:.4f},{OUTSIDE[number][1]:.4f}"
        if number not in GAP:
            kept.append(line)
    # Written under a new name: a personalised file may be a link to this one.
    aside = path.with_suffix(".new")
    aside.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")
    aside.replace(path)
    where, unknown = (path.relative_to(out).as_posix(),), "gaze is unknown at these times, and known again after them"
    made = (
        ("empty-gaze-cells", "cells are empty", list(EMPTY)),
        ("gaze-outside-the-picture", "points lie outside the picture", list(OUTSIDE)),
        ("gaze-gap", "rows are missing", list(GAP)),
    )
    return [
        Trap(name, "gaze", what, where, "use", None, {}, unknown, {"take": plan.name, "rows": rows})
        for name, what, rows in made
    ]


def missing_file(out: Path, takes: Takes, plan: TakePlan) -> Trap:
    """A take that nobody's eyes were measured in."""
    folder = out / "takes" / plan.name / "eye_gaze"
    shutil.rmtree(folder)
    next(take for take in takes if take["take_name"] == plan.name)["has_trimmed_eye_gaze"] = False
    where = (f"{folder.relative_to(out).as_posix()}/general_eye_gaze_2d.csv",)
    how = "an error that names the file where gaze is asked for; the take itself is used without gaze"
    return Trap(
        "gaze-file-missing", "gaze", "the take has no gaze file", where, "refuse", None, {}, how, {"take": plan.name}
    )
