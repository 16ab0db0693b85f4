"""The toy world in the format of EPIC-KITCHENS-100.

In: `TakePlan`s and the folder of a drawn world. Out, below `epic/`:

    annotations/EPIC_100_{train,validation}.csv                        15 columns, one row an action
    annotations/EPIC_100_{verb,noun}_classes.csv
    annotations/EPIC_100_{tail_verbs,tail_nouns,unseen_participant_ids_validation}.csv
    P01/videos/P01_01.MP4

A video is the ego view of a take. `start_frame` and `stop_frame` are 60 times the seconds, whatever the rate of the
video, as in half of the data set: the first video of each split has 59.94 frames a second, the others the toy world's.
Validation holds the validation takes (participants unseen in training) and the last of several takes of each other.
"""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from hwm.config import ToyWorldConfig
from hwm.data.toyworld.actions import Action, actions_of, ego_video, link, taxonomy, write_csv
from hwm.data.toyworld.formats import TakePlan
from hwm.data.toyworld.remux import resampled

EPIC = Path("epic")
ANNOTATED_FPS = 60
"""What the annotators took for the rate of all videos."""
NTSC_60 = Fraction(60000, 1001)
TAIL_SHARE = 0.2
"""Tail classes are the rarest ones that together make up at most this share of the training actions."""
COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip


def participant_of(plan: TakePlan) -> str:
    """E.g. `P01`."""
    return f"P{plan.person + 1:02d}"


def video_id_of(plan: TakePlan) -> str:
    """E.g. `P01_03`: the third take of participant 1."""
    return f"{participant_of(plan)}_{int(plan.name.rsplit('_', 1)[1]):02d}"


def video_path(plan: TakePlan) -> Path:
    """Below the world's folder."""
    return EPIC / participant_of(plan) / "videos" / f"{video_id_of(plan)}.MP4"


def epic_splits(plans: Sequence[TakePlan]) -> dict[str, list[TakePlan]]:
    """Takes of `train` and of `validation`."""
    takes: dict[int, list[TakePlan]] = {}
    for plan in plans:
        takes.setdefault(plan.person, []).append(plan)
    last = {group[-1].number for group in takes.values() if len(group) > 1}
    validation = [plan for plan in plans if plan.split == "val" or plan.number in last]
    return {"train": [plan for plan in plans if plan not in validation], "validation": validation}


def class_lists(train: Sequence[TakePlan]) -> tuple[list[str], list[str]]:
    """Verbs and nouns by class number, the most frequent of training first."""
    actions = [action for plan in train for action in actions_of(plan)]
    counts = Counter(action.verb for action in actions), Counter(action.noun for action in actions)
    verbs, nouns = (
        sorted(names, key=lambda name: (-count[name], name)) for names, count in zip(taxonomy(), counts, strict=True)
    )
    return verbs, nouns


def tail(classes: Sequence[str], used: Sequence[str]) -> list[int]:
    """Numbers of the rare classes, ascending; `used` holds the class of each training action."""
    counts, total = Counter(used), 0
    for number in reversed(range(len(classes))):
        total += counts[classes[number]]
        if total > TAIL_SHARE * len(used):
            return list(range(number + 1, len(classes)))
    return list(range(len(classes)))


def timestamp(seconds: float, digits: int = 2) -> str:
    """`HH:mm:ss.SS`."""
    hours, rest = divmod(round(seconds * 10**digits), 3600 * 10**digits)
    minutes, rest = divmod(rest, 60 * 10**digits)
    whole, part = divmod(rest, 10**digits)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}.{part:0{digits}d}"


def frame_at_60(seconds: float) -> int:
    """The annotators' frame number of a time with two decimals; exact, where floats would put 2.05 s below 123."""
    return ANNOTATED_FPS * round(100 * seconds) // 100


def row_of(plan: TakePlan, number: int, action: Action, classes: tuple[list[str], list[str]]) -> tuple[object, ...]:
    """One line of the annotation."""
    verbs, nouns = classes
    start, end = round(action.start_sec, 2), round(action.end_sec, 2)
    noun_class = nouns.index(action.noun)
    return (
        f"{video_id_of(plan)}_{number}", participant_of(plan), video_id_of(plan),
        timestamp(max(0.0, start - 0.25), 3), timestamp(start), timestamp(end),
        frame_at_60(start), frame_at_60(end),
        f"{action.verb} {action.noun}", action.verb, verbs.index(action.verb), action.noun, noun_class,
        str([action.noun]), str([noun_class]),
    )  # fmt: skip


def write_epic(out: Path, plans: Sequence[TakePlan], config: ToyWorldConfig) -> None:
    """Write videos, actions, classes and the lists of rare classes and new participants."""
    splits, folder = epic_splits(plans), out / EPIC / "annotations"
    classes = class_lists(splits["train"])
    for split, chosen in splits.items():
        rows = [
            row_of(plan, number, action, classes) for plan in chosen for number, action in enumerate(actions_of(plan))
        ]
        write_csv(folder / f"EPIC_100_{split}.csv", COLUMNS, rows)
        for number, plan in enumerate(chosen):
            if number:
                link(ego_video(out, plan), out / video_path(plan))
            else:
                resampled(ego_video(out, plan), out / video_path(plan), NTSC_60)
    actions = [action for plan in splits["train"] for action in actions_of(plan)]
    used = [action.verb for action in actions], [action.noun for action in actions]
    for kind, names, counted in zip(("verb", "noun"), classes, used, strict=True):
        lines = [(number, name, str([name]), "toy") for number, name in enumerate(names)]
        write_csv(folder / f"EPIC_100_{kind}_classes.csv", ("id", "key", "instances", "category"), lines)
        write_csv(folder / f"EPIC_100_tail_{kind}s.csv", (kind,), [(number,) for number in tail(names, counted)])
    seen = {participant_of(plan) for plan in splits["train"]}
    unseen = sorted({participant_of(plan) for plan in splits["validation"]} - seen)
    path = folder / "EPIC_100_unseen_participant_ids_validation.csv"
    write_csv(path, ("participant_id",), [(name,) for name in unseen])
