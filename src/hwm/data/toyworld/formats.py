"""Writing a toy world in Ego-Exo4D's own formats, and reading back the truth that goes with it.

Inputs: `TakePlan`s (who, what, where) and arrays of truth. Outputs: the content of `takes.json`,
`annotations/keystep_{train,val}.json` and `annotations/splits.json`; the files `eye_gaze/general_eye_gaze_2d.csv`
(10 Hz, pixels of the upright 1408 x 1408 frame) and `truth/<take>.npz`. All identifiers are functions of the seed.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwm.data.toyworld.rules import RECIPES, Recipe, Script
from hwm.errors import DataError

GAZE_SIDE_PX = 1408
"""Side of the upright frame in whose pixels Ego-Exo4D gives 2-D gaze."""
GAZE_HZ = 10


class TakePlan(NamedTuple):
    """One take before it is drawn."""

    number: int
    """Place in `takes.json`."""
    name: str
    split: str
    """`train` or `val`."""
    person: int
    aria: str
    """Name of the head-worn camera: `aria01`, `aria02`, … or plain `aria`."""
    script: Script


class Truth(NamedTuple):
    """What is known of every frame of a take; F frames, O objects. Points are (x, y), 0..1 of the upright frame."""

    times_sec: np.ndarray
    """[F] float64"""
    gaze_exo: np.ndarray
    """[F, 2] float64: attended point in the exo view."""
    gaze_ego: np.ndarray
    """[F, 2] float64: attended point in the ego view."""
    head_box: np.ndarray
    """[F, 4] float64: left, top, right, bottom of the head in the exo view."""
    object_index: np.ndarray
    """[F] int64: the attended object, -1 for the neutral place; changes with the first frame of a turn."""
    turned: np.ndarray
    """[F] bool: the gaze rests on an object (False at the neutral place and within a turn)."""
    step_index: np.ndarray
    """[F] int64: the step going on, as an index in the recipe (also the index of its object); -1 between steps."""
    hands_exo: np.ndarray
    """[F, 2 hands, 2] float64: left and right hand of the exo view."""
    object_changed: np.ndarray
    """[F, O] bool: the object is in its second look."""
    objects_exo: np.ndarray
    """[F, O, 2] float64: middle of each object in the exo view."""
    objects_ego: np.ndarray
    """[F, O, 2] float64: middle of each object in the ego view."""
    object_kinds: tuple[str, ...]
    object_slots: tuple[int, ...]
    """0-3 the row near the person, 4-7 the row near the exo camera, each from left to right in the exo view."""


def stable_uuid(seed: int, *words: object) -> str:
    """A version-4 UUID that is a function of the seed and the words."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def stable_number(seed: int, *words: object, below: int) -> int:
    """A whole number 0 <= n < `below` that is a function of the seed and the words."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:8], "big") % below


def write_json(path: Path, value: Any) -> None:
    """Write JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _taxonomy(recipe: Recipe) -> dict[str, Any]:
    """A scenario's tree: the scenario, its parts, its leaves; only leaves carry `unique_id`."""
    parents = tuple(dict.fromkeys(step.parent for step in recipe.steps))
    nodes: list[dict[str, Any]] = [
        {"id": 0, "is_leafnode": False, "name": recipe.scenario, "parent_id": None, "parent_name": None}
    ]
    for number, name in enumerate(parents, start=1):
        nodes.append({"id": number, "is_leafnode": False, "name": name, "parent_id": 0, "parent_name": recipe.scenario})
    for step in recipe.steps:
        nodes.append(
            {
                "id": step.local_id,
                "is_leafnode": True,
                "name": step.name,
                "parent_id": parents.index(step.parent) + 1,
                "parent_name": step.parent,
                "unique_id": step.unique_id,
            }
        )
    return {str(node["id"]): node for node in nodes}


def _take_annotation(plan: TakePlan, seed: int) -> dict[str, Any]:
    recipe = RECIPES[plan.script.recipe]
    segments = []
    for item, start, end in zip(plan.script.steps, plan.script.starts_sec, plan.script.ends_sec, strict=True):
        step = recipe.steps[item]
        segments.append(
            {
                "start_time": start,
                "end_time": end,
                "step_id": step.local_id,
                "step_name": step.name,
                "step_description": f"C {step.name[0].lower()}{step.name[1:]}",
                "is_essential": True,
                "step_unique_id": step.unique_id,
            }
        )
    return {
        "take_uid": stable_uuid(seed, "take", plan.name),
        "take_name": plan.name,
        "scenario": recipe.scenario,
        "annotation_meta": {
            "annotation_uid": stable_uuid(seed, "annotation", plan.name),
            "annotator_id": stable_number(seed, "annotator", plan.name, below=30),
            "response_time": 1_700_000_000 + plan.number,
            "job_id": 1 + plan.number // 24,
            "response_id": plan.number,
        },
        "segments": segments,
    }


