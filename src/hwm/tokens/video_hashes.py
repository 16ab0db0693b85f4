"""SHA-256 of videos' bytes, remembered, so that a run does not start by reading all of its data.

    <tokens>/video_hashes.txt      one line a video: check, SHA-256, what the file was like when it was read

A line holds for a file whose resolved path, size, time of modification, time of change (ctime, which no program can set
back) and inode are still the same. The number of the device is left out: it may change whenever a disk is mounted. A
file that was changed less than two seconds before it was read is not remembered: it may change once more within one
tick of its file system's clock, and look the same.

The file is a memory and no record. It may be deleted; processes may share it, and see at once what another adds; a line
that is torn or damaged is passed over: at worst a video is read anew.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hwm.data.content import content_sha256
from hwm.engine.disk import Disk
from hwm.engine.progress import warn
from hwm.errors import CacheError

VIDEO_HASHES = "video_hashes.txt"
"""Name of the file in a token folder."""

SETTLED_NS = 2_000_000_000
"""How long a file must have been left alone: the coarsest clock of a file system (FAT's) ticks every two seconds."""

_FORMAT = "hwm video hash 1"
_CHECK_LENGTH, _SHA256_LENGTH = 16, 64


class Forgotten(NamedTuple):
    """What `VideoHashes.forget` found; counts of lines."""

    dropped: int
    """Of files that are gone or have changed, and damaged ones."""
    kept: int


class VideoHashes:
    """The hashes that a token folder remembers.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] = {}
        self._read_to = 0
        self._can_write = True

    def recall(self, video: Path) -> str | None:
        """SHA-256 in hex of a video that is as it was when it was read; None for one that must be read.

        Raises:
            OSError: the video cannot be looked at.
        """
        return self._all().get(_state(video, video.stat()))

    def sha256(self, video: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
        """SHA-256 in hex of a video's bytes, which are read where it is not remembered.

        Args:
            video: the file.
            on_bytes: called with the size of each block that was read.

        Raises:
            OSError: the video cannot be read.
        """
        started_ns, before = time.time_ns(), video.stat()
        state = _state(video, before)
        known = self._all().get(state)
        if known is not None:
            return known
        digest = content_sha256(video, on_bytes)
        was_left_alone = max(before.st_mtime_ns, before.st_ctime_ns) < started_ns - SETTLED_NS
        if was_left_alone and _state(video, video.stat()) == state:
            self._remember(state, digest)
        return digest

    def forget(self, *, dry_run: bool) -> Forgotten:
        """Drop what is remembered of files that are gone or have changed since, and lines that are damaged.

        A line that another process adds meanwhile may be lost, and its video is read anew.

        Args:
            dry_run: only count.

        Raises:
            CacheError: the file cannot be written.
        """
        lines = _lines(self.path)
        kept = {state: digest for state, digest in _whole(lines) if _holds(state)}
        if len(kept) < len(lines) and not dry_run:
            try:
                Disk().replace(self.path, b"".join(_line(*entry) for entry in kept.items()))
            except OSError as error:
                raise CacheError(f"{self.path} cannot be written: {error.strerror or error}") from error
        return Forgotten(len(lines) - len(kept), len(kept))

    def _all(self) -> dict[str, str]:
        """State → SHA-256: all that this process or another has ever added."""
        try:
            size = self.path.stat().st_size
        except OSError:
            size = 0
        if size < self._read_to:  # written anew by `forget`, or deleted
            self._read_to = 0
        if size > self._read_to:
            self._known.update(_whole(_lines(self.path, self._read_to)))
            self._read_to = size
        return self._known

    def _remember(self, state: str, digest: str) -> None:
        self._all()[state] = digest
        if not self._can_write:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # over a network, appending alone does not keep writers apart
                file.write(_line(state, digest))
        except OSError as error:
            self._can_write = False
            warn(f"hashes of videos cannot be kept in {self.path} ({error.strerror or error}): they are taken anew")


def _state(video: Path, now: os.stat_result) -> str:
    """What a file is like, as text without line ends."""
    return json.dumps([os.path.realpath(video), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])


def _holds(state: str) -> bool:
    """Whether a file is still so; one that cannot be looked at may be."""
    try:
        video = Path(json.loads(state)[0])
        return _state(video, video.stat()) == state
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _line(state: str, digest: str) -> bytes:
    """Begins with the end of the line before, which may be torn."""
    return f"\n{_check(f'{digest} {state}')} {digest} {state}".encode()


def _check(said: str) -> str:
    return hashlib.sha256(f"{_FORMAT} {said}".encode()).hexdigest()[:_CHECK_LENGTH]


def _lines(path: Path, first_byte: int = 0) -> list[str]:
    """All lines of the file from a byte on; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(first_byte)
            content = file.read()
    except OSError:
        return []
    return [line for line in content.decode("ascii", errors="replace").split("\n") if line]


def _whole(lines: list[str]) -> Iterator[tuple[str, str]]:
    """State and SHA-256 of each line that is as it was written."""
    for line in lines:
        check, _, said = line.partition(" ")
        if check == _check(said):
            yield said[_SHA256_LENGTH + 1 :], said[:_SHA256_LENGTH]
