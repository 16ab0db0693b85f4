"""What stage 2 may see of each segment: samples of training and validation, and the clips that the backbone is given.

Segments and horizons → `Sample`s, each guarded by `hwm.data.protocol`, and those that cannot be observed, with reasons.
"""

from typing import NamedTuple

from hwm.config import AnticipateConfig
from hwm.data.clips import ClipRequest
from hwm.data.exclusions import Exclusion
from hwm.data.protocol import Observation, draw_horizon, guard, observe_before
from hwm.data.segments import Segment, SegmentTable
from hwm.data.transforms import centre_square
from hwm.data.video import num_grid_steps
from hwm.errors import DataError
from hwm.tokens.features import FeatureRequest


class Sample(NamedTuple):
    """A segment and what may be seen of it."""

    segment: Segment
    observation: Observation
    horizon_sec: float


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
    table: SegmentTable, config: AnticipateConfig, fps: float, horizon_sec: float | None = None
) -> tuple[list[Sample], list[Exclusion]]:
    """Every validation segment once, at one horizon, and those that cannot be observed.

    Args:
        table: the validation segments.
        config: the run.
        fps: steps a second.
        horizon_sec: τ; None takes `protocol.horizon_sec`.

    Raises:
        DataError: no segment is left.
    """
    tau = config.protocol.horizon_sec if horizon_sec is None else horizon_sec
    samples, excluded = [], []
    for segment in table.segments:
        observed = _observe(segment, tau, config, fps)
        if isinstance(observed, Exclusion):
            excluded.append(observed)
        else:
            samples.append(Sample(segment, observed, tau))
    if not samples:
        reasons = "; ".join(e.reason for e in excluded[:3])
        raise DataError(f"no validation segment can be observed {tau:g} s before it starts", found=reasons)
    return samples, excluded


def clip_request(sample: Sample, protocol: str) -> ClipRequest:
    """The clip that the backbone sees; the guard is asked once more, right before decoding.

    Raises:
        DataError: the clip would show what the protocol forbids.
    """
    segment, observation, horizon_sec = sample
    guard(observation, segment.start_sec, segment.end_sec, horizon_sec, protocol, segment.row)
    return ClipRequest(segment.video, observation.first_step, observation.num_steps, centre_square(segment.video))


def feature_request(sample: Sample, protocol: str, beyond_sec: float = 0.0) -> FeatureRequest:
    """The clip of a sample and how far ahead of it the future is foreseen; see `clip_request`."""
    ahead_sec = sample.horizon_sec + beyond_sec
    return FeatureRequest(clip_request(sample, protocol), sample.observation.num_future, ahead_sec)


def _observe(segment: Segment, horizon_sec: float, config: AnticipateConfig, fps: float) -> Observation | Exclusion:
    protocol = config.protocol
    observed = observe_before(
        segment.start_sec,
        segment.end_sec,
        horizon_sec,
        fps,
        protocol.num_steps,
        protocol.id,
        segment.row,
        protocol.beyond_start_sec,
    )
    if isinstance(observed, Observation) and observed.last_step >= num_grid_steps(segment.video.duration_sec, fps):
        return Exclusion(segment.row, "the anchor lies after the end of the video")  # legacy: a step may end later
    return observed
