"""The scores of stage 2: each task of the data set, its subsets and its sequences, for the probe and the baselines.

Logits of the validation segments and labels of the training segments → predictor → metric → value. With several tasks
a metric is named `<task>/<metric>`; subsets come between (`verb/unseen/class_mean_recall_at_5`). A label whose class is
not in training is not scored, and counted (`num_unknown_labels`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.data.segments import UNKNOWN, Segment, Task
from hwm.engine.runtime import torch_rng_for
from hwm.errors import naming
from hwm.evaluation.baselines import majority_logits, previous_step_logits
from hwm.evaluation.metrics import class_mean_recall, score
from hwm.evaluation.sequence_metrics import edit_distance, sample_sequences
from hwm.weights.files import write_safetensors

Scores = dict[str, float]

BASELINES = ("majority", "previous step")
"""Predictions that see no video."""
VERB, NOUN, ACTION = "verb", "noun", "action"
NO_SEQUENCE = (
    "no validation segment is followed by annotations.sequence_length - 1 others in its clip: no edit distance"
)
PAIR = 1 << 32
"""Verb · PAIR + noun is one number for each pair."""


class TaskOutput(NamedTuple):
    """What the probe said about one task."""

    task: Task
    logits_SZC: Tensor
    labels_SZ: Tensor
    """Below 0 where the class is not in training, or where nothing follows."""


def labels_of(tasks: Sequence[Task], segments: Sequence[Segment]) -> dict[str, np.ndarray]:
    """Task → labels [S, Z] of each segment and of those that follow it."""
    labels = {}
    for index, task in enumerate(tasks):
        labels_SZ = np.full((len(segments), task.num_positions), UNKNOWN, dtype=np.int64)
        for place, segment in enumerate(segments):
            following = (segment.labels, *segment.following_labels)[: task.num_positions]
            labels_SZ[place, : len(following)] = [labels[index] for labels in following]
        labels[task.name] = labels_SZ
    return labels


def qualified(name: str, task: Task, tasks: Sequence[Task]) -> str:
    """A name for one task's value: with the task before it where there are several."""
    return name if len(tasks) == 1 else f"{task.name}/{name}"


def score_all(
    outputs: Sequence[TaskOutput], train: Sequence[Segment], val: Sequence[Segment], subsets: Sequence[str], seed: int
) -> dict[str, Scores]:
    """Scores of the probe and of the two baselines that see no video, on the same segments.

    Args:
        outputs: the probe's, one a task.
        train: training segments that the probe was trained on.
        val: validation segments, in the order of the logits.
        subsets: names of `Segment.subsets` to score on their own.
        seed: of the sampled sequences.
    """
    tasks = [output.task for output in outputs]
    said = {"probe": [output.logits_SZC for output in outputs]} | baseline_logits(outputs, train, val)
    scores: dict[str, Scores] = {}
    for name, logits in said.items():
        scores[name] = {}
        for index, (output, logits_SZC) in enumerate(zip(outputs, logits, strict=True)):
            inside = [segment.subsets[index] if segment.subsets else () for segment in val]
            told = _score_task(logits_SZC[:, 0], output.labels_SZ[:, 0], inside, subsets)
            scores[name] |= {qualified(metric, output.task, tasks): value for metric, value in told.items()}
        scores[name] |= _score_sequences(outputs, logits, val, seed)
    return scores


def baseline_logits(
    outputs: Sequence[TaskOutput], train: Sequence[Segment], val: Sequence[Segment]
) -> dict[str, list[Tensor]]:
    """What the baselines that see no video say of the validation segments: name → logits [S, Z, C], one a task.

    The majority says the same of every position that a task asks for; the previous step speaks of the next one alone.
    """
    said: dict[str, list[Tensor]] = {name: [] for name in BASELINES}
    for index, (task, logits_SZC, _) in enumerate(outputs):
        pairs = [(_or_none(s.previous_labels[index]), s.labels[index]) for s in train if s.labels[index] != UNKNOWN]
        frequency_SC = majority_logits([label for _, label in pairs], len(task.classes), len(val))
        previous = [_or_none(segment.previous_labels[index]) for segment in val]
        said["majority"].append(frequency_SC[:, None].expand(-1, logits_SZC.shape[1], -1))
        said["previous step"].append(previous_step_logits(pairs, previous, len(task.classes))[:, None])
    return said


def write_baselines(
    folder: Path, outputs: Sequence[TaskOutput], said: Mapping[str, Sequence[Tensor]], suffix: str = ""
) -> None:
    """`outputs{suffix}-<baseline>.safetensors` of each baseline, in the form of the probe's own.

    Where a task asks for several positions, what a baseline says of the next segment stands at all of them.

    Args:
        folder: the run folder.
        outputs: the probe's, one a task; they have the labels.
        said: as `baseline_logits` gives it.
        suffix: as in `write_outputs`; the rows are those of the same `segments{suffix}.json`.
    """
    for name, logits in said.items():
        own = [
            output._replace(logits_SZC=logits_SZC[:, :1].expand_as(output.logits_SZC))
            for output, logits_SZC in zip(outputs, logits, strict=True)
        ]
        write_safetensors(_tensors(own), folder / baseline_file(name, suffix))


