"""What stage 1 is validated by: skill of the world model on fixed clips of other videos, and its forecast of gaze.

`validate` runs during training and scores latents (`evaluation.world_scores`); `forecast_gaze` runs at its end and
scores imagined scene tokens as heat maps (`evaluation.gaze_forecast`), where the world model is given gaze.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.config import PretrainConfig
from hwm.data.clips import ClipRequest
from hwm.data.seen_videos import take_name
from hwm.engine.progress import Progress
from hwm.evaluation.gaze_forecast import ForecastScores, GazeReadout, fit_readout, peak_of
from hwm.evaluation.skill_by_take import TakeErrors
from hwm.evaluation.world_scores import ClipId, WorldScores
from hwm.models.world_model import WorldModel
from hwm.tokens.controls import mean_gaze
from hwm.tokens.source import Plan, TokenBatch, TokenSource

Forecasts = dict[str, dict[str, dict[str, float]]]
"""Truth (`estimated`, `measured`) → forecast → metric_k → value."""

MAX_TRAIN_CLIPS = 1024
"""At most so many training clips are read for the read-out and the centre prior of a forecast."""


def chunked(requests: Sequence[ClipRequest], batch_size: int) -> list[list[ClipRequest]]:
    """Clips in batches, in order."""
    return [list(requests[first : first + batch_size]) for first in range(0, len(requests), batch_size)]


def with_targets(
    source: TokenSource, targets: TokenSource | None, batches: Plan
) -> Iterator[tuple[TokenBatch, Tensor]]:
    """Batches and the latents that are to be predicted."""
    if targets is None:
        for batch in source.batches(batches):
            yield batch, batch.z_BTND
        return
    for batch, target in zip(source.batches(batches), targets.batches(batches), strict=True):
        yield batch, target.z_BTND


class Validation(NamedTuple):
    """Scores of the world model on clips of other videos."""

    scores: dict[str, float]
    """`l1`, `copy_l1` and `skill` one step ahead with the true past; for each step k of a roll-out over the second half
    of the clip `skill_k` and the other numbers of `WorldScores`. Skill is 1 − error / error of the copy, left out where
    nothing changes."""
    by_take: TakeErrors
    """What the skill of the roll-out is made of."""


@torch.no_grad()
def validate(
    world: WorldModel,
    source: TokenSource,
    targets: TokenSource | None,
    requests: Sequence[ClipRequest],
    config: PretrainConfig,
) -> Validation:
    """Errors on fixed clips of other videos, beside those of copying the last step."""
    predictor, observed = world.predictor.eval(), num_observed(config)
    scores = WorldScores(grid_of(world))
    sums = torch.zeros(2, dtype=torch.float64)
    chunks = chunked(requests, config.optim.batch_size)
    with Progress("validation clips", total=len(requests)) as bar:
        for clips, (batch, target) in zip(chunks, with_targets(source, targets, chunks), strict=True):
            forced, _ = predictor.teacher_forced(batch.z_BTND, batch.scene_BTNG, batch.scene_known_BT, batch.valid_BT)
            errors = (forced.z_BTND[:, :-1], target[:, :-1])
            sums += len(clips) * torch.stack([(said - target[:, 1:]).abs().mean() for said in errors]).double().cpu()
            imagined = imagine(world, batch, observed, config.data.num_steps - observed)[0]
            ids = [ClipId(str(clip.video.path), clip.first_step, take_name(clip.video.path)) for clip in clips]
            scores.add(ids, imagined, target, batch.gaze_BTN, batch.gaze_known_BT)
            bar.advance(len(clips))
    predictor.train()
    l1, copy_l1 = (sums / len(requests)).tolist()
    forced_scores = {"l1": l1, "copy_l1": copy_l1} | ({"skill": 1 - l1 / copy_l1} if copy_l1 else {})
    return Validation(forced_scores | scores.result(), scores.errors())


@torch.no_grad()
def forecast_gaze(
    world: WorldModel,
    source: TokenSource,
    truths: Mapping[str, TokenSource],
    train: Sequence[ClipRequest],
    requests: Sequence[ClipRequest],
    config: PretrainConfig,
) -> Forecasts:
    """Score imagined attention k steps ahead against the gaze of that step, beside persistence and a centre prior.

    Args:
        world: the trained world model; one without gaze forecasts none.
        source: what it is given, controls included.
        truths: `estimated` and `measured`, whichever there are → a source whose gaze weights are the clips' own.
        train: clips of training videos, for the read-out and the prior.
        requests: the clips to score.
        config: the run.

    Returns:
        For each truth with known gaze: `imagined`, `true tokens` (the read-out's own limit), `persistence` and
        `centre prior`.
    """
    forecasts: Forecasts = {}
    if not world.has_gaze:
        return forecasts
    world.predictor.eval()
    train = train[:: -(-len(train) // MAX_TRAIN_CLIPS)]  # evenly spaced
    own = next(iter(truths.values()))
    readout = None if world.grid.measured_gaze else _fitted(own, chunked(train, config.optim.batch_size))
    for name, truth in truths.items():
        prior_N = mean_gaze(truth, train).gaze_N
        if prior_N is not None:
            forecasts[name] = _forecast(world, source, truth, readout, prior_N, requests, config)
    world.predictor.train()
    return {name: found for name, found in forecasts.items() if found}


def _forecast(
    world: WorldModel, source: TokenSource, truth: TokenSource, readout: GazeReadout | None, prior_N: Tensor,
    requests: Sequence[ClipRequest], config: PretrainConfig,
) -> dict[str, dict[str, float]]:  # fmt: skip
    grid, observed = grid_of(world), num_observed(config)
    scores = ForecastScores(grid)
    chunks = chunked(requests, config.optim.batch_size)
    with Progress("clips whose gaze is forecast", total=len(requests)) as bar:
        for given, own in zip(source.batches(chunks), truth.batches(chunks), strict=True):
            _, scene_BKNG = imagine(world, given, observed, config.data.num_steps - observed)
            assert scene_BKNG is not None, "a world model with gaze imagines scene tokens"
            assert own.gaze_BTN is not None, "the truth has gaze weights"
            assert own.scene_BTNG is not None, "the world model is given scene tokens"
            later_BKN = own.gaze_BTN[:, observed:]
            known_BK = own.gaze_known_BT[:, observed:] & own.gaze_known_BT[:, observed - 1 : observed]
            maps = {
                "imagined": _heat(scene_BKNG, readout),
                "true tokens": _heat(own.scene_BTNG[:, observed:], readout),
                "persistence": own.gaze_BTN[:, observed - 1 : observed].expand_as(later_BKN),
                "centre prior": prior_N.expand_as(later_BKN),
            }
            scores.add(maps, peak_of(later_BKN, grid), known_BK)
            bar.advance(len(known_BK))
    return scores.result()


def _heat(scene_BKNG: Tensor, readout: GazeReadout | None) -> Tensor:
    """Gaze weights of scene tokens; those of measured gaze say theirs in the first channel (`models.measured_gaze`)."""
    return scene_BKNG[..., 0].clamp(min=0) if readout is None else readout(scene_BKNG)


def _fitted(source: TokenSource, plan: Plan) -> GazeReadout:
    def pairs(bar: Progress) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in source.batches(plan):
            assert batch.scene_BTNG is not None, "the world model is given scene tokens"
            assert batch.gaze_BTN is not None, "Gazelle says where people look"
            known_BT = batch.scene_known_BT & batch.gaze_known_BT
            yield batch.scene_BTNG[known_BT], batch.gaze_BTN[known_BT]
            bar.advance(len(known_BT))

    with Progress("training clips for the read-out of gaze", total=sum(map(len, plan))) as bar:
        return fit_readout(pairs(bar))


def imagine(world: WorldModel, batch: TokenBatch, observed: int, horizon: int) -> tuple[Tensor, Tensor | None]:
    """The `horizon` latents and scene tokens after the first `observed` steps of a batch."""
    past = (batch.z_BTND, batch.scene_BTNG, batch.scene_known_BT, batch.valid_BT)
    z, scene, known, valid = (None if part is None else part[:, :observed] for part in past)
    assert z is not None, "clips have latents"
    rolled = world.predictor.rollout(z, scene, horizon, known, valid)
    return rolled.z_BKND, rolled.scene_BKNG


def num_observed(config: PretrainConfig) -> int:
    """Steps of a validation clip that are observed; the others are imagined."""
    return config.data.num_steps - config.data.num_steps // 2


def grid_of(world: WorldModel) -> tuple[int, int]:
    """Rows and columns of the encoder's patches."""
    side = world.grid.encoder_resolution
    return world.observer.encoder.spec.grid(side, side)
