"""`hwm anticipate CONFIG --checkpoint RUN_OR_FILE`: stage 2, which key step comes next?

Annotated segments → clips that end τ before the step starts (asserted for each) → the frozen world model imagines the
time up to the start → only an attentive probe is trained on what it imagined, with a head for each task of the data set
→ its scores, beside a majority guess and a guess from the previous step's label (`pipelines.scoring`). The record
names the hash of stage 1's predictor, taken before and after the probe was trained.
"""

from collections.abc import Sequence
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
from hwm.engine.assemble import Stage1, load_stage1, predictor_hash, probe_seer
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import start
from hwm.engine.saved_probe import future_slots, load_probe, save_probe, trained_on
from hwm.engine.sweep import ProbeData, SweepResult, logits_of, train_sweep
from hwm.errors import ConfigError, DataError, RunError
from hwm.pipelines.scoring import TaskOutput, labels_of, score_all, write_outputs
from hwm.tokens.features import FeatureRequest, Features, compute_features
from hwm.tokens.source import TokenSource, open_source


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
    """Train and score an anticipator on a frozen world model.

    Raises:
        HwmError: annotations, videos, weights or settings that cannot be used.
    """
    if config.checkpoint is None:
        raise ConfigError("no stage-1 checkpoint was given", fix="hwm anticipate CONFIG --checkpoint runs/NAME")
    fabric = start(config.runtime)
    with RunLog.open(config, "anticipate", resume=False, is_writer=fabric.is_global_zero) as log:
        # Frozen world model
        stage1 = load_stage1(config.checkpoint)
        world = stage1.world.to(fabric.device)
        seer = probe_seer(stage1, config.probe.gaze_point, config.gazelle)
        log.record(
            weights=seer.weights,
            stage1={"source": str(stage1.source), "predictor_sha256": stage1.predictor_sha256},
            protocol=config.protocol.id,
        )
        source = open_source(
            config.tokens,
            seer.observer.to(fabric.device),
            seer.grid,
            seer.weights,
            fabric.device,
            config.runtime.num_workers,
        )

        # Segments and what may be seen of them
        train_table, val_table = _read_tables(config, source, log)
        tasks = train_table.tasks
        given = trained_on(tasks, stage1.predictor_sha256, config)
        saved = None if config.saved_probe is None else load_probe(config.saved_probe, given)
        fps = world.grid.fps
        train = training_views(train_table, config, fps)
        val, left_out = validation_samples(val_table, config, fps)
        _record_samples(log, (train_table, train), (val_table, val, left_out))

        # Features of the imagined future
        rows = [] if saved is not None else [sample for view in train.views for sample in view]
        max_future = max(sample.observation.num_future for sample in rows + val)
        if saved is not None:
            max_future = future_slots(saved, max_future, config)
        features = {
            name: _features(stage1, source, samples, config, max_future, log.folder / f"features-{name}.npy", name)
            for name, samples in (("train", rows), ("val", val))
            if samples
        }

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
        if predictor_hash(world.predictor) != stage1.predictor_sha256:
            raise RunError("the world model changed while the probe was trained", fix="please report this as a bug")

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
    """The clip that the world model sees; the guard is asked once more, right before decoding.

    Raises:
        DataError: the clip would show what the protocol forbids.
    """
    segment, observation, horizon_sec = sample
    guard(observation, segment.start_sec, segment.end_sec, horizon_sec, protocol, segment.row)
    return ClipRequest(segment.video, observation.first_step, observation.num_steps, centre_square(segment.video))


def _observe(segment: Segment, horizon_sec: float, config: AnticipateConfig, fps: float) -> Observation | Exclusion:
    protocol = config.protocol
    observed = observe_before(
        segment.start_sec, segment.end_sec, horizon_sec, fps, protocol.num_steps, protocol.id, segment.row
    )
    if isinstance(observed, Observation) and observed.last_step >= num_grid_steps(segment.video.duration_sec, fps):
        return Exclusion(segment.row, "the anchor lies after the end of the video")  # legacy: a step may end later
    return observed


def _read_tables(config: AnticipateConfig, source: TokenSource, log: RunLog) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments whose videos the token source can use; no video may be in both.

    Raises:
        DataError: annotations that cannot be used, or a take in both files.
    """
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
    videos: dict[Path, VideoInfo] = {s.video.path: s.video for s in (*train.segments, *val.segments)}
    with Progress("videos", total=len(videos)) as bar:
        unusable = {e.item: e.reason for e in source.prepare(tuple(videos.values()), bar.set)}
    log.record(
        annotations={"train": dict(train.counts), "val": dict(val.counts)},
    )
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
    stage1: Stage1,
    source: TokenSource,
    samples: Sequence[Sample],
    config: AnticipateConfig,
    max_future: int,
    path: Path,
    name: str,
) -> Features:
    requests = [
        FeatureRequest(clip_request(sample, config.protocol.id), sample.observation.num_future) for sample in samples
    ]
    with Progress(f"{name} features", total=len(requests)) as bar:
        return compute_features(
            stage1.world,
            source,
            requests,
            config.probe.inputs,
            config.probe.gaze_point,
            max_future,
            path,
            config.probe.batch_size,
            bar.set,
        )


def _probe_data(features: Features, samples: Sequence[Sample], tasks: Sequence[Task]) -> ProbeData:
    return ProbeData(
        features.tokens_STND,
        features.valid_ST,
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
