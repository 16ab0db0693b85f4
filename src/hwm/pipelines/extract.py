"""`hwm extract CONFIG`: fills the token cache for all videos of a recipe ahead of a run, and looks after it.

    run       videos of the recipe → what is missing and how many bytes that needs → encoded once each
    verify    every token file read back and compared with its hashes
    prune     what this recipe cannot use, and what is damaged, removed

The record is `<folder>/<name>-extract/run.json`, beside the run's own.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from hwm.config import AnticipateConfig, PretrainConfig
from hwm.data.exclusions import Exclusion
from hwm.data.video import VideoInfo
from hwm.engine.assemble import Seer, load_stage1, new_world, probe_seer
from hwm.engine.compiling import compile_blocks
from hwm.engine.progress import Progress
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import check_precision, start
from hwm.errors import ConfigError, DataError
from hwm.pipelines.anticipate import read_tables, videos_of
from hwm.pipelines.pretrain_data import find_parts, target_seer, training_crops
from hwm.tokens.extraction import Extractor, Survey, Wanted, centre_only, require_room
from hwm.tokens.maintenance import Checked, prune_cache, total_bytes, verify_cache
from hwm.tokens.source import cache_folder, open_cache

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
    crops_held: int
    """Crops that were there before."""
    bytes_made: int
    seconds: float


class _Part(NamedTuple):
    """`train` or `val`: videos and their crops; expected = len(wanted) + len(excluded)."""

    wanted: tuple[Wanted, ...]
    excluded: tuple[Exclusion, ...]
    expected: int


def run(config: ExtractConfig, on_estimate: Callable[[Estimate], None]) -> ExtractResult:
    """Encode what the cache lacks of the videos of a recipe.

    Args:
        config: with `tokens.source=cached`.
        on_estimate: called before the first video is decoded.

    Raises:
        HwmError: videos, weights or settings that cannot be used; the tokens do not fit on the disk, or it refuses.
    """
    started = time.monotonic()
    fabric = start(config.runtime)
    record = config.model_copy(update={"name": f"{config.name}-extract"})
    with RunLog.open(record, "extract", resume=False) as log:
        extractors = _extractors(config, fabric.device, log)
        parts = _pretrain_parts(config, log) if isinstance(config, PretrainConfig) else _anticipate_parts(config, log)
        wanted = _joined(parts)
        survey = extractors[0].survey(wanted)
        for extractor in extractors[1:]:
            survey = survey + extractor.survey(wanted)
        folder = cache_folder(config.tokens)
        estimate = Estimate(folder, _missing_hours(extractors, wanted), survey, require_room(survey, folder))
        log.record(tokens={"folder": str(folder), "dtype": config.tokens.dtype, **survey._asdict()})
        on_estimate(estimate)
        before = total_bytes(folder)
        unusable: dict[str, Exclusion] = {}
        with Progress("steps encoded", total=survey.steps_missing) as bar:
            for extractor in extractors:
                unusable |= {exclusion.item: exclusion for exclusion in extractor.fill(wanted, on_steps=bar.advance)}
        made = total_bytes(folder) - before
        log.record(bytes_made=made)
        used = _record_parts(log, parts, unusable)
        return ExtractResult(
            log.folder, folder, used, len(unusable), survey.crops_held, made, round(time.monotonic() - started, 1)
        )


def verify(config: ExtractConfig) -> Checked:
    """Read all token files of the cache that a recipe names; needs neither its videos nor its weights."""
    folder = cache_folder(config.tokens)
    with Progress("bytes read", total=total_bytes(folder)) as bar:
        return verify_cache(folder, bar.advance)


def prune(config: ExtractConfig, *, dry_run: bool) -> Checked:
    """Remove from the cache what this recipe cannot use (of other weights, settings or versions) and what is damaged.

    Raises:
        HwmError: weights that cannot be read, or a file that cannot be removed.
    """
    folder = cache_folder(config.tokens)
    keep = [kept for seer in _seers(config) for kept in open_cache(config.tokens, seer.grid, seer.weights).folders]
    with Progress("bytes read", total=total_bytes(folder)) as bar:
        return prune_cache(folder, keep, dry_run=dry_run, on_bytes=bar.advance)


def _seers(config: ExtractConfig) -> list[Seer]:
    """What turns the frames of a recipe into tokens: one, or two where stage 1 has other targets.

    Raises:
        ConfigError: stage 2 without a world model.
    """
    if isinstance(config, PretrainConfig):
        world, weights = new_world(config)
        targets = target_seer(config)
        return [Seer(world.observer, world.grid, weights), *([targets] if targets else [])]
    if config.checkpoint is None:
        raise ConfigError("no stage-1 checkpoint was given", fix="hwm extract CONFIG --checkpoint runs/NAME")
    return [probe_seer(load_stage1(config.checkpoint), config.probe.gaze_point, config.gazelle)]


def _extractors(config: ExtractConfig, device: torch.device, log: RunLog) -> list[Extractor]:
    seers = _seers(config)
    for seer in seers:
        check_precision(device, seer.grid.precisions)
        if config.runtime.compile:
            compile_blocks(seer.observer, log.warn)
    return [
        Extractor(seer.observer.to(device), seer.grid, device, open_cache(config.tokens, seer.grid, seer.weights))
        for seer in seers
    ]


def _pretrain_parts(config: PretrainConfig, log: RunLog) -> dict[str, _Part]:
    crops = {"train": training_crops(config), "val": centre_only}
    return {
        part: _Part(tuple(Wanted(video, crops[part](video)) for video in found.videos), found.excluded, found.expected)
        for part, found in find_parts(config.data, log).items()
    }


def _anticipate_parts(config: AnticipateConfig, log: RunLog) -> dict[str, _Part]:
    parts = {}
    for part, table in zip(("train", "val"), read_tables(config, log), strict=True):
        videos = videos_of(table)
        parts[part] = _Part(tuple(Wanted(video, centre_only(video)) for video in videos), (), len(videos))
    return parts


def _joined(parts: Mapping[str, _Part]) -> list[Wanted]:
    """Each video once, with all its crops."""
    joined: dict[Path, Wanted] = {}
    for video, boxes in (item for part in parts.values() for item in part.wanted):
        before = joined[video.path].boxes if video.path in joined else ()
        joined[video.path] = Wanted(video, tuple(dict.fromkeys((*before, *boxes))))
    return list(joined.values())


def _missing_hours(extractors: list[Extractor], wanted: list[Wanted]) -> float:
    videos: dict[Path, VideoInfo] = {
        item.video.path: item.video for item in wanted if any(each.lacks(item) for each in extractors)
    }
    return sum(video.duration_sec for video in videos.values()) / 3600


def _record_parts(log: RunLog, parts: Mapping[str, _Part], unusable: Mapping[str, Exclusion]) -> int:
    """Coverage of each part in `run.json`; returns how many videos can be used.

    Raises:
        DataError: a part has none.
    """
    total = 0
    for name, part in parts.items():
        lost = [unusable[str(video.path)] for video, _ in part.wanted if str(video.path) in unusable]
        used = len(part.wanted) - len(lost)
        log.record_coverage(f"{name} videos", expected=part.expected, used=used, excluded=[*part.excluded, *lost])
        if not used:
            raise DataError(f"no {name} video can be decoded", found="; ".join(e.reason for e in lost[:3]))
        total += used
    return total
