"""The toy world in Ego4D's formats: long-term anticipation, Goal-Step and gaze.

In: `TakePlan`s and the folder of a drawn world. Out, below `ego4d/`:

    annotations/fho_lta_{train,val,test_unannotated}.json, fho_lta_taxonomy.json      clips/<clip_uid>.mp4
    annotations/goalstep_{train,valid}.json                                           full_scale/<video_uid>.mp4
    gaze/<video_uid>.csv                                                              some videos only

A video is the ego view of a take. A clip begins at the video's second key frame, so its own seconds are not those of
the video; actions that begin before it are not annotated. Frame numbers count frames of the toy videos. With at least
two validation takes the last one is the test split, whose actions have no labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hwm.config import ToyWorldConfig
from hwm.data.toyworld.actions import Action, actions_of, ego_video, link, taxonomy, write_csv
from hwm.data.toyworld.formats import TakePlan, load_truth, stable_number, stable_uuid, write_json
from hwm.data.toyworld.remux import cut_from, key_times_sec
from hwm.data.toyworld.rules import RECIPES
from hwm.data.toyworld.timeline import CARRY_SEC, REACH_SEC

EGO4D = Path("ego4d")
GAZE_EVERY = 3
"""Every third video has measured gaze."""
GAZE_SAMPLES_A_FRAME = 3
_GAZE_COLUMNS = (
    "component_idx,component_timestamp_s,canonical_timestamp_s,gaze_timestamp,world_index,confidence,norm_pos_x,"
    "norm_pos_y,base_data"
)
_HEADER = {"version": "v2", "date": "2023-11-14", "description": "toy world"}


class Clip(NamedTuple):
    """A cut of a video."""

    video_uid: str
    clip_uid: str
    start_sec: float
    """Where the clip begins in the video."""
    end_sec: float


def video_uid(plan: TakePlan, seed: int) -> str:
    """Ego4D's name of a take's ego view."""
    return stable_uuid(seed, "ego4d", plan.name)


def split_of(plan: TakePlan, plans: Sequence[TakePlan]) -> str:
    """`train`, `val` or `test_unannotated`."""
    val = [other.number for other in plans if other.split == "val"]
    return "test_unannotated" if len(val) > 1 and plan.number == val[-1] else plan.split


def lta_rows(clip: Clip, actions: Sequence[Action], fps: int, labelled: bool) -> list[dict[str, Any]]:
    """Entries of `clips` for one clip: its actions with both times, those of the clip and those of the video."""
    verbs, nouns = taxonomy()
    inside = [action for action in actions if action.start_sec >= clip.start_sec]
    rows = []
    for number, action in enumerate(inside):
        start, end = (round(time - clip.start_sec, 5) for time in (action.start_sec, action.end_sec))
        row: dict[str, Any] = {"video_uid": clip.video_uid, "clip_uid": clip.clip_uid}
        row |= _span("clip_parent", clip.start_sec, clip.end_sec, fps)
        row |= _span("interval", clip.start_sec, clip.end_sec, fps)
        row |= _span("action_clip", start, end, fps) | {"clip_id": 0, "action_idx": number}
        if labelled:
            row |= {"verb": action.verb, "noun": action.noun}
            row |= {"verb_label": verbs.index(action.verb), "noun_label": nouns.index(action.noun)}
        rows.append(row)
    return rows


def _span(name: str, start_sec: float, end_sec: float, fps: int) -> dict[str, float | int]:
    seconds = {f"{name}_start_sec": start_sec, f"{name}_end_sec": end_sec}
    return seconds | {f"{name}_start_frame": round(start_sec * fps), f"{name}_end_frame": round(end_sec * fps)}


def write_lta(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Write clips and their actions."""
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test_unannotated": []}
    for plan in plans:
        split, video = split_of(plan, plans), ego_video(out, plan)
        keys = key_times_sec(video)
        clip = Clip(
            video_uid(plan, config.seed),
            stable_uuid(config.seed, "lta-clip", plan.name),
            keys[1],
            plan.script.duration_sec,
        )
        cut_from(video, out / EGO4D / "clips" / f"{clip.clip_uid}.mp4", clip.start_sec)
        rows[split] += lta_rows(clip, actions_of(plan), config.fps, labelled=split != "test_unannotated")
    folder = out / EGO4D / "annotations"
    for split, clips in rows.items():
        # Files of the data set are in no order: actions are found by clip and action_idx.
        clips = sorted(clips, key=lambda row: stable_number(config.seed, *map(str, row.values()), below=1 << 32))
        write_json(folder / f"fho_lta_{split}.json", _HEADER | {"split": split, "clips": clips})
    verbs, nouns = taxonomy()
    write_json(folder / "fho_lta_taxonomy.json", {"verbs": verbs, "nouns": nouns})


