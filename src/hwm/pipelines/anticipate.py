"""`hwm anticipate CONFIG --checkpoint RUN_OR_FILE`: stage 2, which key step comes next?

Annotated segments → clips that end τ before the step starts (asserted for each) → a frozen backbone (the world model,
or V-JEPA 2's own predictor) imagines what follows → only an attentive probe is trained on that, with a head for each
task of the data set → its scores, beside a majority guess and a guess from the previous step's label
(`pipelines.scoring`). The record names the hash of what is frozen, taken before and after the probe was trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import AnticipateConfig, ProtocolConfig
from hwm.data.annotations import read_annotations
from hwm.data.exclusions import Exclusion, check_coverage
from hwm.data.protocol import START_MINUS_TAU
from hwm.data.seen_videos import told_copies
from hwm.data.segments import ClassTable, SegmentTable, Task
from hwm.data.video import VideoInfo
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.progress import LateProgress, Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag, start
from hwm.engine.saved_probe import load_probe, save_probe, trained_on
from hwm.engine.sweep import ProbeData, SweepResult, logits_of, train_sweep
from hwm.errors import DataError, RunError
from hwm.models.step_probe import StepProbe
from hwm.pipelines.reach import warn_of_horizons, warn_of_length
from hwm.pipelines.samples import (
    Sample,
    TrainingViews,
    feature_request,
    training_views,
    validation_samples,
)
from hwm.pipelines.scoring import (
    NO_SEQUENCE,
    TaskOutput,
    baseline_logits,
    labels_of,
    remove_outputs,
    score_all,
    write_baselines,
    write_outputs,
)
from hwm.terminal import counted
from hwm.tokens.features import Features
from hwm.tokens.foresight import Foresight, open_foresight


class HorizonResult(NamedTuple):
    """The probe at one horizon; see `AnticipateResult`."""

    horizon_sec: float
    scores: dict[str, dict[str, float]]
    outputs: tuple[TaskOutput, ...]
    samples: tuple[Sample, ...]
    excluded: tuple[Exclusion, ...]
    """Segments that cannot be observed at this horizon."""


class AnticipateResult(NamedTuple):
    """What stage 2 found; scores are fractions 0..1."""

    folder: Path
    scores: dict[str, dict[str, float]]
    """`probe`, `majority` and `previous step` → metric → value; see `pipelines.scoring`."""
    outputs: tuple[TaskOutput, ...]
    """One a task, in the order of the data set's tasks."""
    samples: tuple[Sample, ...]
    excluded: tuple[Exclusion, ...]
    curve: tuple[HorizonResult, ...] = ()
    """The same probe at each horizon of `protocol.curve_sec`, in that order."""
    asked_apart: bool = False
    """Whether the loss asked the classes apart (`focal`): probabilities are sigmoids."""

    @property
    def logits_SC(self) -> Tensor:  # noqa: N802 - carries its axes
        """Logits of the last task (`step`, `action`) for the next segment."""
        return self.outputs[-1].logits_SZC[:, 0]

    @property
    def labels_S(self) -> Tensor:  # noqa: N802
        """Labels of the last task for the next segment; `UNKNOWN` where the class is not in training."""
        return self.outputs[-1].labels_SZ[:, 0]

    @property
    def classes(self) -> ClassTable:
        """Classes of the last task."""
        return self.outputs[-1].task.classes


