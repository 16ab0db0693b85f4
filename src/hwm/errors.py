"""Every error a user can meet, as one tree; each says what was expected, what was found and what to do.

HwmError
├── ConfigError     a recipe, an override or a flag is wrong
├── WeightsError    a weight file is missing, damaged, or does not fit the model
├── DataError       a video, an annotation or a gaze file is missing, damaged, or contradicts another
├── CacheError      a stored token file is damaged or belongs to something else
└── RunError        a run cannot go on: non-finite loss, a checkpoint that is missing or torn, a locked folder
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses is told with this file's name: a disk that is full names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # with a file's name, one that has words alone would lose them
            error.filename = error.filename or str(path)
        raise


class HwmError(Exception):
    """Base of all errors raised on purpose; `cli.py` prints them without a traceback.

    Args:
        problem: one sentence that names the thing that is wrong (file, key, sample).
        expected: what would have been right.
        found: what was there instead.
        fix: what the user can do next, if possible as a command.
    """

    def __init__(
        self, problem: str, *, expected: str | None = None, found: str | None = None, fix: str | None = None
    ) -> None:
        self.problem, self.expected, self.found, self.fix = problem, expected, found, fix
        parts = [problem]
        parts += [
            f"  {name}: {text}" for name, text in (("expected", expected), ("found", found), ("fix", fix)) if text
        ]
        super().__init__("\n".join(parts))


class ConfigError(HwmError):
    """A recipe, an override or a command-line flag is wrong."""


class WeightsError(HwmError):
    """A weight file is missing, damaged, or does not fit the model."""


class DataError(HwmError):
    """A video, an annotation or a gaze file is missing, damaged, or contradicts another."""


class CacheError(HwmError):
    """A stored token file is damaged or belongs to other videos, weights or settings."""


class RunError(HwmError):
    """A run cannot go on: non-finite loss, missing or torn checkpoint, folder in use."""
