"""A process and all that it starts, of which nothing is left behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def own_group(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process of a command, first of a group of its own; what is left of the group at the end is killed."""
    child = subprocess.Popen(command, start_new_session=True)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def is_gone_within(group: int, seconds: float) -> bool:
    """Whether no process of the group is left, now or before that time is over."""
    until = time.monotonic() + seconds
    while _is_there(group) and time.monotonic() < until:
        time.sleep(0.1)
    return not _is_there(group)


def _is_there(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False
