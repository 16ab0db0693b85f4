"""The name of a video's bytes: what the data manifest and the token cache both mean by "the same video"."""

import hashlib
from pathlib import Path


def content_sha256(path: Path) -> str:
    """SHA-256 of all bytes of a file, in hex. Cached tokens are filed under it, so a shorter hash would not do here.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
