"""Looking after a token cache: reading every file back, and removing what is of no use.

Nothing is touched but files with the names that this cache gives, in folders with the names that it gives, directly
below the cache folder; links are not followed. Files that a process is writing are left to it.
"""

import fcntl
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from hwm.errors import CacheError
from hwm.tokens.token_file import PARTIAL, rehash

_PART = re.compile(r"(z|scene)-[0-9a-f]{16}")
_ENTRY = re.compile(r"[0-9a-f]{32}(-[0-9a-f]{8})?\.safetensors")
_REMAINS = re.compile(rf"\.[0-9a-f]{{32}}.*({re.escape(PARTIAL)}|\.lock)")


class TokenFile(NamedTuple):
    """One file of a cache, and what is wrong with it, if anything."""

    path: Path
    num_bytes: int
    reason: str | None


class Checked(NamedTuple):
    """All files of a cache."""

    files: tuple[TokenFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(file.num_bytes for file in self.files)

    @property
    def bad(self) -> tuple[TokenFile, ...]:
        """Those with something wrong."""
        return tuple(file for file in self.files if file.reason is not None)


def total_bytes(folder: Path) -> int:
    """Bytes of all token files of a cache."""
    return sum(path.stat().st_size for path in _entries(folder, _ENTRY))


def verify_cache(folder: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Checked:
    """Read every token file and compare it with the hashes in its header.

    Args:
        folder: the cache.
        on_bytes: called with the size of each file that was read.
    """
    return Checked(tuple(_looked_at(path, None, on_bytes) for path in _entries(folder, _ENTRY)))


def prune_cache(
    folder: Path, keep: Collection[Path], *, dry_run: bool, on_bytes: Callable[[int], None] = lambda count: None
) -> Checked:
    """Remove token files of other weights, settings or versions, damaged ones, and what writes that broke off left.

    Args:
        folder: the cache.
        keep: folders below it whose whole files stay (`TokenCache.folders`).
        dry_run: only say what would be removed.
        on_bytes: called with the size of each file that was read.

    Returns:
        All files; the bad ones were (or would be) removed.

    Raises:
        CacheError: a file cannot be removed.
    """
    files = [_looked_at(path, keep, on_bytes) for path in _entries(folder, _ENTRY)]
    for path in _entries(folder, _REMAINS):
        if not _in_use(path):
            files.append(TokenFile(path, path.stat().st_size, "left by a write that broke off"))
    checked = Checked(tuple(files))
    if not dry_run:
        for file in checked.bad:
            _remove(file.path)
        for part in _parts(folder):
            if not any(part.iterdir()):
                part.rmdir()
    return checked


def _looked_at(path: Path, keep: Collection[Path] | None, on_bytes: Callable[[int], None]) -> TokenFile:
    num_bytes = path.stat().st_size
    foreign = keep is not None and path.parent.name not in {kept.name for kept in keep}
    reason = "of other weights, settings or version" if foreign else rehash(path)
    on_bytes(num_bytes)
    return TokenFile(path, num_bytes, reason)


def _parts(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _PART.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def _entries(folder: Path, names: re.Pattern[str]) -> Iterator[Path]:
    for part in _parts(folder):
        yield from sorted(p for p in part.iterdir() if names.fullmatch(p.name) and p.is_file() and not p.is_symlink())


def _in_use(path: Path) -> bool:
    """Whether a process holds the lock on a file that it is writing."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True  # it has just become a token file
    except BlockingIOError:
        return True
    return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(f"token file {path} cannot be removed: {error.strerror or error}") from error
