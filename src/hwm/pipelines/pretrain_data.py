"""What stage 1 reads: its videos, where their tokens come from, and whose gaze a forecast is held to.

PretrainConfig + run log -> videos of each part (what is left out is recorded with its reason), and `TokenSource`s.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lightning_fabric import Fabric
from torch import Tensor

from hwm.config import ClipDataConfig, PretrainConfig
from hwm.data.batches import StepBatches
from hwm.data.clips import ClipPlan, ClipRequest, VideoSet, find_videos, fixed_box
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_files import GazeFiles
from hwm.data.seen_videos import told_copies, write_seen
from hwm.data.video import VideoInfo
from hwm.engine.assemble import Seer, load_frozen_encoder
from hwm.engine.compiling import compile_blocks
from hwm.engine.held_data import hold_to_manifest
from hwm.engine.mean_scene import load_mean_scene, mean_scene_hash, save_mean_scene
from hwm.engine.progress import LateProgress, Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag
from hwm.errors import DataError
from hwm.models.observer import Observer
from hwm.models.world_model import TimeGrid, WorldModel
from hwm.pipelines.validation import with_targets
from hwm.pipelines.validation_gaze import JudgedSource, validation_source
from hwm.terminal import counted
from hwm.tokens.controls import ControlledSource, fixed_clips, mean_scene, with_gaze_control
from hwm.tokens.extraction import Crops, centre_only
from hwm.tokens.measured import MeasuredSource
from hwm.tokens.source import TokenBatch, TokenSource, open_source


class Stage1Data(NamedTuple):
    """Videos, tokens and clips of a stage-1 run."""

    source: TokenSource
    held_out: TokenSource
    """Of validation clips; see `hwm.pipelines.validation_gaze`."""
    targets: TokenSource | None
    """Latents to be predicted; None where they are the source's own."""
    train: tuple[VideoInfo, ...]
    plan: ClipPlan
    """Of training clips."""
    fixed: tuple[ClipRequest, ...]
    """Validation clips, the same every time."""
    gaze_truths: dict[str, TokenSource]
    """See `_gaze_truths`."""

    def train_batches(
        self, config: PretrainConfig, first_step: int, fabric: Fabric
    ) -> Iterator[tuple[TokenBatch, Tensor]]:
        """Training batches of this process from `first_step` on, and the latents that are to be predicted."""
        optim = config.optim
        batches = StepBatches(
            self.plan, optim.batch_size, first_step, optim.num_steps, fabric.global_rank, fabric.world_size
        )
        return with_targets(self.source, self.targets, batches)


def open_data(
    config: PretrainConfig, world: WorldModel, weights: Mapping[str, str], fabric: Fabric, log: RunLog, stop: StopFlag
) -> Stage1Data:
    """The data of a run; what is used and what is left out goes into its record.

    Args:
        config: the run.
        world: its frozen encoders say what a token is.
        weights: sha256 of their files, by name.
        fabric: where to encode.
        log: the run's record.
        stop: ends the run between two videos of a cache that fills; those that are done are kept.

    Raises:
        HwmError: videos or weights that cannot be used, or gaze files that tell no gaze of a part's videos.
    """
    source = _token_source(config, world, weights, fabric)
    if config.runtime.compile:
        compile_blocks(world, log.warn)
    targets = _target_source(config, fabric, log)
    held_out = validation_source(config, world, weights, source, log, fabric.device)
    others = [targets] if targets else []
    train, val = load_videos(config, log, {"train": [source, *others], "val": [held_out, *others]}, stop)
    data = config.data
    plan = ClipPlan(train, data.fps, data.num_steps, data.augment, config.seed, config.tokens.views)
    fixed = ClipPlan(val, data.fps, data.num_steps, None, config.seed).validation()
    truths = _gaze_truths(source, config, world)
    if isinstance(measured := truths.get("measured"), MeasuredSource):
        measured.record(log, {"train": train, "val": val})
    elif isinstance(held_out, JudgedSource):
        held_out.record(log, val)
    return Stage1Data(source, held_out, targets, train, plan, fixed, truths)


def load_videos(
    config: PretrainConfig, log: RunLog, sources: Mapping[str, Sequence[TokenSource]], stop: StopFlag
) -> tuple[tuple[VideoInfo, ...], tuple[VideoInfo, ...]]:
    """Training and validation videos that all of their part's sources can use; the others are recorded with reasons.

    Raises:
        DataError: none is left, a video is in both, or the data are not those of the manifest.
    """
    found = find_parts(config.data, log, stop)
    crops = training_crops(config)
    train = _prepared("train", found["train"], log, sources["train"], stop, crops)
    return train, _prepared("val", found["val"], log, sources["val"], stop)


def find_parts(data: ClipDataConfig, log: RunLog, stop: StopFlag) -> dict[str, VideoSet]:
    """The videos of `data.train` and `data.val`; ends between two of them where `stop` is up.

    Raises:
        DataError: none is left, a video is in both, or the data are not those of the manifest.
    """
    hold_to_manifest(data.manifest, log, stop)
    shortest, found = (data.num_steps - 1) / data.fps, dict[str, VideoSet]()
    for part in ("train", "val"):
        with LateProgress(f"{part} videos probed") as told:
            found[part] = find_videos(getattr(data, part), data.glob, shortest, data.manifest, stop.checked(told))
    both = sorted(
        {str(v.path.resolve()) for v in found["train"].videos} & {str(v.path.resolve()) for v in found["val"].videos}
    )
    if both:
        raise DataError(
            f"data.train and data.val share {counted(len(both), 'video')}",
            expected="validation on other videos",
            found=", ".join(both[:3]),
            fix="take them out of one of the two lists",
        )
    if copies := told_copies(*([video.path for video in found[part].videos] for part in ("train", "val"))):
        log.warn(copies)
    return found


