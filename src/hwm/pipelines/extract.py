"""`hwm extract CONFIG`: fills the token cache for all videos of a recipe ahead of a run, and looks after it.

    run       videos of the recipe → what is missing and how many bytes that needs → encoded once each
    verify    every token file read back and compared with its hashes
    prune     what this recipe cannot use, and what is damaged, removed; hashes of videos that no longer hold, forgotten

The record is `<folder>/<name>-extract/run.json`, beside the run's own.
"""

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.data.exclusions import Exclusion
from hwm.data.segments import SegmentTable
from hwm.data.video import VideoInfo
from hwm.engine.assemble import Seer, load_stage1, new_world, probe_seer
from hwm.engine.compiling import compile_blocks
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import StopFlag, check_precision, start
from hwm.errors import CacheError, ConfigError, DataError
from hwm.pipelines.anticipate import read_tables, videos_of
from hwm.pipelines.pretrain_data import find_parts, target_seer, training_crops
from hwm.pipelines.validation_gaze import judge_seer
from hwm.tokens.extraction import Extractor, Survey, Wanted, centre_only, require_room
from hwm.tokens.maintenance import Checked, prune_cache, total_bytes, verify_cache
from hwm.tokens.source import cache_folder, open_cache
from hwm.tokens.video_hashes import VIDEO_HASHES, Forgotten, VideoHashes

ExtractConfig = PretrainConfig | AnticipateConfig


class Estimate(NamedTuple):
    """What filling the cache takes, before it starts."""

    folder: Path
    """Of the cache."""
    hours: float
    """Of video that will be decoded."""
    survey: Survey
    bytes_free: int


class ExtractResult(NamedTuple):
    """What was done."""

    record: Path
    """Run folder of this extraction."""
    tokens: Path
    """Folder of the cache."""
    videos: int
    """Videos that can be used."""
    excluded: int
    """Videos that cannot be used."""
    segments_excluded: int
    """Of stage 2, annotated segments that cannot be used: those without a video, and those of excluded videos."""
    crops_held: int
    """Crops that were there before."""
    bytes_made: int
    seconds: float


class Pruned(NamedTuple):
    """What was (or would be) removed from a cache."""

    checked: Checked
    """Its token files; the bad ones go."""
    hashes: Forgotten


class _Part(NamedTuple):
    """`train` or `val`: videos and their crops; expected = len(wanted) + len(excluded)."""

    wanted: tuple[Wanted, ...]
    excluded: tuple[Exclusion, ...]
    expected: int
    table: SegmentTable | None = None
    """Stage 2's segments; those that are left out have reasons of their own, such as a video that is not there."""


class _Job(NamedTuple):
    """What one extractor is to fill."""

    extractor: Extractor
    parts: frozenset[str]
    wanted: list[Wanted]


def run(config: ExtractConfig, on_estimate: Callable[[Estimate], None]) -> ExtractResult:
    """Encode what the cache lacks of the videos of a recipe.

    SIGTERM ends it with `EXIT_STOPPED` within the video that it is at; those that are done are kept.

    Args:
        config: with `tokens.source=cached`.
        on_estimate: called before the first video is decoded.

    Raises:
        HwmError: videos, weights or settings that cannot be used; the tokens do not fit on the disk, or it refuses.
    """
    started = time.monotonic()
    fabric = start(config.runtime)
    record = config.model_copy(update={"name": f"{config.name}-extract"})
    with RunLog.open(record, "extract", resume=False) as log, StopFlag() as stop:
        extractors = _extractors(config, fabric.device, log)
        is_pretrain = isinstance(config, PretrainConfig)
        parts = _pretrain_parts(config, log, stop) if is_pretrain else _anticipate_parts(config, log, stop)
        jobs = [_Job(extractor, seen, _joined(parts[name] for name in sorted(seen))) for extractor, seen in extractors]
        survey = _surveyed(jobs, parts, stop.checked(lambda: None))
        folder = cache_folder(config.tokens)
        estimate = Estimate(folder, _missing_hours(jobs), survey, require_room(survey, folder))
        log.record(tokens={"folder": str(folder), "dtype": config.tokens.dtype, **survey._asdict()})
        on_estimate(estimate)
        before = total_bytes(folder)
        unusable: dict[str, Exclusion] = {}
        with Progress("steps encoded", total=survey.steps_missing) as bar:
            for extractor, _, wanted in jobs:
                refused = extractor.fill(wanted, on_steps=stop.checked(bar.advance))
                unusable |= {exclusion.item: exclusion for exclusion in refused}
        made = total_bytes(folder) - before
        log.record(bytes_made=made)
        used, lost, rows_lost = _record_parts(log, parts, unusable)
        seconds = round(time.monotonic() - started, 1)
        return ExtractResult(log.folder, folder, used, lost, rows_lost, survey.crops_held, made, seconds)


def verify(config: ExtractConfig) -> Checked:
    """Read all token files of the cache that a recipe names; needs neither its videos nor its weights.

    Raises:
        CacheError: there is no such folder.
    """
    folder = cache_folder(config.tokens)
    if not folder.is_dir():
        raise CacheError(
            f"there is no token folder {folder}: nothing was verified",
            expected="the folder of tokens.folder, or tokens/ in HWM_HOME",
            fix="name the right one, or make it: hwm extract CONFIG",
        )
    with Progress("bytes read", total=total_bytes(folder)) as bar:
        return verify_cache(folder, bar.advance)


