"""Traps in the EPIC-KITCHENS files of a toy world.

In: a drawn world with that format. Out: changed annotations and videos, `Trap`s.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from hwm.data.toyworld.actions import ego_video
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.formats_epic import (
    COLUMNS,
    EPIC,
    NTSC_60,
    class_lists,
    epic_splits,
    frame_at_60,
    timestamp,
    video_id_of,
    video_path,
)
from hwm.data.toyworld.remux import resampled
from hwm.data.toyworld.traps.record import Trap

NTSC_30 = Fraction(30000, 1001)


def epic_traps(out: Path, plans: Sequence[TakePlan]) -> list[Trap]:
    """Frame numbers of another rate, a missing video, odd times."""
    train = epic_splits(plans)["train"]
    drift, slow, missing, odd = train[0], train[1], train[2], train[3]
    original = ego_video(out, slow)
    aside = out / video_path(slow).with_suffix(".new.mp4")
    resampled(original, aside, NTSC_30)
    aside.replace(out / video_path(slow))
    (out / video_path(missing)).unlink()
    path = out / EPIC / "annotations" / "EPIC_100_train.csv"
    names = {plan: _narrations(path, plan) for plan in (drift, slow, missing)}
    template = _first_line(path, odd)
    at_zero = _added(path, template, f"{video_id_of(odd)}_90", (0.0, 1.25))
    flat = _added(path, template, f"{video_id_of(odd)}_91", (5.0, 5.0))
    val_path, new = path.with_name("EPIC_100_validation.csv"), epic_splits(plans)["validation"][0]
    verbs, nouns = class_lists(train)
    changes = {"verb": "tear", "verb_class": str(verbs.index("tear"))}
    changes |= {"noun": "kettle", "noun_class": str(nouns.index("kettle")), "narration": "tear kettle"}
    pair = _added(val_path, _first_line(val_path, new), f"{video_id_of(new)}_90", (6.0, 8.0), changes)
    by_time = "rows are placed by their timestamps; start_frame and stop_frame are not read"
    return [
        Trap("epic-frames-of-60", "epic", "start_frame is 60 a second, the video has 59.94", names[drift], "use", None,
             {}, by_time, _rate(out, drift, NTSC_60)),
        Trap("epic-frames-of-60-at-29.97", "epic", "start_frame is 60 a second, the video has 29.97", names[slow],
             "use", None, {}, by_time, _rate(out, slow, NTSC_30)),
        Trap("epic-video-missing", "epic", "annotated, but the video is not on disk", names[missing], "exclude",
             "the video file is not on disk", {}, "every action of the video is left out", {}),
        Trap("epic-at-zero", "epic", "an action that starts with the first frame", (at_zero,), "use", None, {},
             "used by the reader; the protocol leaves it out, since it starts before the horizon", {}),
        Trap("epic-zero-length", "epic", "an action that stops when it starts", (flat,), "exclude",
             "stop_timestamp is not after start_timestamp", {}, "left out", {}),
        Trap("epic-action-only-in-validation", "epic", "verb and noun are in training, but never together", (pair,),
             "use", None, {}, "used for verb and noun; its action is unknown and not scored", {}),
    ]  # fmt: skip


def _rate(out: Path, plan: TakePlan, fps: Fraction) -> dict[str, Any]:
    original = ego_video(out, plan).relative_to(out).as_posix()
    return {"video": video_path(plan).as_posix(), "original": original, "fps": float(fps)}


def _narrations(path: Path, plan: TakePlan) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    mine = [line.split(",")[0] for line in lines if line.split(",")[2] == video_id_of(plan)]
    return tuple(f"{path.name}#{name}" for name in mine)


def _first_line(path: Path, plan: TakePlan) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.split(",")[2] == video_id_of(plan)).split(",")


def _added(
    path: Path, cells: list[str], name: str, span: tuple[float, float], more: dict[str, str] | None = None
) -> str:
    """Append a copy of a line with another name, other times and other values; the name of the row."""
    start, end = span
    changes = (more or {}) | {
        "narration_id": name,
        "narration_timestamp": timestamp(start, 3),
        "start_timestamp": timestamp(start),
        "stop_timestamp": timestamp(end),
        "start_frame": str(frame_at_60(start)),
        "stop_frame": str(frame_at_60(end)),
    }
    line = [changes.get(column, cell) for column, cell in zip(COLUMNS, cells, strict=True)]
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(",".join(line) + "\n")
    return f"{path.name}#{name}"
