"""Items of a loader whose worker processes may be killed: by the system for want of memory, or by hand.

torch raises an error of its own then, by a signal handler, wherever the main thread happens to be: also while a record
is being written. Here the death of a worker is told where its next item would have come.
"""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from hwm.errors import RunError

_ENDING_SEC = 1.0
"""How long a worker may take to end after it has closed its connections."""


def loaded(loader: DataLoader[Any]) -> Iterator[Any]:
    """The items of a loader.

    Raises:
        RunError: a worker process was killed or ended by itself.
    """
    others = multiprocessing.active_children()
    with _own_handler():
        items = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # what torch and the system call it, and much else
            dead = _dead(workers)
            if dead is None:
                raise
            raise RunError(
                "a process that decodes videos ended before its work was done", found=dead,
                fix="look whether memory ran out (each process decodes a batch ahead): "
                "set runtime.num_workers or optim.batch_size lower",
            ) from error  # fmt: skip
        yield item


@contextmanager
def _own_handler() -> Iterator[None]:
    """On leaving, what is done when a child ends is what it was: `iter` of a loader with workers changes it."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _dead(workers: list[BaseProcess]) -> str | None:
    """How a worker ended that should still work; None where all of them do."""
    if workers:
        wait([worker.sentinel for worker in workers], _ENDING_SEC)
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if not codes:
        return None
    return signal.Signals(-codes[0]).name if codes[0] < 0 else f"exit code {codes[0]}"
