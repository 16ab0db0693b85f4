"""Traps in the Ego4D files of a toy world.

In: a drawn world with those formats. Out: changed annotations and videos, `Trap`s.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwm.data.toyworld.formats import TakePlan, stable_uuid
from hwm.data.toyworld.formats_ego4d import EGO4D, video_uid
from hwm.data.toyworld.remux import shifted
from hwm.data.toyworld.traps.record import Trap, edit_json
from hwm.data.toyworld.traps.videos import LATE_SEC, cut_off

_ANNOTATIONS = EGO4D / "annotations"


def lta_traps(out: Path, train: Sequence[TakePlan], seed: int) -> list[Trap]:
    """A clip that is missing, one whose stream starts late, an action without length."""
    clips = out / EGO4D / "clips"
    missing, late, flat = (stable_uuid(seed, "lta-clip", plan.name) for plan in train[:3])
    (clips / f"{missing}.mp4").unlink()
    original = clips / f"{late}.mp4"
    kept = out / "truth" / "originals" / "ego4d-clips" / original.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    original.replace(kept)
    shifted(kept, original, LATE_SEC)
    rows: dict[str, list[int]] = {}

    def edit(content: Any) -> None:
        first = next(row for row in content["clips"] if row["clip_uid"] == flat)
        last = max(row["action_idx"] for row in content["clips"] if row["clip_uid"] == flat)
        names = ("action_clip_end_sec", "action_clip_end_frame")
        ends = {name: first[name.replace("end", "start")] for name in names}
        content["clips"].append(first | ends | {"action_idx": last + 1})
        for uid in (missing, late):
            rows[uid] = [number for number, row in enumerate(content["clips"]) if row["clip_uid"] == uid]
        rows[flat] = [len(content["clips"]) - 1]

    edit_json(out / _ANNOTATIONS / "fho_lta_train.json", edit)
    named = {uid: tuple(f"fho_lta_train.json#clips[{number}]" for number in numbers) for uid, numbers in rows.items()}
    facts = {"clip": original.relative_to(out).as_posix(), "original": kept.relative_to(out).as_posix()}
    return [
        Trap("lta-clip-missing", "ego4d-lta", "annotated, but the clip is not on disk", named[missing], "exclude",
             "the video file is not on disk", {}, "every action of the clip is left out", {}),
        Trap("lta-clip-starts-late", "ego4d-lta", f"the clip's first frame has the timestamp {LATE_SEC} s",
             named[late], "use", None, {}, "seconds count from the first frame of the clip", facts),
        Trap("lta-zero-length-action", "ego4d-lta", "an action that ends when it starts", named[flat], "exclude",
             "action_clip_end_sec is not after action_clip_start_sec", {}, "left out", {}),
    ]  # fmt: skip


def goalstep_traps(out: Path, train: Sequence[TakePlan], val: Sequence[TakePlan], seed: int) -> list[Trap]:
    """Fields that are missing or undocumented, steps beyond their goal, a video that breaks off, a new category."""
    bare, beyond, unsure, broken = (video_uid(plan, seed) for plan in train[:4])
    found: dict[str, Any] = {}

    def edit(content: Any) -> None:
        videos = {video["video_uid"]: video for video in content["videos"]}
        for name in ("is_continued", "is_procedural", "is_relevant"):
            del videos[bare]["segments"][1][name]
        videos[unsure]["segments"][1]["is_relevant"] = "unsure"
        steps = videos[beyond]["segments"]
        videos[beyond]["end_time"] = steps[-2]["start_time"]
        over = steps[-2] | {"start_time": steps[-1]["start_time"] + 0.25, "end_time": steps[-1]["end_time"] + 0.25}
        steps.append(over)
        found["last"], found["broken"] = len(steps) - 1, len(videos[broken]["segments"])

    edit_json(out / _ANNOTATIONS / "goalstep_train.json", edit)
    new = video_uid(val[0], seed)

    def add_category(content: Any) -> None:
        steps = next(video for video in content["videos"] if video["video_uid"] == new)["segments"]
        steps.append(steps[-1] | {"step_category": "Set a timer", "step_description": "set a timer"})
        found["new"] = len(steps) - 1

    edit_json(out / _ANNOTATIONS / "goalstep_valid.json", add_category)
    video = out / EGO4D / "full_scale" / f"{broken}.mp4"
    # The file is a link to the take's own video, which stays whole.
    aside = video.with_suffix(".new")
    cut_off(video, aside)
    aside.replace(video)

    def row(uid: str, number: int) -> str:
        return f"goalstep_train.json#{uid}[{number}]"

    last = found["last"]
    return [
        Trap("goalstep-flags-missing", "ego4d-goalstep", "a step without is_continued, is_procedural, is_relevant",
             (row(bare, 1),), "use", None, {}, "the flags count as unknown", {}),
        Trap("goalstep-beyond-the-goal", "ego4d-goalstep", "steps that last longer than their goal",
             tuple(row(beyond, number) for number in (last - 2, last - 1, last)), "use", None, {},
             "the goal's range is not used to cut its steps", {}),
        Trap("goalstep-overlap", "ego4d-goalstep", "a step that starts within another", (row(beyond, last),), "use",
             None, {}, "used", {}),
        Trap("goalstep-unsure", "ego4d-goalstep", "is_relevant has the undocumented value unsure", (row(unsure, 1),),
             "use", None, {}, "used as any other step", {}),
        Trap("goalstep-video-truncated", "ego4d-goalstep", "the video is a broken-off download",
             tuple(row(broken, number) for number in range(found["broken"])), "exclude", "unreadable video: ", {},
             "every step of the video is left out", {}),
        Trap("goalstep-category-only-in-validation", "ego4d-goalstep", "a category that no training step has",
             (f"goalstep_valid.json#{new}[{found['new']}]",), "exclude", "class not in training", {},
             "left out, and counted: it can never be predicted", {}),
    ]  # fmt: skip
