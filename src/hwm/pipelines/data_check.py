"""`hwm data check CONFIG`: are the data what the recipe and the annotations say, and can every video be read?

Annotations, metadata and disk are intersected → every video is probed, decoded at three places and hashed in processes
that can be ended → the readers of training read the annotations once more through what was found → one
`data_manifest.json`. What an earlier check found of an unchanged file is kept.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import hwm
from hwm.config import (
    AdaptConfig,
    AnnotationConfig,
    AnticipateConfig,
    ClipDataConfig,
    GazeFilesConfig,
    PretrainConfig,
)  # fmt: skip
from hwm.data.annotations import read_annotations
from hwm.data.check_log import ANOTHER_PLACE, CheckLog
from hwm.data.checking import VideoCheck, check_videos
from hwm.data.clips import find_videos
from hwm.data.content import content_sha256
from hwm.data.decoding import NOT_THERE
from hwm.data.exclusions import Exclusion
from hwm.data.gaze_check import NONE, GazeFacts, check_gaze, gaze_file_of
from hwm.data.gaze_files import NO_FILE, GazeFiles
from hwm.data.manifest import (
    SCHEMA,
    Coverage,
    DataManifest,
    ExcludedItem,
    SourceFile,
    VideoFacts,
    VideoRecord,
    read_manifest,
)
from hwm.engine.disk import Disk
from hwm.engine.progress import Progress
from hwm.engine.provenance import now
from hwm.errors import DataError
from hwm.pipelines.data_parts import Expected, Part, annotated_parts, named_parts
from hwm.terminal import counted, is_text

DataConfig = PretrainConfig | AdaptConfig | AnticipateConfig

TIMEOUT_SEC = 60.0
"""Seconds a video may take, on top of its size at 10 MB/s."""

_SLOWEST_BYTES_PER_SEC = 10e6
_DURATION_TOLERANCE_SEC = 0.5
_RATE_TOLERANCE = 0.01
_GAZE_TOLERANCE_MS = 10.0


class DataCheckResult(NamedTuple):
    """What the check found."""

    path: Path
    """Of the manifest."""
    setting: str
    """Where a recipe names it: `data.manifest` or `annotations.manifest`."""
    manifest: DataManifest
    num_checked: int
    """Videos that were opened now; the others are as an earlier check found them."""
    seconds: float


def run(config: DataConfig, timeout_sec: float = TIMEOUT_SEC) -> DataCheckResult:
    """Check the data of a recipe and write the manifest.

    Args:
        config: a recipe of `pretrain`, `adapt` or `anticipate`. The manifest goes where its `manifest` setting says,
            or to `data_manifest.json` in the run folder.
        timeout_sec: seconds a video may take, on top of its size at 10 MB/s.

    Raises:
        HwmError: annotations or lists that cannot be read, or a manifest that cannot be written.
    """
    started = time.monotonic()
    described = config.annotations if isinstance(config, AnticipateConfig) else config.data
    setting = "annotations.manifest" if isinstance(config, AnticipateConfig) else "data.manifest"
    path = described.manifest or config.folder / config.name / "data_manifest.json"
    parts = annotated_parts(described) if isinstance(described, AnnotationConfig) else named_parts(described)
    read_gaze = _gaze_reader(config)
    paths = _paths(parts)
    _require_text(paths)
    checks, stats, num_checked = _checked(paths, CheckLog(path), timeout_sec)
    fps = None if isinstance(described, AnnotationConfig) else described.fps
    videos = _records(parts, checks, stats, fps, read_gaze)
    manifest = _manifest(described, parts, videos)
    # The readers take what was found from here; it becomes the manifest when it is whole.
    draft = path.with_name(f".{path.name}.draft")
    _write(draft, manifest)
    coverage, unusable = _read_back(described.model_copy(update={"manifest": draft}), parts)
    _write(path, manifest.model_copy(update={"coverage": manifest.coverage | coverage, "unusable": unusable}))
    draft.unlink()
    return DataCheckResult(path, setting, read_manifest(path), num_checked, time.monotonic() - started)


def _paths(parts: Mapping[str, Part]) -> list[Path]:
    return list(dict.fromkeys(item.path for part in parts.values() for item in part.items if item.path is not None))


def _require_text(paths: Sequence[Path]) -> None:
    """A name in bytes that are no text cannot stand in JSON that others read.

    Raises:
        DataError: there is one.
    """
    odd = [path for path in paths if not is_text(str(path))]
    if odd:
        raise DataError(
            f"the path of {counted(len(odd), 'video')} is not text, which a manifest holds",
            expected="names in UTF-8",
            found="; ".join(map(str, odd[:3])),
            fix="rename these files or folders; a run without a manifest reads them as they are",
        )


def _checked(
    paths: Sequence[Path], log: CheckLog, timeout_sec: float
) -> tuple[dict[Path, VideoCheck], dict[Path, os.stat_result], int]:
    """A result for each path, from the log where the file is unchanged; and how many were opened."""
    checks: dict[Path, VideoCheck] = {}
    stats: dict[Path, os.stat_result] = {}
    for path in paths:
        try:
            stats[path] = path.stat()
        except OSError as error:
            gone = NOT_THERE if isinstance(error, FileNotFoundError) else str(error.strerror)
            checks[path] = VideoCheck(None, gone, None, False)
            continue
        kept = log.get(path, stats[path])
        if kept is not None:
            checks[path] = kept
    open_paths = [path for path in paths if path not in checks]

    def limit(path: Path) -> float:
        return timeout_sec + stats[path].st_size / _SLOWEST_BYTES_PER_SEC

    with Progress("videos checked", total=len(paths), done=len(paths) - len(open_paths)) as bar:
        for path, check in check_videos(open_paths, limit, _num_cores()):
            checks[path] = check
            log.add(path, stats[path], check)
            bar.advance()
    log.keep_only(stats.items())
    return checks, stats, len(open_paths)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _records(
    parts: Mapping[str, Part],
    checks: Mapping[Path, VideoCheck],
    stats: Mapping[Path, os.stat_result],
    grid_fps: float | None,
    read_gaze: Callable[[Path], GazeFacts | str | None],
) -> dict[str, VideoRecord]:
    items = {item.path: item for part in parts.values() for item in part.items if item.path is not None}
    records = {}
    for path, item in items.items():
        check, stat = checks[path], stats.get(path)
        facts = None if check.facts is None else VideoFacts.model_validate(check.facts)
        gaze = read_gaze(path)
        records[str(path)] = VideoRecord(
            size=stat.st_size if stat else 0,
            mtime_ns=stat.st_mtime_ns if stat else 0,
            chosen_as=item.chosen_as,
            annotated_duration_sec=item.annotated_duration_sec,
            facts=facts,
            reason=check.reason,
            detail=check.detail,
            gaze=gaze,
            notes=(*_video_notes(facts, item, grid_fps), *_gaze_notes(gaze)) if facts is not None else (),
        )
    return records


def _gaze_reader(config: DataConfig) -> Callable[[Path], GazeFacts | str | None]:
    """What is to be said of a video's gaze: of the file that the recipe leads to, else of the one beside a take.

    Raises:
        DataError: the folder of gaze files that the recipe names is not there.
    """
    said = GazeFilesConfig() if isinstance(config, AdaptConfig) else config.gaze_files
    folder = said.folder
    if isinstance(config, AnticipateConfig) and config.probe.gaze_point == "measured":
        folder = folder or config.annotations.videos
    files = None if folder is None else GazeFiles(folder, said)

    def read(video: Path) -> GazeFacts | str | None:
        found = gaze_file_of(video) if files is None else files.file_of(video)
        if found == NO_FILE:
            return NONE
        return check_gaze(found, said) if isinstance(found, Path) else None

    return read


def _video_notes(facts: VideoFacts, item: Expected, grid_fps: float | None) -> list[str]:
    """What does not forbid a video's use, in the same words for the same cause."""
    real_fps = facts.frames / facts.duration_sec
    container_sec, annotated_sec = facts.container_duration_sec, item.annotated_duration_sec
    promised = facts.frames_promised
    said = {
        "the container promises more frames than it holds": promised is not None
        and promised > facts.frames + facts.frames_hidden,
        "the container's duration is not that of its frames": container_sec is not None
        and abs(container_sec - facts.duration_sec) > _DURATION_TOLERANCE_SEC,
        "the duration in takes.json is not that of the frames": annotated_sec is not None
        and abs(annotated_sec - facts.duration_sec) > _DURATION_TOLERANCE_SEC,
        "the container's frame rate is not that of its frames": abs(facts.fps - real_fps) > _RATE_TOLERANCE * real_fps,
        "fewer frames a second than data.fps: frames are seen twice": grid_fps is not None
        and real_fps < grid_fps * (1 - _RATE_TOLERANCE),
        "more than one video stream: the one with the most pixels is read": facts.num_streams > 1,
    }
    return [note for note, holds in said.items() if holds]


