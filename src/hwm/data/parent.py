"""A child process that ends when its parent is gone: one that is killed has no time to tell its children."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Called in a child process of `multiprocessing`: when its parent is gone, it gets a SIGTERM."""
    threading.Thread(target=_wait, name="parent", daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process has a parent to wait for"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
