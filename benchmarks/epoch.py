"""An epoch of stage 1 from cached tokens against live ones: the toy world whole, ViT-L by measured parts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.context import Context, random_encoder
from benchmarks.gazelle import random_gazelle
from benchmarks.measure import Figure, Outcome, check_equal, interleaved, medians, ratio
from benchmarks.videos import moving_video
from hwm.config import ClipDataConfig, EncoderConfig, GazelleConfig, PretrainConfig, TokenConfig, ToyWorldConfig
from hwm.config import PredictorConfig as Sizes
from hwm.data.clips import ClipPlan, find_videos
from hwm.data.toyworld.generate import generate
from hwm.engine.assemble import new_world
from hwm.engine.optim import adamw
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
    """All training clips of a toy world, the mini encoder and Gazelle, a small predictor."""
    folder = context.scratch / "toyworld"
    generate(folder, ToyWorldConfig(num_takes=2 if context.quick else 16), num_processes=1)
    config = PretrainConfig(
        name="epoch", gaze="estimated", encoder=EncoderConfig(resolution=64 if context.quick else 128),
        gazelle=GazelleConfig(resolution=56 if context.quick else 224), predictor=Sizes(width=96, depth=3, num_heads=4),
        data=ClipDataConfig(train=(str(folder),), val=(str(folder),), glob="**/*.mp4"),
    )  # fmt: skip
    assembled = new_world(config)
    world = assembled.world
    videos = find_videos(config.data.train, "**/*.mp4", 4.0).videos[: 2 if context.quick else 16]
    plan = ClipPlan(videos, config.data.fps, config.data.num_steps, None, 0)
    batches = [[plan.request(0, index)] for index in range(len(videos))]
    sources = _sources(context.scratch / "tokens", world.observer, world.grid, assembled.weights)
    sources["cached"].prepare(videos, lambda done: None)
    return _figure(
        context, "epoch/toy-world", "stage-1 epoch, toy world, cached against live", sources, batches, world.predictor
    )


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
    weights = {"encoder": "random", "gazelle": "random"}
    sources = _sources(context.scratch / "tokens-large", observer, grid, weights)
    sources["cached"].prepare(videos, lambda done: None)
    torch.manual_seed(0)
    return _figure(
        context, "epoch/vit-l", "a stage-1 step on one clip, ViT-L and Gazelle B, cached against live", sources,
        batches, GazePredictor(sizes),
    )  # fmt: skip


def _sources(folder: Path, observer: Observer, grid: TimeGrid, weights: dict[str, str]) -> dict[str, TokenSource]:
    return {
        "live": open_source(TokenConfig(source="live"), observer, grid, weights, CPU, 0),
        "cached": open_source(TokenConfig(source="cached", folder=folder), observer, grid, weights, CPU, 0),
    }


def _figure(
    context: Context, name: str, what: str, sources: dict[str, TokenSource], batches: Plan, predictor: GazePredictor
) -> Figure:
    """Reading and training together; the share that reading alone has is in the details."""
    optimizer = adamw(predictor, 1e-4, 0.04)

    def train(source: TokenSource) -> None:
        for batch in source.batches(batches):
            _step(predictor, optimizer, batch)

    def read(source: TokenSource) -> torch.Tensor:
        return torch.cat([batch.z_BTND for batch in source.batches(batches)])

    calls: dict[str, Callable[[], object]] = {
        key: lambda source=source: train(source) for key, source in sources.items()
    }
    calls |= {f"{key}_tokens": lambda source=source: read(source) for key, source in sources.items()}
    timed = interleaved(calls, 2)
    tokens = ratio(timed.seconds, "live_tokens", "cached_tokens")
    return Figure(
        name, what, ratio(timed.seconds, "live", "cached"), 20.0,
        agreement=check_equal("tokens", timed.results["cached_tokens"], timed.results["live_tokens"], 1e-3),
        note=f"tokens alone, without training the predictor: {tokens.median:.0f} ×; the rest is that training",
        details=medians(timed.seconds),
    )  # fmt: skip


def _step(predictor: GazePredictor, optimizer: torch.optim.Optimizer, batch: TokenBatch) -> None:
    losses = predictor_losses(
        predictor, batch.z_BTND, batch.z_BTND, batch.scene_BTNG, batch.scene_known_BT, batch.valid_BT,
        rollout_steps=2, rollout_weight=1.0, scene_weight=1.0,
    )  # fmt: skip
    losses.total.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