def _gaze_notes(gaze: GazeFacts | str | None) -> list[str]:
    if isinstance(gaze, str):
        return [f"gaze file: {gaze}"]
    if gaze is None:
        return []
    error_ms = gaze.period_error_ms
    said = {
        "gaze file: it holds no rows": gaze.rows == 0,
        "gaze file: not 10 rows a second": error_ms is not None and error_ms > _GAZE_TOLERANCE_MS,
        "gaze file: pauses longer than 0.15 s": gaze.gaps > 0,
        "gaze file: half of the points and more are outside the picture": gaze.rows > 0
        and gaze.share_without_point >= 0.5,
    }
    return [note for note, holds in said.items() if holds]


def _manifest(
    described: AnnotationConfig | ClipDataConfig, parts: Mapping[str, Part], videos: dict[str, VideoRecord]
) -> DataManifest:
    coverage, counts = {}, {}
    for name, part in parts.items():
        excluded = list(part.excluded)
        for item in part.items:
            reason = item.reason if item.path is None else videos[str(item.path)].reason
            if reason is not None:
                excluded.append(Exclusion(item.item, reason))
        used = sum(item.path is not None and videos[str(item.path)].reason is None for item in part.items)
        coverage[name] = _coverage(part.expected, used, excluded)
        counts[name] = part.counts | {"usable": used}
    return DataManifest(
        schema_version=SCHEMA,
        hwm=hwm.__version__,
        created=now(),
        settings=described.model_dump(mode="json", exclude={"manifest"}),
        sources={
            name: SourceFile(path=path, sha256=content_sha256(path)) for name, path in _source_files(described).items()
        },
        counts=counts,
        coverage=coverage,
        unusable={},
        videos=videos,
    )