def baseline_file(name: str, suffix: str = "") -> str:
    """Name of the file with what a baseline said, e.g. `outputs-2s-previous-step.safetensors`."""
    return f"outputs{suffix}-{name.replace(' ', '-')}.safetensors"


def write_outputs(folder: Path, outputs: Sequence[TaskOutput], segments: Sequence[Segment], suffix: str = "") -> None:
    """`outputs.safetensors` (logits and labels of each task) and `segments.json` (rows and class tables) of a run.

    Args:
        folder: the run folder.
        outputs: one a task.
        segments: in the order of the logits.
        suffix: put before both endings, e.g. `-2s` for another horizon.
    """
    write_safetensors(_tensors(outputs), folder / f"outputs{suffix}.safetensors")
    classes = {
        task.name: {"ids": task.classes.ids, "names": task.classes.names, "sha256": task.classes.sha256}
        for task in (output.task for output in outputs)
    }
    rows = [
        {"row": s.row, "take": s.take, "scenario": s.scenario, "start_sec": s.start_sec, "labels": s.labels}
        for s in segments
    ]
    path = folder / f"segments{suffix}.json"
    with naming(path):
        path.write_text(json.dumps({"classes": classes, "segments": rows}, indent=1) + "\n")


def remove_outputs(folder: Path, saved_probe: Path | None) -> None:
    """Remove what an earlier run said in this folder, at other horizons too, and its probe.

    So a run that fails does not leave another's beside its record. A probe that is to be scored stays.
    """
    kept = None if saved_probe is None else saved_probe.resolve().with_suffix("")
    for pattern in ("outputs*.safetensors", "segments*.json", "probe.*"):
        for path in folder.glob(pattern):
            if path.resolve().with_suffix("") != kept:
                path.unlink()


def _tensors(outputs: Sequence[TaskOutput]) -> dict[str, Tensor]:
    """Logits and labels of each task under the names of their file."""
    tasks = [output.task for output in outputs]
    tensors = {}
    for task, logits_SZC, labels_SZ in outputs:
        one = task.num_positions == 1
        tensors[qualified("logits", task, tasks)] = (logits_SZC[:, 0] if one else logits_SZC).contiguous()
        tensors[qualified("labels", task, tasks)] = (labels_SZ[:, 0] if one else labels_SZ).contiguous()
    return tensors


def _or_none(label: int) -> int | None:
    return None if label == UNKNOWN else label


def _score_task(
    logits_SC: Tensor, labels_S: Tensor, inside: Sequence[tuple[str, ...]], subsets: Sequence[str]
) -> Scores:
    """One task on the segments whose class is known; a task or subset with none has its count alone."""
    known_S = labels_S != UNKNOWN
    scores: Scores = {"num_segments": 0}
    if known_S.any():
        scores = dict(score(logits_SC[known_S], labels_S[known_S])._asdict())
    scores["num_unknown_labels"] = int((~known_S).sum())
    for name in subsets:
        chosen_S = known_S & torch.tensor([name in named for named in inside])
        scores[f"{name}/num_segments"] = int(chosen_S.sum())
        if chosen_S.any():
            scores[f"{name}/class_mean_recall_at_5"] = class_mean_recall(logits_SC[chosen_S], labels_S[chosen_S], 5)
    return scores


def _score_sequences(
    outputs: Sequence[TaskOutput], logits: Sequence[Tensor], val: Sequence[Segment], seed: int
) -> Scores:
    """Edit distance at Z of verb, noun and their pairs, over the segments that Z - 1 others follow.

    Empty where no task asks for a sequence, or a predictor has none to give.
    """
    length = max(output.task.num_positions for output in outputs)
    if length == 1 or max(part.shape[1] for part in logits) < length:
        return {}
    whole_S = torch.tensor([len(segment.following_labels) >= length - 1 for segment in val])
    scores: Scores = {"num_sequences": int(whole_S.sum())}
    if not whole_S.any():
        return scores
    guesses, truths = {}, {}
    for output, logits_SZC in zip(outputs, logits, strict=True):
        if output.task.num_positions == length:
            name = output.task.name
            guesses[name] = sample_sequences(logits_SZC[whole_S], torch_rng_for(seed, "sequences", name))
            truths[name] = output.labels_SZ[whole_S]
    if VERB in guesses and NOUN in guesses:
        guesses[ACTION] = guesses[VERB] * PAIR + guesses[NOUN]
        is_known = (truths[VERB] >= 0) & (truths[NOUN] >= 0)
        truths[ACTION] = torch.where(is_known, truths[VERB] * PAIR + truths[NOUN], UNKNOWN)
    return scores | {
        f"{name}/edit_distance_at_{length}": edit_distance(guesses[name], truths[name]) for name in guesses
    }
