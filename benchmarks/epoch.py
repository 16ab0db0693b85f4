"""An epoch of stage 1 from cached tokens against live ones: the toy world whole, ViT-L by measured parts.

A live epoch decodes, encodes and trains; a cached one reads and trains. Training is the same in both, so it bounds the
ratio: (encoding + training) / training, whatever reading costs. Each note has that bound and the ratio of tokens alone.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.context import Context, random_encoder
from benchmarks.gazelle import random_gazelle
from benchmarks.measure import Figure, Outcome, Spread, Timed, check_equal, interleaved, medians, ratio
from benchmarks.videos import moving_video
from hwm.config import ClipDataConfig, EncoderConfig, GazelleConfig, PretrainConfig, TokenConfig, ToyWorldConfig
from hwm.config import PredictorConfig as Sizes
from hwm.data.clips import ClipPlan, find_videos
from hwm.data.toyworld.generate import generate
from hwm.engine.assemble import new_world
from hwm.engine.optim import adamw, clip_gradients
from hwm.models.objectives import predictor_losses
from hwm.models.observer import Observer
from hwm.models.predictor import GazePredictor, PredictorSpec
from hwm.models.world_model import TimeGrid
from hwm.tokens.source import Plan, TokenBatch, TokenSource, open_source

CPU = torch.device("cpu")


def run(context: Context) -> Iterator[Outcome]:
    """Both sizes."""
    yield _toy_world(context)
    yield _large(context)


def _toy_world(context: Context) -> Figure:
    """Training clips of a toy world, with the sizes of the recipe `pretrain/toyworld`."""
    folder = context.scratch / "toyworld"
    num_clips, batch_size = (2, 2) if context.quick else (16, 8)
    generate(folder, ToyWorldConfig(num_takes=num_clips), num_processes=1)
    config = PretrainConfig(
        name="epoch", gaze="estimated", encoder=EncoderConfig(resolution=64 if context.quick else 128),
        gazelle=GazelleConfig(resolution=56 if context.quick else 112),
        predictor=Sizes(width=128, depth=4, num_heads=4),
        data=ClipDataConfig(train=(str(folder),), val=(str(folder),), glob="**/cam01.mp4"),
    )  # fmt: skip
    assembled = new_world(config)
    world = assembled.world
    videos = find_videos(config.data.train, config.data.glob, 4.0).videos[:num_clips]
    plan = ClipPlan(videos, config.data.fps, config.data.num_steps, None, 0)
    requests = [plan.request(0, index) for index in range(len(videos))]
    batches = [requests[first : first + batch_size] for first in range(0, len(requests), batch_size)]
    sources = _sources(context.scratch / "tokens", world.observer, world.grid, assembled.weights)
    sources["cached"].prepare(videos, lambda done: None)
    step = _training(world.predictor)

    def train(source: TokenSource) -> None:
        for batch in source.batches(batches):
            step(batch)

    timed = interleaved(
        {
            "live": lambda: train(sources["live"]), "cached": lambda: train(sources["cached"]),
            "live_tokens": lambda: _read(sources["live"], batches),
            "cached_tokens": lambda: _read(sources["cached"], batches),
        },
        context.long_rounds,
    )  # fmt: skip
    training = [whole - tokens for whole, tokens in _pairs(timed, "cached", "cached_tokens")]
    return _figure("epoch/toy-world", "stage-1 epoch, toy world, cached against live",
                   ratio(timed.seconds, "live", "cached"), timed, training)  # fmt: skip


def _large(context: Context) -> Figure:
    """One clip of 8 steps at 448 px: ViT-L, Gazelle B and the default predictor."""
    if context.quick:
        grid, sizes = TimeGrid(4.0, "frame", 64, 56), PredictorSpec(128, 256, 48, 2, 4)
    else:
        grid, sizes = TimeGrid(4.0, "frame", 256, 448), PredictorSpec(1024, 256)
    observer = Observer(random_encoder(context.encoder_spec()), random_gazelle(context.quick))
    video = moving_video(context.scratch / "epoch.mp4", 3.0, 448, gop=30)
    videos = find_videos([video], "*", 1.0).videos
    batches = [[ClipPlan(videos, 4.0, 8, None, 0).request(0, 0)]]
    sources = _sources(context.scratch / "tokens-large", observer, grid, {"encoder": "random", "gazelle": "random"})
    sources["cached"].prepare(videos, lambda done: None)
    torch.manual_seed(0)
    step = _training(GazePredictor(sizes))
    (batch,) = sources["cached"].batches(batches)
    timed = interleaved(
        {
            "live_tokens": lambda: _read(sources["live"], batches),
            "cached_tokens": lambda: _read(sources["cached"], batches),
            "training": lambda: step(batch),
        },
        context.long_rounds,
    )
    training = timed.seconds["training"]
    rounds = zip(timed.seconds["live_tokens"], timed.seconds["cached_tokens"], training, strict=True)
    ratios = [(live + trained) / (cached + trained) for live, cached, trained in rounds]
    what = "a clip of a stage-1 epoch by parts, ViT-L at 256 px, Gazelle B at 448 px, default predictor"
    return _figure("epoch/vit-l", what, Spread.of(ratios), timed, training)


def _sources(folder: Path, observer: Observer, grid: TimeGrid, weights: dict[str, str]) -> dict[str, TokenSource]:
    return {
        "live": open_source(TokenConfig(source="live"), observer, grid, weights, CPU, 0),
        "cached": open_source(TokenConfig(source="cached", folder=folder), observer, grid, weights, CPU, 0),
    }


def _figure(name: str, what: str, value: Spread, timed: Timed, training: Sequence[float]) -> Figure:
    """The ratio of whole epochs, with what bounds it."""
    tokens = ratio(timed.seconds, "live_tokens", "cached_tokens")
    live, trained = statistics.median(timed.seconds["live_tokens"]), statistics.median(training)
    return Figure(
        name, what, value, 20.0,
        agreement=check_equal("tokens", timed.results["cached_tokens"], timed.results["live_tokens"], 1e-3),
        note=f"tokens alone {tokens.median:.0f} ×; training the predictor, which both do, takes {trained:.2f} s beside "
        f"{live:.2f} s for live tokens and bounds the epoch's ratio to {(live + trained) / trained:.1f} ×",
        details=medians(timed.seconds) | {"training_sec": trained, "tokens_ratio": tokens.median},
    )  # fmt: skip


def _pairs(timed: Timed, first: str, second: str) -> Iterator[tuple[float, float]]:
    return zip(timed.seconds[first], timed.seconds[second], strict=True)


def _read(source: TokenSource, batches: Plan) -> torch.Tensor:
    return torch.cat([batch.z_BTND for batch in source.batches(batches)])


def _training(predictor: GazePredictor) -> Callable[[TokenBatch], None]:
    """One optimiser step on a batch, as in stage 1."""
    optimizer = adamw(predictor, 1e-4, 0.04)

    def step(batch: TokenBatch) -> None:
        losses = predictor_losses(
            predictor, batch.z_BTND, batch.z_BTND, batch.scene_BTNG, batch.scene_known_BT, batch.valid_BT,
            rollout_steps=2, rollout_weight=1.0, scene_weight=0.1,
        )  # fmt: skip
        losses.total.backward()
        clip_gradients(predictor, losses._asdict(), 1.0, "step")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