def keystep_json(plans: Iterable[TakePlan], seed: int) -> dict[str, Any]:
    """The content of `keystep_<split>.json` for these takes."""
    takes = [_take_annotation(plan, seed) for plan in plans]
    leaves = {step.unique_id: step.name for recipe in RECIPES for step in recipe.steps}
    return {
        "annotations": {take["take_uid"]: take for take in takes},
        "taxonomy": {recipe.scenario: _taxonomy(recipe) for recipe in RECIPES},
        "vocabulary": {str(unique_id): leaves[unique_id] for unique_id in sorted(leaves)},
    }


def splits_json(plans: Sequence[TakePlan], seed: int) -> dict[str, Any]:
    """The content of `splits.json`."""
    uids = {plan.name: stable_uuid(seed, "take", plan.name) for plan in plans}
    return {
        "split_to_take_uids": {
            split: [uids[plan.name] for plan in plans if plan.split == split] for split in ("train", "val", "test")
        },
        "take_uid_to_split": {uids[plan.name]: plan.split for plan in plans},
        "take_uid_to_benchmark": {uids[plan.name]: ["keystep"] for plan in plans},
    }


def _stream(seed: int, plan: TakePlan, camera: str, stream: str, readable: str) -> dict[str, Any]:
    file = f"{camera}.mp4" if stream == "0" else f"{camera}_{stream}.mp4"
    return {
        "cam_id": camera,
        "stream_id": stream,
        "readable_stream_id": readable,
        "clip_uid": stable_uuid(seed, "clip", plan.name, file),
        "relative_path": f"frame_aligned_videos/{file}",
    }


def _pseudo(camera: str, relative_path: str | None) -> dict[str, Any]:
    entry = {"cam_id": camera, "stream_id": "0", "readable_stream_id": None, "clip_uid": None}
    return {"0": entry | {"relative_path": relative_path}}


def takes_json(plans: Iterable[TakePlan], seed: int) -> list[dict[str, Any]]:
    """The content of `takes.json`."""
    rows = []
    for plan in plans:
        recipe = RECIPES[plan.script.recipe]
        ego, exo = {"cam_id": plan.aria, "is_ego": True, "device_type": "aria"}, {"cam_id": "cam01", "is_ego": False}
        rows.append(
            {
                "take_uid": stable_uuid(seed, "take", plan.name),
                "take_name": plan.name,
                "root_dir": f"takes/{plan.name}",
                "capture_uid": stable_uuid(seed, "capture", plan.person, plan.script.recipe),
                "capture": {
                    "capture_name": plan.name.rsplit("_", 1)[0],
                    "cameras": [
                        ego | {"relative_path": f"{plan.aria}.vrs"},
                        exo | {"device_type": "hero10", "relative_path": "cam01"},
                    ],
                },
                "participant_uid": 1000 + plan.person,
                "university_name": "toy",
                "task_name": recipe.scenario,
                "parent_task_name": "Cooking",
                "duration_sec": plan.script.duration_sec,
                "best_exo": "cam01",
                "task_start_sec": None,
                "task_end_sec": None,
                "timesync_start_idx": 0,
                "timesync_end_idx": round(plan.script.duration_sec * 30),
                "is_dropped": False,
                "validated": True,
                "has_trimmed_eye_gaze": True,
                "frame_aligned_videos": {
                    plan.aria: {
                        "slam-left": _stream(seed, plan, plan.aria, "1201-1", "slam-left"),
                        "rgb": _stream(seed, plan, plan.aria, "214-1", "rgb"),
                    },
                    "cam01": {"0": _stream(seed, plan, "cam01", "0", "0")},
                    "collage": _pseudo("collage", "frame_aligned_videos/ego_preview.mp4"),
                    "best_exo": _pseudo("best_exo", None),
                },
            }
        )
    return rows


def write_gaze_csv(path: Path, points: np.ndarray, first_timestamp_us: int) -> None:
    """Write 2-D gaze, one row each 0.1 s.

    Args:
        path: `general_eye_gaze_2d.csv`.
        points: [S, 2] float64, 0..1 of the upright ego frame.
        first_timestamp_us: the head-worn device's own clock at the first video frame, in microseconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["frame_num,tracking_timestamp_us,x,y"]
    for number, (x, y) in enumerate(points * GAZE_SIDE_PX):
        lines.append(f"{number},{first_timestamp_us + number * 1_000_000 // GAZE_HZ},{x:.4f},{y:.4f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save_truth(path: Path, truth: Truth) -> None:
    """Write `truth/<take>.npz`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: np.array(value) for name, value in truth._asdict().items()}
    np.savez_compressed(path, **arrays)


def load_truth(out: Path, take_name: str) -> Truth:
    """Read back what is known of every frame of a take.

    Args:
        out: folder of the toy world.
        take_name: e.g. `toy_tea_03_2`.

    Raises:
        DataError: there is no such take in this toy world.
    """
    path = Path(out) / "truth" / f"{take_name}.npz"
    if not path.is_file():
        raise DataError(f"no truth for take {take_name}", expected=str(path), fix="make the world: hwm toyworld OUT")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in Truth._fields}
    arrays["object_kinds"] = tuple(arrays["object_kinds"].tolist())
    arrays["object_slots"] = tuple(arrays["object_slots"].tolist())
    return Truth(**arrays)