def prune(config: ExtractConfig, *, dry_run: bool) -> Pruned:
    """Remove from the cache what this recipe cannot use (of other weights, settings or versions) and what is damaged.

    Raises:
        HwmError: weights that cannot be read, or a file that cannot be removed or written.
    """
    folder = cache_folder(config.tokens)
    keep = [kept for seer, _ in _seers(config) for kept in open_cache(config.tokens, seer.grid, seer.weights).folders]
    with Progress("bytes read", total=total_bytes(folder)) as bar:
        checked = prune_cache(folder, keep, dry_run=dry_run, on_bytes=bar.advance)
    return Pruned(checked, VideoHashes(folder / VIDEO_HASHES).forget(dry_run=dry_run))


def _seers(config: ExtractConfig) -> list[tuple[Seer, frozenset[str]]]:
    """What turns the frames of a recipe into tokens, each with the parts that it sees.

    Stage 1 has two for each part where it has other targets. The judge of its validation sees what the world model sees
    and more, and takes its place there.

    Raises:
        ConfigError: stage 2 without a world model.
    """
    both = frozenset({"train", "val"})
    if isinstance(config, PretrainConfig):
        world, weights = new_world(config)
        judge, targets = judge_seer(config, world, weights), target_seer(config)
        own = Seer(world.observer, world.grid, weights)
        seers = [(own, both)] if judge is None else [(own, frozenset({"train"})), (judge, frozenset({"val"}))]
        return seers + ([(targets, both)] if targets else [])
    if config.checkpoint is None:
        raise ConfigError("no stage-1 checkpoint was given", fix="hwm extract CONFIG --checkpoint runs/NAME")
    return [(probe_seer(load_stage1(config.checkpoint), config.probe.gaze_point, config.gazelle), both)]


def _extractors(config: ExtractConfig, device: torch.device, log: RunLog) -> list[tuple[Extractor, frozenset[str]]]:
    seers = _seers(config)
    for seer, _ in seers:
        check_precision(device, seer.grid.precisions)
    if config.runtime.compile:  # together: a judge has the world model's own encoder
        compile_blocks(nn.ModuleList(seer.observer for seer, _ in seers), log.warn)
    caches = [open_cache(config.tokens, seer.grid, seer.weights) for seer, _ in seers]
    return [
        (Extractor(seer.observer.to(device), seer.grid, device, cache), seen)
        for (seer, seen), cache in zip(seers, caches, strict=True)
    ]


def _pretrain_parts(config: PretrainConfig, log: RunLog, stop: StopFlag) -> dict[str, _Part]:
    crops = {"train": training_crops(config), "val": centre_only}
    return {
        part: _Part(tuple(Wanted(video, crops[part](video)) for video in found.videos), found.excluded, found.expected)
        for part, found in find_parts(config.data, log, stop).items()
    }


def _anticipate_parts(config: AnticipateConfig, log: RunLog, stop: StopFlag) -> dict[str, _Part]:
    parts = {}
    for part, table in zip(("train", "val"), read_tables(config, log, stop), strict=True):
        videos = videos_of(table)
        parts[part] = _Part(tuple(Wanted(video, centre_only(video)) for video in videos), (), len(videos), table)
    return parts


def _joined(parts: Iterable[_Part]) -> list[Wanted]:
    """Each video once, with all its crops."""
    joined: dict[Path, Wanted] = {}
    for video, boxes in (item for part in parts for item in part.wanted):
        before = joined[video.path].boxes if video.path in joined else ()
        joined[video.path] = Wanted(video, tuple(dict.fromkeys((*before, *boxes))))
    return list(joined.values())


def _surveyed(jobs: Sequence[_Job], parts: Mapping[str, _Part], check: Callable[[], None]) -> Survey:
    """What all of it takes; an hour is one of the part that takes most."""
    surveys = [job.extractor.survey(job.wanted, check) for job in jobs]
    seen = list(zip(surveys, jobs, strict=True))
    an_hour = max(sum(survey.bytes_per_hour for survey, job in seen if name in job.parts) for name in parts)
    num_videos = len(_joined(parts.values()))
    return reduce(operator.add, surveys)._replace(num_videos=num_videos, bytes_per_hour=an_hour)


def _missing_hours(jobs: Sequence[_Job]) -> float:
    videos: dict[Path, VideoInfo] = {
        item.video.path: item.video for extractor, _, wanted in jobs for item in wanted if extractor.lacks(item)
    }
    return sum(video.duration_sec for video in videos.values()) / 3600


def _record_parts(log: RunLog, parts: Mapping[str, _Part], unusable: Mapping[str, Exclusion]) -> tuple[int, int, int]:
    """Coverage of each part in `run.json`: its videos and, of stage 2, its segments.

    Returns:
        How many videos can be used, how many cannot, and how many segments cannot.

    Raises:
        DataError: a part has no video.
    """
    used, lost, rows_lost = 0, 0, 0
    for name, part in parts.items():
        videos = [unusable[str(video.path)] for video, _ in part.wanted if str(video.path) in unusable]
        excluded = [*part.excluded, *videos]
        left = len(part.wanted) - len(videos)
        log.record_coverage(f"{name} videos", expected=part.expected, used=left, excluded=excluded)
        used, lost = used + left, lost + len(excluded)
        if part.table is not None:
            rows_lost += _record_segments(log, name, part.table, unusable)
        if not left:
            raise DataError(f"no {name} video can be decoded", found="; ".join(e.reason for e in videos[:3]))
    return used, lost, rows_lost


def _record_segments(log: RunLog, name: str, table: SegmentTable, unusable: Mapping[str, Exclusion]) -> int:
    """Coverage of a part's segments; returns how many cannot be used."""
    paths = [(segment.row, str(segment.video.path)) for segment in table.segments]
    excluded = [*table.excluded, *(Exclusion(row, unusable[path].reason) for row, path in paths if path in unusable)]
    used = table.expected - len(excluded)
    log.record_coverage(f"{name} segments", expected=table.expected, used=used, excluded=excluded)
    return len(excluded)