def run(config: AnticipateConfig) -> AnticipateResult:
    """Train and score an anticipator on a frozen backbone.

    SIGTERM ends it with `EXIT_STOPPED` until the probe is trained (the scores then take seconds and are finished). It
    has no state of its own to save: tokens that were cached stay, and the run is done again from its start.

    Raises:
        HwmError: annotations, videos, weights or settings that cannot be used.
    """
    fabric = start(config.runtime)
    log = RunLog.open(config, "anticipate", resume=False)
    with log, StopFlag() as stop, _features_removed(log.folder):
        remove_outputs(log.folder, config.saved_probe)

        # Frozen backbone
        foresight = open_foresight(config, fabric.device)
        if config.runtime.compile:
            foresight.compile(log.warn)
        frozen = foresight.frozen_sha256()
        log.record(**foresight.facts, frozen_sha256=frozen, protocol=config.protocol.id)

        # Segments and what may be seen of them
        train_table, val_table = _usable_tables(config, foresight, log, stop)
        foresight.record(log, {"train": videos_of(train_table), "val": videos_of(val_table)})
        tasks = train_table.tasks
        given = trained_on(tasks, frozen, config)
        saved = None if config.saved_probe is None else load_probe(config.saved_probe, given)
        fps = foresight.fps
        train = training_views(train_table, config, fps)
        horizons = {"val": config.protocol.horizon_sec} | {curve_name(tau): tau for tau in config.protocol.curve_sec}
        val = {name: validation_samples(val_table, config, fps, tau) for name, tau in horizons.items()}
        _record_samples(log, (train_table, train), val_table, val)
        warn_of_horizons(log, config.protocol)

        # Features of the imagined future
        samples = {"train": [sample for view in train.views for sample in view]}
        samples |= {name: of for name, (of, _) in val.items()}
        warn_of_length(log, foresight.trained_steps, samples)
        log.record(padded_clips={name: sum(s.observation.num_padded > 0 for s in of) for name, of in samples.items()})
        if saved is not None:
            del samples["train"]
        num_slots = None if saved is None else saved.spec.num_steps
        features = _features(foresight, samples, config.protocol, log.folder, num_slots, stop)

        # Probe sweep
        sweep = None
        if saved is None:
            data = _probe_data(features["train"], train.views[0], tasks)
            with Progress(f"stage 2 {config.name}", total=config.probe.num_epochs) as bar:
                sweep = train_sweep(
                    data, {task.name: len(task.classes) for task in tasks}, config.probe, config.seed, fabric.device,
                    lambda done, loss: bar.set(done, loss=loss), fabric.autocast, stop.checked(lambda: None),
                )  # fmt: skip
        probe = sweep.probe if sweep is not None else saved
        assert probe is not None
        probe.to(fabric.device)
        said = {name: _outputs(probe, features[name], of, tasks, fabric.device) for name, (of, _) in val.items()}
        if foresight.frozen_sha256() != frozen:
            raise RunError("the frozen backbone changed while the probe was trained", fix="please report this as a bug")

        # Scores
        known = [sample.segment for sample in train.views[0]]
        scored = []
        for name, (of, left_out) in val.items():
            asked = [sample.segment for sample in of]
            scores = score_all(said[name], known, asked, val_table.subsets, config.seed)
            scored.append(HorizonResult(horizons[name], scores, said[name], tuple(of), tuple(left_out)))
            suffix = name.removeprefix("val")
            write_outputs(log.folder, said[name], asked, suffix)
            write_baselines(log.folder, said[name], baseline_logits(said[name], known, asked), suffix)
        main, *curve = scored
        excluded = (*val_table.excluded, *main.excluded)
        apart = config.probe.loss == "focal"
        result = AnticipateResult(log.folder, main.scores, main.outputs, main.samples, excluded, tuple(curve), apart)
        save_probe(log.folder / "probe.safetensors", probe, given)
        _record(log, result, sweep, config)
        return result


def curve_name(horizon_sec: float) -> str:
    """The set of validation samples at a horizon of the curve, e.g. `val-2s`; its files end in what follows `val`."""
    return f"val-{horizon_sec:g}s"


def videos_of(table: SegmentTable) -> tuple[VideoInfo, ...]:
    """The videos of a table, each once."""
    return tuple({segment.video.path: segment.video for segment in table.segments}.values())


def read_tables(config: AnticipateConfig, log: RunLog, stop: StopFlag) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments; no video may be in both. Ends between two videos where `stop` is up.

    Raises:
        DataError: annotations that cannot be used, a take in both files, or data that are not the manifest's.
    """
    annotations = config.annotations
    hold_to_manifest(annotations.manifest, log, stop)
    with LateProgress("train videos probed") as told:
        train = read_annotations(annotations.train, annotations, None, stop.checked(told))
    with LateProgress("val videos probed") as told:
        val = read_annotations(annotations.val, annotations, train.tasks, stop.checked(told))
    both = sorted({s.video.path for s in train.segments} & {s.video.path for s in val.segments})
    if both:
        raise DataError(
            f"the two annotation files share {counted(len(both), 'video')}",
            expected="validation on other takes",
            found=", ".join(str(path) for path in both[:3]),
            fix="take them out of one of the two annotation files",
        )
    if copies := told_copies((s.video.path for s in train.segments), (s.video.path for s in val.segments)):
        log.warn(copies)
    if val.swapped_names:
        log.warn(f"classes of validation have names of other classes: {'; '.join(val.swapped_names[:3])}")
    log.record(annotations={"train": dict(train.counts), "val": dict(val.counts)})
    return train, val


@contextmanager
def _features_removed(folder: Path) -> Iterator[None]:
    """However the run ends, the features, which may be large and nobody reads again, do not stay."""
    try:
        yield
    finally:
        for path in folder.glob("features-*.npy"):
            path.unlink()


def _usable_tables(
    config: AnticipateConfig, foresight: Foresight, log: RunLog, stop: StopFlag
) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments whose videos the backbone can use; see `read_tables`, `_require_unseen`."""
    train, val = read_tables(config, log, stop)
    _require_unseen(foresight, val, config, log)
    videos = tuple({video.path: video for table in (train, val) for video in videos_of(table)}.values())
    with Progress("videos", total=len(videos)) as bar:
        unusable = {e.item: e.reason for e in foresight.prepare(videos, stop.checked(bar.set))}
    return _without(train, unusable), _without(val, unusable)


