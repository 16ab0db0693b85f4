"""The record of weight files' hashes, `sha256.json` beside the files: what each file was when it was first seen.

    {"vitl.pt": {"sha256": "…", "size": 1, "mtime_ns": 2}, …}

A file that is fetched or checked again must have the recorded hash. Size and time of change only say whether it may
have been touched since; the hash alone decides. No torch here.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hwm.errors import WeightsError, naming

RECORD_NAME = "sha256.json"
State = Literal["absent", "here", "verified", "changed"]
Watch = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_CHUNK_BYTES = 4 << 20
_LOCK_WAIT_SEC = 30.0


@dataclass(frozen=True)
class Seen:
    """What a file was when its hash was last taken."""

    sha256: str
    size: int
    mtime_ns: int


def hash_of(path: Path, watch: Watch | None = None) -> str:
    """SHA-256 of a file's bytes in hex.

    Raises:
        WeightsError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                if watch is not None:
                    watch(stream.tell(), size)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read", found=str(error), fix="check the path") from error
    return digest.hexdigest()


def read_record(folder: Path) -> dict[str, Seen]:
    """The record of a weights folder: file (relative to it) → what it was; empty where there is none yet.

    Raises:
        WeightsError: the record is damaged.
    """
    path = folder / RECORD_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {file: _seen(fields) for file, fields in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is damaged", expected="file names with sha256, size and mtime_ns", found=str(error)[:200],
            fix="move it away; `hwm weights verify` writes a new one from the files that are there",
        ) from error  # fmt: skip


def write_seen(folder: Path, file: str, sha256: str) -> None:
    """Record a file's hash; other files' entries stay, also when several processes write at once.

    Raises:
        WeightsError: the record is damaged, or another process keeps it locked.
    """
    status = (folder / file).stat()
    with locked(folder / f".{RECORD_NAME}.lock", wait_sec=_LOCK_WAIT_SEC):
        record = read_record(folder)
        record[file] = Seen(sha256, status.st_size, status.st_mtime_ns)
        plain = {name: asdict(record[name]) for name in sorted(record)}
        replace_text(folder / RECORD_NAME, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def state_of(folder: Path, file: str, record: dict[str, Seen]) -> State:
    """Whether a file is there, and whether it is as it was when its hash was taken (by size and time; nothing is read).

    Returns:
        `absent`; `here`: its hash was never taken; `verified`: untouched since it was; `changed`: touched since.
    """
    try:
        status = (folder / file).stat()
    except OSError:
        return "absent"
    seen = record.get(file)
    if seen is None:
        return "here"
    return "verified" if (status.st_size, status.st_mtime_ns) == (seen.size, seen.mtime_ns) else "changed"


def replace_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all, and flush it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path), aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


@contextmanager
def locked(path: Path, wait_sec: float = 0.0) -> Iterator[None]:
    """Hold a lock that dies with its process.

    Raises:
        WeightsError: another process holds it and did not let go within `wait_sec`; the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise WeightsError(
            f"{path.parent} cannot be written", found=str(error), fix="set HWM_HOME to a folder that can be"
        ) from error
    with stream:
        until = time.monotonic() + wait_sec
        while not _take(stream.fileno()):
            if time.monotonic() >= until:
                raise WeightsError(
                    f"another process is at work on {path.name.removeprefix('.').removesuffix('.lock')}",
                    expected="one process at a time for a file", found=f"{path} is locked", fix="wait until it is done",
                )  # fmt: skip
            time.sleep(0.05)
        yield


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _seen(fields: dict[str, object]) -> Seen:
    sha256, size, mtime_ns = fields["sha256"], fields["size"], fields["mtime_ns"]
    if not (isinstance(sha256, str) and isinstance(size, int) and isinstance(mtime_ns, int)):
        raise ValueError("a field is of the wrong type")
    return Seen(sha256, size, mtime_ns)
