"""Units as processes that need not start up: each is forked from one server that has imported everything already.

`hwm VERB RECIPE` spends most of a small training on its imports. Here a server imports once and computes nothing; a
unit is a fork of it, with its own log, threads and signals, and runs the same command. Where forking after imports is
not safe (anywhere but Linux) a unit starts up by itself. When its comparison is gone, a unit is asked to stop.
"""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from hwm.data.parent import end_with_parent

_IMPORTED = ("hwm.cli", "hwm.pipelines.pretrain", "hwm.pipelines.anticipate", __name__)


def start_unit(verb: str, recipe: Path, log: Path, num_threads: int) -> BaseProcess:
    """Starts `hwm VERB RECIPE` in a process of its own, in the current folder.

    Args:
        verb: the command, e.g. `pretrain`.
        recipe: its configuration.
        log: file that gets all it prints.
        num_threads: threads that it computes with.
    """
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(list(_IMPORTED))
    child = context.Process(target=_run, args=(verb, str(recipe), str(log), num_threads, os.getcwd()))
    child.start()
    return child


def _run(verb: str, recipe: str, log: str, num_threads: int, folder: str) -> None:
    os.chdir(folder)
    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    end_with_parent()  # a unit that went on would keep its folder from the same command run again
    os.environ |= {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}  # for its own children
    torch.set_num_threads(num_threads)
    sys.argv = ["hwm", verb, recipe]
    runpy.run_module("hwm", run_name="__main__")
