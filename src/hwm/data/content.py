"""The name of a video's bytes: what the data manifest and the token cache both mean by "the same video"."""

import hashlib
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20


def content_sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of all bytes of a file, in hex. Cached tokens are filed under it, so a shorter hash would not do here.

    Args:
        path: the file.
        on_bytes: called with the size of each block that was read.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()
