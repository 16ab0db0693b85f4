"""`hwm anticipate CONFIG --checkpoint RUN_OR_FILE`: stage 2, which key step comes next?

Annotated segments → clips that end τ before the step starts (asserted for each) → the frozen world model imagines the
time up to the start → only an attentive probe is trained on what it imagined → Top-1, Top-5, mAP, class-mean recall,
beside a majority guess and a guess from the previous step's label. The record names the hash of stage 1's predictor,
taken before and after the probe was trained.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from hwm.config import AnticipateConfig
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion, check_coverage
from hwm.data.keystep import read_keystep
from hwm.data.protocol import START_MINUS_TAU, Observation, draw_horizon, guard, observe_before
from hwm.data.segments import ClassTable, Segment, SegmentTable
from hwm.data.transforms import centre_square
from hwm.data.video import VideoInfo, num_grid_steps
from hwm.engine.assemble import Stage1, load_stage1, predictor_hash, probe_seer
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import start
from hwm.engine.sweep import ProbeData, SweepResult, logits_of, train_sweep
from hwm.errors import ConfigError, DataError, RunError
from hwm.evaluation.baselines import majority_logits, previous_step_logits
from hwm.evaluation.metrics import score
from hwm.tokens.features import FeatureRequest, Features, compute_features
from hwm.tokens.measured import MeasuredSource, with_measured_gaze
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
    """`probe`, `majority` and `previous step` → metric → value."""
    logits_SC: Tensor
    labels_S: Tensor
    samples: tuple[Sample, ...]
    classes: ClassTable
    excluded: tuple[Exclusion, ...]


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
        source = with_measured_gaze(source, config, world)

        # Segments and what may be seen of them
        train_table, val_table = _read_tables(config, source, log)
        if isinstance(source, MeasuredSource):
            source.record(log, {"train": _videos(train_table), "val": _videos(val_table)})
        fps = world.grid.fps
        train = training_views(train_table, config, fps)
        val, left_out = validation_samples(val_table, config, fps)
        log.record_coverage(
            "val segments", expected=val_table.expected, used=len(val), excluded=[*val_table.excluded, *left_out]
        )
        log.record_coverage(
            "train segments",
            expected=train_table.expected,
            used=len(train.views[0]),
            excluded=[*train_table.excluded, *train.excluded],
        )
        log.record(
            classes={"sha256": train_table.classes.sha256, "count": len(train_table.classes)},
            samples_that_show_the_action=float(np.mean([s.observation.shows_action for s in val])),
        )

        # Features of the imagined future
        rows = [sample for view in train.views for sample in view]
        max_future = max(sample.observation.num_future for sample in rows + val)
        features = [
            _features(stage1, source, samples, config, max_future, log.folder / f"features-{name}.npy", name)
            for name, samples in (("train", rows), ("val", val))
        ]

        # Probe sweep
        data = _probe_data(features[0], train.views[0])
        with Progress(f"stage 2 {config.name}", total=config.probe.num_epochs) as bar:
            sweep = train_sweep(
                data, len(train_table.classes), config.probe, config.seed, fabric.device,
                lambda done, loss: bar.set(done, loss=loss),
            )  # fmt: skip
        val_data = _probe_data(features[1], val)
        logits = logits_of(sweep.probe, val_data, np.arange(len(val)), 0, fabric.device)
        if predictor_hash(world.predictor) != stage1.predictor_sha256:
            raise RunError("the world model changed while the probe was trained", fix="please report this as a bug")

        # Scores
        excluded = (*val_table.excluded, *left_out)
        result = _scored(log.folder, logits, train.views[0], val, train_table.classes, excluded)
        _write(log, result, sweep, config)
        for name in ("train", "val"):
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


def _videos(table: SegmentTable) -> tuple[VideoInfo, ...]:
    """The videos of a table, each once."""
    return tuple({segment.video.path: segment.video for segment in table.segments}.values())


def _read_tables(config: AnticipateConfig, source: TokenSource, log: RunLog) -> tuple[SegmentTable, SegmentTable]:
    """Training and validation segments whose videos the token source can use; no video may be in both.

    Raises:
        DataError: annotations that cannot be used, or a take in both files.
    """
    train = read_keystep(config.annotations.train, config.annotations, None)
    val = read_keystep(config.annotations.val, config.annotations, train.classes)
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
            config.probe.gaze_point != "none",
            max_future,
            path,
            config.probe.batch_size,
            bar.set,
        )


def _probe_data(features: Features, samples: Sequence[Sample]) -> ProbeData:
    return ProbeData(
        features.tokens_STND,
        features.valid_ST,
        features.gaze_known_ST,
        np.array([sample.segment.label for sample in samples]),
        tuple(sample.segment.take for sample in samples),
    )


def _scored(
    folder: Path,
    logits: Tensor,
    train: Sequence[Sample],
    val: Sequence[Sample],
    classes: ClassTable,
    excluded: tuple[Exclusion, ...],
) -> AnticipateResult:
    """The probe and the two baselines that see no video, on the same segments."""
    labels = torch.tensor([sample.segment.label for sample in val])
    pairs = [(sample.segment.previous_label, sample.segment.label) for sample in train]
    previous = [sample.segment.previous_label for sample in val]
    guesses = {
        "probe": logits,
        "majority": majority_logits([label for _, label in pairs], len(classes), len(val)),
        "previous step": previous_step_logits(pairs, previous, len(classes)),
    }
    scores = {name: score(guess, labels)._asdict() for name, guess in guesses.items()}
    return AnticipateResult(folder, scores, logits, labels, tuple(val), classes, excluded)


def _write(log: RunLog, result: AnticipateResult, sweep: SweepResult, config: AnticipateConfig) -> None:
    """Per-segment outputs, the probe, and the scores with the protocol they were made under."""
    save_file({"logits": result.logits_SC.contiguous(), "labels": result.labels_S}, log.folder / "outputs.safetensors")
    rows = [{"row": s.row, "take": s.take, "start_sec": s.start_sec, "label": s.label} for s, _, _ in result.samples]
    classes = {"ids": list(result.classes.ids), "names": list(result.classes.names), "sha256": result.classes.sha256}
    (log.folder / "segments.json").write_text(json.dumps({"classes": classes, "segments": rows}, indent=1) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in sweep.probe.state_dict().items()},
        log.folder / "probe.safetensors",
    )
    log.record(
        scores=result.scores,
        horizon_sec=config.protocol.horizon_sec,
        shows_the_action=config.protocol.id != START_MINUS_TAU,
        sweep=[probe._asdict() for probe in sweep.scores],
        winner=sweep.winner,
    )
    for epoch, loss in enumerate(sweep.loss_curve, start=1):
        log.write(epoch, {"probe/loss": loss})
    log.write(len(sweep.loss_curve), {f"val/{name}": value for name, value in result.scores["probe"].items()})
