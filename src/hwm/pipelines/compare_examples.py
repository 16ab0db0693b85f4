"""Segments that gaze won and lost, as pictures: the last frame seen, the heat map, and both arms' five best guesses.

Two finished stage-2 runs of one seed -> pictures. Samples are made again from the runs' own configuration, so that the
frame shown is the last one that the model saw.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from hwm.config import AnticipateConfig
from hwm.data.annotations import read_annotations
from hwm.engine.assemble import load_stage1, probe_seer
from hwm.engine.progress import LateProgress
from hwm.engine.runlog import read_facts
from hwm.errors import RunError
from hwm.evaluation.experiment import Experiment
from hwm.evaluation.report_parts import Column, Picture, Row, Table
from hwm.models.world_model import WorldModel
from hwm.pipelines.anticipate import AnticipateResult
from hwm.pipelines.examples import GUESSES, choose_examples, guesses, last_frame
from hwm.pipelines.samples import validation_samples
from hwm.pipelines.scoring import TaskOutput, qualified
from hwm.recipes import load_config
from hwm.terminal import counted

_PAIRS = (("world+probe", "none"), ("world", "none"), ("probe", "none"), ("world+probe", "probe"))


class ExamplePair(NamedTuple):
    """The arms whose answers are shown side by side, and the seed."""

    with_gaze: str
    without: str
    seed: int


def choose_pair(experiment: Experiment) -> ExamplePair | None:
    """The widest contrast that the experiment has: gaze everywhere against nowhere, if both are there."""
    for with_gaze, without in _PAIRS:
        if {with_gaze, without} <= experiment.arms.keys():
            if shared := experiment.seeds(with_gaze, without):
                return ExamplePair(with_gaze, without, shared[0])
    return None


def example_pictures(
    experiment: Experiment, pair: ExamplePair, with_gaze: Path, without: Path, count: int
) -> list[Picture]:
    """Annotated frames, in turn won by gaze, lost by it, right in both and wrong in both, each with a table of guesses.

    Args:
        experiment: what both arms said at all horizons.
        pair: the arms and the seed.
        with_gaze: run folder of the arm with gaze.
        without: run folder of the arm without.
        count: frames in all.

    Raises:
        HwmError: a run, a weight file or a video cannot be read.
    """
    reopened, other = reopen(with_gaze), reopen(without)
    pictures = []
    for number, index in enumerate(choose_examples(reopened.result, other.result, count), start=1):
        pixels = last_frame(reopened.world, reopened.result, index)
        sample = reopened.result.samples[index]
        truth = reopened.result.classes.names[int(reopened.result.labels_S[index])]
        table = _over_time(experiment, pair, sample.segment.row, truth)
        caption = _caption(reopened.result, other.result, index)
        pictures.append(Picture(f"example-{number}", pixels, caption, table=table))
    return pictures


class Reopened(NamedTuple):
    """A finished run with its samples and the model that saw them."""

    result: AnticipateResult
    world: WorldModel
    """Its observer has the Gazelle of the probe, where there is one."""


def reopen(folder: Path) -> Reopened:
    """A finished stage-2 run as its pipeline returned it, on the segments whose class is known.

    Raises:
        RunError: the annotations or videos are no longer those that the run has seen.
        HwmError: a file cannot be read.
    """
    config = load_config(AnticipateConfig, folder / "config.yaml")
    assert config.checkpoint is not None, "examples are of runs on a world model"
    stage1 = load_stage1(config.checkpoint)
    seer = probe_seer(stage1, config.probe.gaze_point, config.gazelle)
    with LateProgress("train videos probed") as told:
        tasks = read_annotations(config.annotations.train, config.annotations, None, told).tasks
    with LateProgress("val videos probed") as told:
        table = read_annotations(config.annotations.val, config.annotations, tasks, told)
    rows = [row["row"] for row in json.loads((folder / "segments.json").read_bytes())["segments"]]
    found, _ = validation_samples(table, config, seer.grid.fps)
    samples = {sample.segment.row: sample for sample in found}
    lost = [row for row in rows if row not in samples]
    if lost:
        raise RunError(
            f"{counted(len(lost), 'segment')} of {folder} can no longer be found",
            expected="the data that the run has seen", found=f"no {lost[0]}",
            fix="put the data back, or make the report without frames: --no-frames",
        )  # fmt: skip
    tensors, task = load_file(folder / "outputs.safetensors"), tasks[-1]
    logits, labels = (tensors[qualified(name, task, tasks)] for name in ("logits", "labels"))
    if logits.ndim == 2:
        logits, labels = logits[:, None], labels[:, None]
    known = torch.nonzero(labels[:, 0] >= 0).flatten()
    output = TaskOutput(task, logits[known].float(), labels[known])
    kept = tuple(samples[rows[index]] for index in known.tolist())
    focal = config.probe.loss == "focal"
    result = AnticipateResult(folder, read_facts(folder)["scores"], (output,), kept, (), asked_apart=focal)
    return Reopened(result, WorldModel(seer.observer, stage1.world.predictor, seer.grid).eval())


def _caption(with_gaze: AnticipateResult, without: AnticipateResult, index: int) -> str:
    sample = with_gaze.samples[index]
    truth = with_gaze.classes.names[int(with_gaze.labels_S[index])]
    right = [guesses(result, index)[0][0] == truth for result in (with_gaze, without)]
    outcome = {(True, False): "Won by gaze", (False, True): "Lost by gaze", (True, True): "Right in both"}.get(
        (right[0], right[1]), "Wrong in both"
    )
    return f"{outcome}: {truth}. {sample.segment.take}, {sample.observation.last_time_sec:.2f} s."


def _over_time(experiment: Experiment, pair: ExamplePair, row: str, truth: str) -> Table:
    """The five best guesses of both arms at every horizon, farthest first; the true step is marked."""
    told = [experiment.guesses(arm, pair.seed, row, GUESSES) for arm in (pair.with_gaze, pair.without)]
    columns = [Column("Before"), Column("With gaze", "text"), Column("Without", "text")]
    rows = [
        Row([f"{horizon:g} s", *(_listed(of.get(horizon, []), truth) for of in told)])
        for horizon in sorted(set(told[0]) | set(told[1]), reverse=True)
    ]
    return Table(columns, rows)


def _listed(best: Sequence[tuple[str, float]], truth: str) -> str:
    """One guess a line."""
    return "\n".join(f"{100 * share:.0f} % {'✓ ' if name == truth else ''}{name}" for name, share in best)
