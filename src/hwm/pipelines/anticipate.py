"""`hwm anticipate CONFIG --checkpoint RUN_OR_FILE`: stage 2, which key step comes next?

Annotated segments → clips that end τ before the step starts (asserted for each) → a frozen backbone (the world model,
or V-JEPA 2's own predictor) imagines what follows → only an attentive probe is trained on that, with a head for each
task of the data set → its scores, beside a majority guess and a guess from the previous step's label
(`pipelines.scoring`). The record names the hash of what is frozen, taken before and after the probe was trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.config import AnticipateConfig
from hwm.data.annotations import read_annotations
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion, check_coverage
from hwm.data.protocol import START_MINUS_TAU, Observation, draw_horizon, guard, observe_before
from hwm.data.segments import ClassTable, Segment, SegmentTable, Task
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import start
from hwm.engine.saved_probe import load_probe, save_probe, trained_on
from hwm.engine.sweep import ProbeData, SweepResult, logits_of, train_sweep
from hwm.errors import DataError, RunError
from hwm.pipelines.scoring import TaskOutput, labels_of, score_all, write_outputs
from hwm.tokens.features import FeatureRequest, Features
from hwm.tokens.foresight import Foresight, open_foresight


class Sample(NamedTuple):
    """A segment and what may be seen of it."""

    segment: Segment
    observation: Observation
    horizon_sec: float


class AnticipateResult(NamedTuple):
    """What stage 2 found; scores are fractions 0..1."""

    folder: Path
    scores: dict[str, dict[str, float]]
    """`probe`, `majority` and `previous step` → metric → value; see `pipelines.scoring`."""
    outputs: tuple[TaskOutput, ...]
    """One a task, in the order of the data set's tasks."""
    samples: tuple[Sample, ...]
    excluded: tuple[Exclusion, ...]

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

    Raises:
        HwmError: annotations, videos, weights or settings that cannot be used.
    """
    fabric = start(config.runtime)
    with RunLog.open(config, "anticipate", resume=False, is_writer=fabric.is_global_zero) as log:
        # Frozen backbone
        foresight = open_foresight(config, fabric.device)
        frozen = foresight.frozen_sha256()
        log.record(**foresight.facts, frozen_sha256=frozen, protocol=config.protocol.id)

        # Segments and what may be seen of them
        train_table, val_table = _usable_tables(config, foresight, log)
        foresight.record(log, {"train": videos_of(train_table), "val": videos_of(val_table)})
        tasks = train_table.tasks
        given = trained_on(tasks, frozen, config)
        saved = None if config.saved_probe is None else load_probe(config.saved_probe, given)
        fps = foresight.fps
        train = training_views(train_table, config, fps)
        val, left_out = validation_samples(val_table, config, fps)
        _record_samples(log, (train_table, train), (val_table, val, left_out))

        # Features of the imagined future
        samples = {"train": [sample for view in train.views for sample in view], "val": val}
        log.record(padded_clips={name: sum(s.observation.num_padded > 0 for s in of) for name, of in samples.items()})
        if saved is not None:
            del samples["train"]
        num_slots = None if saved is None else saved.spec.num_steps
        features = _features(foresight, samples, config.protocol.id, log.folder, num_slots)

        # Probe sweep
        sweep = None
        if saved is None:
            data = _probe_data(features["train"], train.views[0], tasks)
            with Progress(f"stage 2 {config.name}", total=config.probe.num_epochs) as bar:
                sweep = train_sweep(
                    data, {task.name: len(task.classes) for task in tasks}, config.probe, config.seed, fabric.device,
                    lambda done, loss: bar.set(done, loss=loss),
                )  # fmt: skip
        probe = sweep.probe if sweep is not None else saved
        assert probe is not None
        val_data = _probe_data(features["val"], val, tasks)
        logits = logits_of(probe.to(fabric.device), val_data, np.arange(len(val)), 0, fabric.device)
        if foresight.frozen_sha256() != frozen:
            raise RunError("the frozen backbone changed while the probe was trained", fix="please report this as a bug")

        # Scores
        outputs = tuple(TaskOutput(t, logits[t.name], torch.from_numpy(val_data.labels[t.name])) for t in tasks)
        known, asked = ([sample.segment for sample in samples] for samples in (train.views[0], val))
        scores = score_all(outputs, known, asked, val_table.subsets, config.seed)
        result = AnticipateResult(log.folder, scores, outputs, tuple(val), (*val_table.excluded, *left_out))
        save_probe(log.folder / "probe.safetensors", probe, given)
        write_outputs(log.folder, outputs, asked)
        _record(log, result, sweep, config)
        for name in features:
            (log.folder / f"features-{name}.npy").unlink()
        return result


class TrainingViews(NamedTuple):
    """The training segments under V drawn horizons: each view holds the same segments in the same order."""

    views: tuple[list[Sample], ...]
    excluded: tuple[Exclusion, ...]


def training_views(table: SegmentTable, config: AnticipateConfig, fps: float) -> TrainingViews:
    """Draw the horizons of the training segments; one that starts before a drawn horizon is left out of all views.

    Raises:
        DataError: no segment is left.
    """
    views: list[list[Sample]] = [[] for _ in range(config.probe.num_views)]
    excluded: list[Exclusion] = []
    for index, segment in enumerate(table.segments):
        horizons = [
            draw_horizon(config.protocol.train_horizon_sec, config.seed, view, index) for view in range(len(views))
        ]
        seen = [_observe(segment, horizon, config, fps) for horizon in horizons]
        unseen = [observed for observed in seen if isinstance(observed, Exclusion)]
        if unseen:
            excluded.append(unseen[0])
            continue
        for view, observed, horizon in zip(views, seen, horizons, strict=True):
            assert isinstance(observed, Observation)
            view.append(Sample(segment, observed, horizon))
    if not views[0]:
        raise DataError("no training segment can be observed", found="; ".join(e.reason for e in excluded[:3]))
    return TrainingViews(tuple(views), tuple(excluded))


def validation_samples(
    table: SegmentTable, config: AnticipateConfig, fps: float
) -> tuple[list[Sample], list[Exclusion]]:
    """Every validation segment once, at the fixed horizon, and those that cannot be observed.

    Raises:
        DataError: no segment is left.
    """
    samples, excluded = [], []
    for segment in table.segments:
        observed = _observe(segment, config.protocol.horizon_sec, config, fps)
        if isinstance(observed, Exclusion):
            excluded.append(observed)
        else:
            samples.append(Sample(segment, observed, config.protocol.horizon_sec))
    if not samples:
        raise DataError("no validation segment can be observed", found="; ".join(e.reason for e in excluded[:3]))
    return samples, excluded


def clip_request(sample: Sample, protocol: str) -> ClipRequest:
    """The clip that the backbone sees; the guard is asked once more, right before decoding.

    Raises:
        DataError: the clip would show what the protocol forbids.
    """
    segment, observation, horizon_sec = sample
    guard(observation, segment.start_sec, segment.end_sec, horizon_sec, protocol, segment.row)
    return ClipRequest(segment.video, observation.first_step, observation.num_steps, centre_square(segment.video))


def feature_request(sample: Sample, protocol: str) -> FeatureRequest:
    """The clip of a sample and how far ahead its key step starts; see `clip_request`."""
    return FeatureRequest(clip_request(sample, protocol), sample.observation.num_future, sample.horizon_sec)


def _observe(segment: Segment, horizon_sec: float, config: AnticipateConfig, fps: float) -> Observation | Exclusion:
    protocol = config.protocol
    observed = observe_before(
        segment.start_sec, segment.end_sec, horizon_sec, fps, protocol.num_steps, protocol.id, segment.row
    )
    if isinstance(observed, Observation) and observed.last_step >= num_grid_steps(segment.video.duration_sec, fps):
        return Exclusion(segment.row, "the anchor lies after the end of the video")  # legacy: a step may end later
    return observed


def videos_of(table: SegmentTable) -> tuple[VideoInfo, ...]:
    """The videos of a table, each once."""
    return tuple({segment.video.path: segment.video for segment in table.segments}.values())


def read_tables(config: AnticipateConfig, log: RunLog) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments; no video may be in both.

    Raises:
        DataError: annotations that cannot be used, a take in both files, or data that are not the manifest's.
    """
    hold_to_manifest(config.annotations.manifest, log)
    train = read_annotations(config.annotations.train, config.annotations, None)
    val = read_annotations(config.annotations.val, config.annotations, train.tasks)
    both = sorted({s.video.path for s in train.segments} & {s.video.path for s in val.segments})
    if both:
        raise DataError(
            f"{len(both)} videos are annotated in both files",
            expected="validation on other takes",
            found=", ".join(str(path) for path in both[:3]),
            fix="take them out of one of the two annotation files",
        )
    log.record(annotations={"train": dict(train.counts), "val": dict(val.counts)})
    return train, val


