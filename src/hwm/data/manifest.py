"""The data manifest: what `hwm data check` found, and what a run that names it holds its data to.

    data_manifest.json      schema, sha256 of the annotation files, every video, counts, every exclusion with its reason

A run whose recipe names a manifest reads its videos' facts from it instead of probing them, leaves out what it leaves
out, and refuses to start if a file has changed since. A file is unchanged if its size is, and either its time of
modification or its content hash.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hwm.data.content import content_sha256
from hwm.data.exclusions import check_coverage
from hwm.data.gaze_check import GazeFacts
from hwm.data.probing import probe_videos
from hwm.data.video import VideoInfo
from hwm.errors import DataError
from hwm.terminal import counted

SCHEMA = 1
"""Raised whenever an older program would misread the file."""

_NUM_THREADS = 8


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VideoFacts(_Part):
    """What the check found in a usable video."""

    sha256: str
    """Of all bytes, as the token cache files it."""
    duration_sec: float
    """From the first frame's start to the last frame's end."""
    container_duration_sec: float | None
    """What the container's header says (the whole file, sound included)."""
    fps: float
    """Average frames a second, as the container has it."""
    frames: int
    frames_promised: int | None
    """What the container's header says; null where it says nothing."""
    frames_hidden: int
    """Frames cut by an edit list; they count for `frames_promised` and not for `frames`."""
    codec: str
    width: int
    height: int
    rotation: int
    num_streams: int


class VideoRecord(_Part):
    """One video file; exactly one of `facts` and `reason` is set."""

    size: int
    """Bytes."""
    mtime_ns: int
    """Time of modification, nanoseconds."""
    chosen_as: str
    """Which view it is and why this file was picked."""
    annotated_duration_sec: float | None
    """What `takes.json` says."""
    facts: VideoFacts | None
    reason: str | None
    """Why it is left out."""
    detail: str | None
    gaze: GazeFacts | str | None
    """The gaze file of the take, or what is wrong with it; null for a video outside a take."""
    notes: tuple[str, ...]
    """What does not forbid the use of the video and is worth a look."""

    @model_validator(mode="after")
    def _either_or(self) -> "VideoRecord":
        if (self.facts is None) == (self.reason is None):
            raise ValueError("a video has either facts or a reason why it is left out")
        return self


class SourceFile(_Part):
    """A file that the data are described by."""

    path: Path
    sha256: str


class ExcludedItem(_Part):
    """One thing that was expected and is not used."""

    item: str
    reason: str


class Coverage(_Part):
    """What was expected of one part, e.g. `train segments`: expected = used + excluded, or the file is refused."""

    expected: int
    used: int
    excluded: tuple[ExcludedItem, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> "Coverage":
        try:
            check_coverage("the data manifest", self.expected, self.used, len(self.excluded))
        except DataError as error:
            raise ValueError(f"{error.problem}: {error.expected}, found {error.found}") from None
        return self


class DataManifest(_Part):
    """The content of `data_manifest.json`."""

    schema_version: int
    hwm: str
    """Version of the program that wrote it."""
    created: str
    """UTC."""
    settings: dict[str, Any]
    """The recipe's `data` or `annotations`."""
    sources: dict[str, SourceFile]
    """Annotation files by setting, e.g. `annotations.train`."""
    counts: dict[str, dict[str, int]]
    """By part: annotated, in the metadata, on disk, usable."""
    coverage: dict[str, Coverage]
    unusable: dict[str, str]
    """Parts that a run would refuse to start with, and why."""
    videos: dict[str, VideoRecord]
    """By path, as the recipe leads to it."""

    def used_and_excluded(self) -> dict[str, int]:
        """Videos used and left out, for `run.json`."""
        used = sum(record.facts is not None for record in self.videos.values())
        return {"videos used": used, "videos excluded": len(self.videos) - used}

    def changes(self, on_progress: Callable[[int], None] = lambda done: None) -> list[str]:
        """What is no longer as it was recorded: one line for each annotation file and each video in use."""
        found = []
        for name, source in self.sources.items():
            if not source.path.is_file():
                found.append(f"{source.path} ({name}) is gone")
            elif content_sha256(source.path) != source.sha256:
                found.append(f"{source.path} ({name}) has other content")
        used = [(Path(path), record) for path, record in self.videos.items() if record.facts is not None]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for done, change in enumerate(pool.map(_change, used), start=1):
                found += [change] if change else []
                on_progress(done)
        return found


def read_manifest(path: Path) -> DataManifest:
    """Read a manifest.

    Raises:
        DataError: missing, malformed, of another schema, or one whose numbers do not add up.
    """
    fix = "hwm data check CONFIG writes it"
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the data manifest {path}: {error}", fix=fix) from error
    schema = tree.get("schema_version") if isinstance(tree, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} is no data manifest of this version", expected=f"schema {SCHEMA}", found=str(schema), fix=fix
        )
    try:
        return DataManifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DataError(f"the data manifest {path} is damaged at {where}", found=first["msg"], fix=fix) from None


def require_unchanged(path: Path, on_progress: Callable[[int], None] = lambda done: None) -> DataManifest:
    """Read a manifest and compare the data with it.

    Raises:
        DataError: it cannot be read, or a file in use has changed or is gone.
    """
    manifest = read_manifest(path)
    changes = manifest.changes(on_progress)
    if changes:
        raise DataError(
            f"the data are not those of {path}",
            expected="every annotation file and every video in use as it was when `hwm data check` ran",
            found=f"{len(changes)} changed: " + "; ".join(changes[:3]) + ("; ..." if len(changes) > 3 else ""),
            fix="fetch the files again, or accept them: hwm data check CONFIG",
        )
    return manifest


def known_videos(
    paths: Sequence[Path],
    manifest: Path | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[VideoInfo | str]:
    """`VideoInfo` of each path, or why it cannot be used: from the manifest, or by probing where there is none.

    Every reader of annotations gets its videos here. `on_progress` is that of `probe_videos`.

    Raises:
        DataError: the manifest cannot be read, or does not have one of the videos.
    """
    if manifest is None:
        return probe_videos(paths, on_progress=on_progress)
    videos = read_manifest(manifest).videos
    unknown = [path for path in paths if str(path) not in videos]
    if unknown:
        raise DataError(
            f"the data manifest {manifest} lacks {counted(len(unknown), 'video')}",
            expected="only videos that were checked",
            found=", ".join(str(path) for path in unknown[:3]),
            fix="hwm data check CONFIG",
        )
    return [_known(path, videos) for path in paths]


def _known(path: Path, videos: Mapping[str, VideoRecord]) -> VideoInfo | str:
    record = videos[str(path)]
    facts = record.facts
    if facts is None:
        assert record.reason is not None
        return record.reason
    return VideoInfo(
        path, facts.duration_sec, facts.width, facts.height, facts.fps, facts.codec, facts.rotation, facts.num_streams
    )


def _change(known: tuple[Path, VideoRecord]) -> str | None:
    path, record = known
    assert record.facts is not None
    try:
        now = path.stat()
        if now.st_size != record.size:
            return f"{path} has {now.st_size} bytes (was {record.size})"
        if now.st_mtime_ns != record.mtime_ns and content_sha256(path) != record.facts.sha256:
            return f"{path} has other content"
    except FileNotFoundError:
        return f"{path} is gone"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None
