"""Values made ahead of use by a thread, a bounded number of them: decoding goes on while a model computes.

Decoding and scaling release Python's lock, so one thread is enough to overlap them with the work of the main thread.
"""

import queue
import threading
from collections.abc import Generator
from typing import TypeVar

_Value = TypeVar("_Value")


class _End:
    """The end of the values, and the error that ended them, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def ahead(values: Generator[_Value, None, None], depth: int) -> Generator[_Value, None, None]:
    """The same values in the same order, made by a thread up to `depth` of them ahead.

    At most depth + 2 values exist at once: those in the queue, the one in use, and the one being made. An error of
    `values` is raised where its value would have come. When the caller stops early, the thread ends after the value it
    is at; it has ended when this generator is closed.

    Args:
        values: used, and in the end closed, by the thread alone.
        depth: 1 or more.
    """
    made: queue.Queue[_Value | _End] = queue.Queue(depth)
    stopped = threading.Event()
    thread = threading.Thread(target=_make, args=(values, made, stopped), name="ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(value := made.get(), _End):
            yield value
        if value.error is not None:
            raise value.error
    finally:
        stopped.set()
        thread.join()


def _make(values: Generator[_Value, None, None], made: "queue.Queue[_Value | _End]", stopped: threading.Event) -> None:
    try:
        for value in values:
            if not _put(value, made, stopped):
                return
    except BaseException as error:  # handed to the caller, which raises it
        _put(_End(error), made, stopped)
        if not isinstance(error, Exception):
            raise
    else:
        _put(_End(None), made, stopped)
    finally:
        values.close()


def _put(value: _Value | _End, made: "queue.Queue[_Value | _End]", stopped: threading.Event) -> bool:
    """Whether there was room before the caller stopped."""
    while not stopped.is_set():
        try:
            made.put(value, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