def _usable_tables(config: AnticipateConfig, foresight: Foresight, log: RunLog) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments whose videos the backbone can use; see `read_tables`."""
    train, val = read_tables(config, log)
    videos = tuple({video.path: video for table in (train, val) for video in videos_of(table)}.values())
    with Progress("videos", total=len(videos)) as bar:
        unusable = {e.item: e.reason for e in foresight.prepare(videos, bar.set)}
    return _without(train, unusable), _without(val, unusable)


def _record_samples(
    log: RunLog,
    train: tuple[SegmentTable, TrainingViews],
    val: tuple[SegmentTable, Sequence[Sample], Sequence[Exclusion]],
) -> None:
    """What was used and what was left out, the classes, and whether any sample shows its own step."""
    train_table, views = train
    val_table, samples, left_out = val
    log.record_coverage(
        "val segments", expected=val_table.expected, used=len(samples), excluded=[*val_table.excluded, *left_out]
    )
    log.record_coverage(
        "train segments",
        expected=train_table.expected,
        used=len(views.views[0]),
        excluded=[*train_table.excluded, *views.excluded],
    )
    log.record(
        classes={task.name: {"sha256": task.classes.sha256, "count": len(task.classes)} for task in train_table.tasks},
        samples_that_show_the_action=float(np.mean([s.observation.shows_action for s in samples])),
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
    protocol: str,
    folder: Path,
    num_slots: int | None,
) -> dict[str, Features]:
    requests = {name: [feature_request(sample, protocol) for sample in of] for name, of in samples.items()}
    with Progress("features", total=sum(len(of) for of in requests.values())) as bar:
        return foresight.features(requests, folder, bar.set, num_slots)


def _probe_data(features: Features, samples: Sequence[Sample], tasks: Sequence[Task]) -> ProbeData:
    return ProbeData(
        features.tokens_STND,
        features.valid_ST,
        features.gaze_known_ST,
        labels_of(tasks, [sample.segment for sample in samples]),
        tuple(sample.segment.take for sample in samples),
    )


def _record(log: RunLog, result: AnticipateResult, sweep: SweepResult | None, config: AnticipateConfig) -> None:
    """The scores with the protocol they were made under, and how the probe was found."""
    log.record(
        scores=result.scores,
        horizon_sec=config.protocol.horizon_sec,
        shows_the_action=config.protocol.id != START_MINUS_TAU,
    )
    curve = () if sweep is None else sweep.loss_curve
    if sweep is not None:
        log.record(sweep=[probe._asdict() for probe in sweep.scores], winner=sweep.winner)
    for epoch, loss in enumerate(curve, start=1):
        log.write(epoch, {"probe/loss": loss})
    log.write(len(curve), {f"val/{name}": value for name, value in result.scores["probe"].items()})
