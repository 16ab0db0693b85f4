"""Units as processes that need not start up: each is forked from one server that has imported everything already.

`hwm VERB RECIPE` spends most of a small training on its imports. Here a server imports once and computes nothing; a
unit is a fork of it, with its own log, threads and signals, and runs the same command. Where forking after imports is
not safe (anywhere but Linux) a unit starts up by itself. When its comparison is gone, a unit is asked to stop.

The log of a unit is locked from before it starts until it has ended, also where its comparison is killed meanwhile: two
comparisons that share a unit do not run it at the same time.
"""

import fcntl
import multiprocessing
import os
import runpy
import sys
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from hwm.data.parent import end_with_parent

_IMPORTED = ("hwm.cli", "hwm.pipelines.pretrain", "hwm.pipelines.anticipate", __name__)


class Log:
    """What a unit prints, opened and locked for the process that runs it; made by `open_log`."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __reduce__(self) -> tuple[object, ...]:
        return _received, (reduction.DupFd(self._handle),)

    def take_output(self) -> None:
        """In the process that runs the unit: all that it and its children print goes here from now on."""
        for stream in (1, 2):
            os.dup2(self._handle, stream)
        self.close()

    def close(self) -> None:
        """Lets go in this process; the lock lasts as long as the unit has it."""
        os.close(self._handle)


@runtime_checkable
class _Sent(Protocol):
    """A handle on its way to a child."""

    def detach(self) -> int: ...


def _received(handle: _Sent) -> Log:
    return Log(handle.detach())


def open_log(path: Path) -> Log | None:
    """The log of a unit, emptied; None where another comparison runs the unit, whose log is then left alone.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    return Log(handle)


def start_unit(verb: str, recipe: Path, log: Log, num_threads: int) -> BaseProcess:
    """Starts `hwm VERB RECIPE` in a process of its own, in the current folder.

    Args:
        verb: the command, e.g. `pretrain`.
        recipe: its configuration.
        log: gets all it prints.
        num_threads: threads that it computes with.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(list(_IMPORTED))
    child = context.Process(target=_run, args=(verb, str(recipe), log, num_threads, os.getcwd()))
    child.start()
    return child


def _run(verb: str, recipe: str, log: Log, num_threads: int, folder: str) -> None:
    os.chdir(folder)
    log.take_output()
    end_with_parent()  # a unit that went on would keep its folder from the same command run again
    os.environ |= {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}  # for its own children
    torch.set_num_threads(num_threads)
    sys.argv = ["hwm", verb, recipe]
    runpy.run_module("hwm", run_name="__main__")
