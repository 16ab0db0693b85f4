"""Probing many videos at once, so that one file that never answers costs one exclusion and not the run.

In: paths. Out: for each, its `VideoInfo` or the reason why it cannot be used. Threads, not processes: probing waits for
storage, and PyAV gives up the interpreter's lock while it does.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hwm.data.video import VideoInfo, probe_video
from hwm.errors import DataError

PROBE_TIMEOUT_SEC = 60.0
"""Far above what a slow network disk needs for one file."""

_NUM_THREADS = 8
_TICK_SEC = 0.5

_Answers = queue.SimpleQueue[tuple[int, VideoInfo | str | None]]


def probe_videos(
    paths: Sequence[Path],
    timeout_sec: float = PROBE_TIMEOUT_SEC,
    probe: Callable[[Path], VideoInfo] = probe_video,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[VideoInfo | str]:
    """Probe each path.

    Args:
        paths: video files.
        timeout_sec: seconds one file may take; its thread is then left behind (it cannot be ended from outside).
        probe: what is done with a path.
        on_progress: called with how many are done, of how many, twice a second at least, even where none answers; what
            it raises ends the probing.

    Returns:
        In the order of `paths`: the `VideoInfo`, or the reason (without the path, so that reasons can be counted).
    """
    results: dict[int, VideoInfo | str] = {}
    waiting = list(range(len(paths)))[::-1]
    deadlines: dict[int, float] = {}
    answers: _Answers = queue.SimpleQueue()
    while waiting or deadlines:
        while waiting and len(deadlines) < _NUM_THREADS:
            index = waiting.pop()
            deadlines[index] = time.monotonic() + timeout_sec
            # Daemons: one that hangs must not keep the program from ending.
            threading.Thread(target=_answer, args=(index, paths[index], probe, answers), daemon=True).start()
        on_progress(len(results), len(paths))
        try:
            left = min(deadlines.values()) - time.monotonic()
            index, answer = answers.get(timeout=min(max(0.0, left), _TICK_SEC))
        except queue.Empty:
            for late in [index for index, deadline in deadlines.items() if deadline <= time.monotonic()]:
                del deadlines[late]
                results[late] = f"no answer within {timeout_sec:g} s"
            continue
        if answer is None:
            raise DataError(
                f"the probe of {paths[index]} failed in an unexpected way", fix="please report this as a bug"
            )
        if deadlines.pop(index, None) is not None:
            results[index] = answer
    on_progress(len(paths), len(paths))
    return [results[index] for index in range(len(paths))]


def _answer(index: int, path: Path, probe: Callable[[Path], VideoInfo], answers: _Answers) -> None:
    answer: VideoInfo | str | None = None
    try:
        answer = probe(path)
    except DataError as error:
        answer = error.problem.removeprefix(f"cannot read video {path}: ")
    finally:
        answers.put((index, answer))
