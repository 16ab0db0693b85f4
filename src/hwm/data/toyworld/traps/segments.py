"""Traps in the key-step annotations: rows that cannot be used, and odd ones that can.

In: a `KeystepFiles` and the takes that get them. Out: changed annotations, `Trap`s.
"""

from typing import Any

from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.traps.record import Trap
from hwm.data.toyworld.traps.rows import KeystepFiles

VAL_ONLY_CLASS = (1999, "Set a timer")


def odd_but_used(files: KeystepFiles, plan: TakePlan) -> list[Trap]:
    """A step at time 0, two that overlap, one that is written twice."""
    steps = files.segments(plan)
    first = steps[0] | {"start_time": 0.0, "end_time": 1.25}
    over = steps[2] | {"start_time": steps[1]["start_time"] + 0.25, "end_time": steps[2]["start_time"] + 0.5}
    twice = dict(steps[3])
    made = (
        ("segment-at-zero", "a step that starts with the first frame", first,
         "used by the reader; the protocol leaves it out, since it starts before the horizon"),
        ("overlapping-segments", "a step that starts within another", over, "used"),
        ("repeated-segment", "a step that is written twice", twice, "used twice, and counted as repeated"),
    )  # fmt: skip
    traps = []
    for name, what, fields, how in made:
        rows = (files.add(plan, fields), *files.add_flat(plan, _times(fields)))
        traps.append(Trap(name, "ego-exo4d", what, rows, "use", None, {}, how, _told(fields)))
    return traps


def unusable(files: KeystepFiles, plan: TakePlan) -> list[Trap]:
    """Rows with faults of their own."""
    step = files.segments(plan)[1]
    start = step["start_time"]
    after_start = "end_time is not after start_time"
    made = (
        ("zero-length-segment", "a step that ends when it starts", step | {"end_time": start}, after_start),
        ("reversed-segment", "a step that ends before it starts", step | {"end_time": start - 0.5}, after_start),
        ("missing-start-time", "a step with an empty start", step | {"start_time": None}, "no start_time"),
        ("missing-step-unique-id", "a step without step_unique_id",
         {key: value for key, value in step.items() if key != "step_unique_id"}, "no step_unique_id"),
    )  # fmt: skip
    traps = []
    for name, what, fields, reason in made:
        rows: tuple[str, ...] = (files.add(plan, fields),)
        if name == "zero-length-segment":
            rows += files.add_flat(plan, _times(fields))
        traps.append(Trap(name, "ego-exo4d", what, rows, "exclude", reason, {}, "left out", {}))
    return traps


def only_in_validation(files: KeystepFiles, plan: TakePlan) -> Trap:
    """A key step that no training take has."""
    fields = files.segments(plan)[1] | files.add_class(plan, *VAL_ONLY_CLASS)
    return Trap(
        "label-only-in-validation", "ego-exo4d", "a validation step whose class no training take has",
        (files.add(plan, fields),), "exclude", "class not in training", {},
        "left out, and counted: it can never be predicted", {"step_unique_id": VAL_ONLY_CLASS[0]},
    )  # fmt: skip


def after_the_end(files: KeystepFiles, plan: TakePlan) -> Trap:
    """A step that starts when the video is over."""
    start = plan.script.duration_sec + 1.0
    fields = files.segments(plan)[1] | {"start_time": start, "end_time": start + 2.0}
    return Trap(
        "segment-after-the-end", "ego-exo4d", "a step that starts after the last frame", (files.add(plan, fields),),
        "exclude", "starts after the end of the video", {}, "left out; the file's claim of its length is not believed",
        {"duration_sec": plan.script.duration_sec},
    )  # fmt: skip


def _times(fields: dict[str, Any]) -> dict[str, Any]:
    names = ("start_time", "end_time", "step_unique_id", "step_name")
    return {name: fields[name] for name in names}


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in ("start_time", "end_time", "step_unique_id")}