def training_crops(config: PretrainConfig) -> Crops:
    """The crops of a training video that a cache must hold: its augmented views, or else the centre square."""
    augment, seed, num_views = config.data.augment, config.seed, config.tokens.views
    if augment is None or not num_views:
        return centre_only
    # Means and read-outs of gaze are taken over the training videos' centre squares, whatever the clips' crops are.
    always = centre_only if config.gaze != "none" else lambda _: ()
    return lambda video: tuple(
        dict.fromkeys((*always(video), *(fixed_box(video, augment, seed, view) for view in range(num_views))))
    )


def _prepared(
    part: str, found: VideoSet, log: RunLog, sources: Sequence[TokenSource], stop: StopFlag, crops: Crops = centre_only
) -> tuple[VideoInfo, ...]:
    unusable: dict[str, Exclusion] = {}
    for source in sources:
        with Progress(f"{part} videos", total=len(found.videos)) as bar:
            refused = source.prepare(found.videos, stop.checked(bar.set), crops)
            unusable |= {exclusion.item: exclusion for exclusion in refused}
    videos = tuple(video for video in found.videos if str(video.path) not in unusable)
    excluded = [*found.excluded, *unusable.values()]
    log.record_coverage(f"{part} videos", expected=found.expected, used=len(videos), excluded=excluded)
    if not videos:
        raise DataError(f"no {part} video can be decoded", found="; ".join(e.reason for e in excluded[:3]))
    return videos


def _token_source(config: PretrainConfig, world: WorldModel, weights: Mapping[str, str], fabric: Fabric) -> TokenSource:
    """Latents and what the predictor is conditioned on: estimated, measured, or a control in their place."""
    source = open_source(config.tokens, world.observer, world.grid, weights, fabric.device, config.runtime.num_workers)
    if config.gaze == "measured":
        assert config.gaze_files.folder is not None, "the configuration lets no measured gaze pass without a folder"
        files = GazeFiles(config.gaze_files.folder, config.gaze_files)
        source = MeasuredSource(source, files, world, scene=True, point=True)
    return with_gaze_control(source, world, "none", config.seed)


def _gaze_truths(source: TokenSource, config: PretrainConfig, world: WorldModel) -> dict[str, TokenSource]:
    """Sources whose gaze weights are the clips' own: Gazelle's, and an eye tracker's where there are files.

    Raises:
        DataError: the folder of gaze files is not there.
    """
    own = source.uncontrolled if isinstance(source, ControlledSource) else source
    if config.gaze != "estimated":
        return {} if config.gaze == "none" else {"measured": own}
    if config.gaze_files.folder is None:
        return {"estimated": own}
    files = GazeFiles(config.gaze_files.folder, config.gaze_files)
    return {"estimated": own, "measured": MeasuredSource(own, files, world, scene=False, point=True)}


def record_training_videos(data: Stage1Data, log: RunLog, *, is_new: bool, is_writer: bool) -> None:
    """Leaves beside the checkpoints what they were trained on, for stage 2 to hold its validation takes against.

    A run that goes on with other videos than its earlier part had warns of it.

    Raises:
        DataError: a video cannot be read, or the record of the run's earlier part is damaged.
    """
    if is_writer:
        videos = [video.path for video in data.train]
        log.record(train_videos=write_seen(log.folder, videos, go_on=not is_new, warn=log.warn))


def set_mean_scene(world: WorldModel, data: Stage1Data, log: RunLog, *, is_new: bool, is_writer: bool) -> None:
    """The mean scene token of the training videos, for the control `mean`: taken once, kept in the run folder."""
    if world.grid.gaze_control != "mean":
        return
    if not is_new:
        recorded = json.loads((log.folder / "run.json").read_text(encoding="utf-8")).get("mean_scene_sha256")
        load_mean_scene(log.folder, world.mean_scene_NG, recorded)
        return
    assert isinstance(data.source, ControlledSource), "the mean is a control"
    clips = fixed_clips(data.train, world.grid.fps)
    mean_NG = mean_scene(data.source.uncontrolled, clips, world.predictor.spec.scene_normed)
    world.mean_scene_NG.copy_(mean_NG)
    if is_writer:
        save_mean_scene(log.folder, mean_NG)
    log.record(mean_scene_sha256=mean_scene_hash(mean_NG))


def target_seer(config: PretrainConfig) -> Seer | None:
    """What turns frames into targets; None where the encoder is its own target.

    Raises:
        WeightsError: a weight file is missing, damaged, or does not fit.
    """
    if config.target_encoder is None or config.target_encoder == config.encoder:
        return None
    loaded = load_frozen_encoder(config.target_encoder)
    target = config.target_encoder
    grid = TimeGrid(config.data.fps, config.data.step, target.resolution, None, encoder_precision=target.precision)
    return Seer(Observer(loaded.module, None), grid, {"encoder": loaded.sha256})


def _target_source(config: PretrainConfig, fabric: Fabric, log: RunLog) -> TokenSource | None:
    """Latents of another target encoder; None where the encoder is its own target."""
    seer = target_seer(config)
    if seer is None:
        return None
    observer = seer.observer.to(fabric.device)
    if config.runtime.compile:
        compile_blocks(observer, log.warn)
    return open_source(config.tokens, observer, seer.grid, seer.weights, fabric.device, config.runtime.num_workers)