def _require_unseen(foresight: Foresight, val: SegmentTable, config: AnticipateConfig, log: RunLog) -> None:
    """No take is scored that the world model was trained on, or the record says which.

    Raises:
        DataError: there are such takes, and the configuration does not allow them.
    """
    log.record(validation_takes_seen=None)
    if foresight.seen is None:
        if config.backbone.kind == "hwm":
            log.warn(
                "the world model does not say which videos it was trained on: whether it has seen the validation takes "
                "is not known"
            )
        return
    seen = foresight.seen.takes_among(val.segments)
    log.record(validation_takes_seen=seen)
    if not seen:
        return
    num_takes = len({segment.take for segment in val.segments})
    said = f"stage 1 was trained on {len(seen)} of the {num_takes} validation takes"
    shown = "; ".join(f"{take} ({video})" for take, video in list(seen.items())[:3])
    if not config.allow_seen_takes:
        raise DataError(
            said,
            expected="validation on takes that the world model has never seen, from any camera",
            found=shown + ("; …" if len(seen) > 3 else ""),
            fix="train stage 1 without them, score other takes, or say that it is meant: allow_seen_takes=true",
        )
    log.warn(f"{said}, and allow_seen_takes=true lets them be scored: {shown}")


def _record_samples(
    log: RunLog,
    train: tuple[SegmentTable, TrainingViews],
    val_table: SegmentTable,
    val: Mapping[str, tuple[Sequence[Sample], Sequence[Exclusion]]],
) -> None:
    """What was used and what was left out, the classes, and whether any sample shows its own step."""
    train_table, views = train
    for name, (samples, left_out) in val.items():
        excluded = [*val_table.excluded, *left_out]
        log.record_coverage(f"{name} segments", expected=val_table.expected, used=len(samples), excluded=excluded)
    log.record_coverage(
        "train segments",
        expected=train_table.expected,
        used=len(views.views[0]),
        excluded=[*train_table.excluded, *views.excluded],
    )
    log.record(
        classes={task.name: {"sha256": task.classes.sha256, "count": len(task.classes)} for task in train_table.tasks},
        samples_that_show_the_action=float(np.mean([s.observation.shows_action for s in val["val"][0]])),
    )


def _without(table: SegmentTable, unusable: dict[str, str]) -> SegmentTable:
    """The table without the segments of videos that cannot be used, each with the reason."""
    kept = tuple(s for s in table.segments if str(s.video.path) not in unusable)
    lost = tuple(Exclusion(s.row, unusable[str(s.video.path)]) for s in table.segments if str(s.video.path) in unusable)
    excluded = table.excluded + lost
    check_coverage("the choice of segments", table.expected, len(kept), len(excluded))
    return table._replace(segments=kept, excluded=excluded)


def _features(
    foresight: Foresight,
    samples: Mapping[str, Sequence[Sample]],
    protocol: ProtocolConfig,
    folder: Path,
    num_slots: int | None,
    stop: StopFlag,
) -> dict[str, Features]:
    requests = {
        name: [feature_request(sample, protocol.id, protocol.beyond_start_sec) for sample in of]
        for name, of in samples.items()
    }
    with Progress("features", total=sum(map(len, requests.values()))) as bar:
        return foresight.features(requests, folder, stop.checked(bar.set), num_slots)


def _probe_data(features: Features, samples: Sequence[Sample], tasks: Sequence[Task]) -> ProbeData:
    labels = labels_of(tasks, [sample.segment for sample in samples])
    takes = tuple(sample.segment.take for sample in samples)
    return ProbeData(features.tokens_STND, features.valid_ST, features.gaze_known_ST, labels, takes)


def _outputs(
    probe: StepProbe, features: Features, samples: Sequence[Sample], tasks: Sequence[Task], device: torch.device
) -> tuple[TaskOutput, ...]:
    """What the probe says of the samples, one a task."""
    data = _probe_data(features, samples, tasks)
    logits = logits_of(probe, data, np.arange(len(samples)), 0, device)
    return tuple(TaskOutput(task, logits[task.name], torch.from_numpy(data.labels[task.name])) for task in tasks)


def _record(log: RunLog, result: AnticipateResult, sweep: SweepResult | None, config: AnticipateConfig) -> None:
    """The scores with the protocol they were made under, and how the probe was found."""
    by_horizon = {config.protocol.horizon_sec: result.scores} | {at.horizon_sec: at.scores for at in result.curve}
    log.record(
        scores=result.scores,
        scores_by_horizon={f"{tau:g}": scores for tau, scores in by_horizon.items()},
        horizon_sec=config.protocol.horizon_sec,
        shows_the_action=config.protocol.id != START_MINUS_TAU,
    )
    if result.scores["probe"].get("num_sequences") == 0:
        log.warn(NO_SEQUENCE)
    curve = () if sweep is None else sweep.loss_curve
    if sweep is not None:
        log.record(sweep=[probe._asdict() for probe in sweep.scores], winner=sweep.winner)
    for epoch, loss in enumerate(curve, start=1):
        log.write(epoch, {"probe/loss": loss})
    named = {"val": result.scores["probe"]} | {curve_name(at.horizon_sec): at.scores["probe"] for at in result.curve}
    log.write(len(curve), {f"{of}/{name}": value for of, scores in named.items() for name, value in scores.items()})
