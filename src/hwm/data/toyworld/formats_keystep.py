"""The key-step benchmark files of Ego-Exo4D, a second measured gaze, and the small copies of the videos.

In: `TakePlan`s and the folder of a drawn world. Out: `annotations/keystep_benchmark/keystep_segment_{train,val}.json`,
`label_mapping.csv` (classes of the training takes, in an order that is not that of their ids),
`eye_gaze/personalized_eye_gaze_2d.csv` in every third take and `frame_aligned_videos/downscaled/448`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwm.config import ToyWorldConfig
from hwm.data.toyworld.actions import actions_of, ego_video, link, video_folder, write_csv
from hwm.data.toyworld.formats import TakePlan, stable_uuid, write_json

BENCHMARK = Path("annotations") / "keystep_benchmark"
PERSONALIZED_EVERY = 3
"""Every third take has a personalised gaze file."""


def label_mapping(plans: Sequence[TakePlan]) -> list[tuple[int, int, str, str]]:
    """Rows of `label_mapping.csv`: label, `step_unique_id`, name, scenario; labels follow the names' alphabet."""
    used = {action.step.unique_id: action.step.name for plan in plans for action in actions_of(plan)}
    ordered = sorted(used.items(), key=lambda pair: pair[1])
    return [(label, unique_id, name, "cooking") for label, (unique_id, name) in enumerate(ordered)]


def benchmark_json(plans: Sequence[TakePlan], split: str, labels: dict[int, int], seed: int) -> dict[str, Any]:
    """The content of `keystep_segment_<split>.json`: the steps of the mapped classes, as one flat list."""
    segments: list[dict[str, Any]] = []
    for plan in plans:
        for start, end, _, _, step in actions_of(plan):
            if step.unique_id in labels:
                stem = f"{split}/{plan.name}/start{start}_end{end}"
                ego = f"{stem}_{plan.aria}_214-1.mp4"
                segments.append(
                    {
                        "segment_name_list": [ego, f"{stem}_cam01.mp4"],
                        "ego_segment_name": ego,
                        "take_uid": stable_uuid(seed, "take", plan.name),
                        "take_name": plan.name,
                        "start_time": start,
                        "end_time": end,
                        "step_unique_id": step.unique_id,
                        "label_id": labels[step.unique_id],
                        "step_name": step.name,
                    }
                )
    return {"date": "2023-11-14", "description": "toy world", "splits": split, "segments": segments}


def write_keystep(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Write all of the above."""
    by_split = {split: [plan for plan in plans if plan.split == split] for split in ("train", "val")}
    mapping = label_mapping(by_split["train"])
    columns = ("label_id", "step_unique_id", "step_name", "scenario_name")
    write_csv(out / BENCHMARK / "label_mapping.csv", columns, mapping)
    labels = {unique_id: label for label, unique_id, _, _ in mapping}
    for split, chosen in by_split.items():
        content = benchmark_json(chosen, split, labels, config.seed)
        write_json(out / BENCHMARK / f"keystep_segment_{split}.json", content)
    for plan in plans:
        small = video_folder(out, plan) / "downscaled" / "448"
        for video in (ego_video(out, plan), video_folder(out, plan) / "cam01.mp4"):
            link(video, small / video.name)
        if plan.number % PERSONALIZED_EVERY == 0:
            gaze = out / "takes" / plan.name / "eye_gaze"
            link(gaze / "general_eye_gaze_2d.csv", gaze / "personalized_eye_gaze_2d.csv")