def _coverage(expected: int, used: int, excluded: Sequence[Exclusion]) -> Coverage:
    items = tuple(ExcludedItem(item=exclusion.item, reason=exclusion.reason) for exclusion in excluded)
    return Coverage(expected=expected, used=used, excluded=items)


_ANNOTATION_FILES = (
    "train", "val", "takes", "splits", "label_mapping", "taxonomy", "unseen_participants", "tail_verbs", "tail_nouns",
)  # fmt: skip


def _source_files(described: AnnotationConfig | ClipDataConfig) -> dict[str, Path]:
    if isinstance(described, AnnotationConfig):
        named = {name: getattr(described, name) for name in _ANNOTATION_FILES}
        return {f"annotations.{name}": path for name, path in named.items() if path is not None}
    lists = [Path(source) for source in (*described.train, *described.val)]
    return {f"data:{path}": path for path in lists if path.suffix.lower() in (".txt", ".csv") and path.is_file()}


def _read_back(
    described: AnnotationConfig | ClipDataConfig, parts: Mapping[str, Part]
) -> tuple[dict[str, Coverage], dict[str, str]]:
    """Coverage as a run will record it, by the readers that a run uses; and the parts that they refuse."""
    coverage: dict[str, Coverage] = {}
    unusable: dict[str, str] = {}
    tasks = None
    for name in parts:
        part = name.split()[0]
        try:
            if isinstance(described, AnnotationConfig):
                table = read_annotations(getattr(described, part), described, tasks)
                tasks = table.tasks
                coverage[f"{part} segments"] = _coverage(table.expected, len(table.segments), table.excluded)
            else:
                shortest = (described.num_steps - 1) / described.fps
                found = find_videos(getattr(described, part), described.glob, shortest, described.manifest)
                coverage[name] = _coverage(found.expected, len(found.videos), found.excluded)
        except DataError as error:
            unusable[part] = error.problem
    return coverage, unusable


def _write(path: Path, manifest: DataManifest) -> None:
    text = json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Disk().replace(path, text.encode())
    except OSError as error:
        raise DataError(
            f"cannot write the data manifest {path}: {error.strerror or error}", fix=ANOTHER_PLACE
        ) from error