def goal_of(plan: TakePlan, seed: int) -> dict[str, Any]:
    """One entry of `videos` in `goalstep_<split>.json`."""
    recipe, actions = RECIPES[plan.script.recipe], actions_of(plan)
    seen: set[int] = set()
    steps = []
    for number, action in enumerate(actions):
        kinds = ("essential", "essential", "essential", "optional", "irrelevant", "unsure")
        relevance = kinds[stable_number(seed, "relevance", plan.name, number, below=len(kinds))]
        step = _goal_segment(
            action.start_sec, action.end_sec, action.step.name, action.step.unique_id in seen, relevance
        )
        # Not every step is annotated in parts.
        parts = _parts(action) if stable_number(seed, "parts", plan.name, number, below=2) else []
        steps.append(step | {"segments": parts})
        seen.add(action.step.unique_id)
    return {
        "video_uid": video_uid(plan, seed),
        "start_time": round(actions[0].start_sec - 0.5, 5),
        "end_time": round(actions[-1].end_sec + 0.5, 5),
        "goal_category": f"COOKING:{recipe.key.upper()}",
        "goal_description": recipe.scenario,
        "goal_wikihow_url": "",
        "summary": [action.step.name for action in actions],
        "is_procedural": True,
        "segments": steps,
    }


def _goal_segment(start: float, end: float, category: str, continued: bool, relevance: str) -> dict[str, Any]:
    return {
        "start_time": start,
        "end_time": end,
        "step_category": category,
        "step_description": f"{category[0].lower()}{category[1:]}",
        "is_continued": continued,
        "is_procedural": True,
        "is_relevant": relevance,
        "summary": [],
    }


def _parts(action: Action) -> list[dict[str, Any]]:
    """Sub-steps: fetch, work, put back, as the hand does them."""
    times = (action.start_sec, action.start_sec + REACH_SEC + CARRY_SEC, action.end_sec - CARRY_SEC, action.end_sec)
    names = (f"Fetch the {action.noun}", action.step.name, f"Put the {action.noun} back")
    spans = zip(times, times[1:], names, strict=False)
    return [_goal_segment(round(a, 5), round(b, 5), name, False, "essential") for a, b, name in spans]


def write_goalstep(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Write goals, steps, sub-steps and the videos they are of."""
    for split, name in (("train", "train"), ("val", "valid")):
        goals = [goal_of(plan, config.seed) for plan in plans if plan.split == split]
        content = _HEADER | {"split": name, "videos": goals}
        write_json(out / EGO4D / "annotations" / f"goalstep_{name}.json", content)
    for plan in plans:
        link(ego_video(out, plan), out / EGO4D / "full_scale" / f"{video_uid(plan, config.seed)}.mp4")


def write_gaze(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Write the gaze of some videos: several samples a frame, y counted upwards, most columns empty."""
    for plan in plans:
        if plan.number % GAZE_EVERY == 0:
            points = load_truth(out, plan.name).gaze_ego
            rows = [
                ("", "", "", "", frame, 1.0, f"{x:.6f}", f"{1 - y:.6f}", "")
                for frame, (x, y) in enumerate(points)
                for _ in range(GAZE_SAMPLES_A_FRAME)
            ]
            path = out / EGO4D / "gaze" / f"{video_uid(plan, config.seed)}.csv"
            write_csv(path, _GAZE_COLUMNS.split(","), rows)
