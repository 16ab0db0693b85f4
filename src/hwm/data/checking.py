"""Checking videos in processes that can be ended: no file, however broken, costs more than its time limit.

In: paths and a time limit for each. Out: a `VideoCheck` for each, facts or the reason why the video cannot be used, as
they come. The children are `hwm.data.check_child`, one a worker, each started again when it was ended or crashed.
"""

import json
import os
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from hwm.errors import DataError

START_TIMEOUT_SEC = 120.0
"""Seconds a child may take to start: a cold disk and a busy machine, never a video."""

_END_TIMEOUT_SEC = 2.0
"""A process that sleeps in the kernel on a dead disk cannot be ended at once; it is not waited for longer."""


class VideoCheck(NamedTuple):
    """What a child said about a video; exactly one of `facts` and `reason` is set."""

    facts: dict[str, Any] | None
    reason: str | None
    detail: str | None
    is_final: bool
    """False for a time-out or a crash: the next run tries the video again."""


class CheckChild:
    """One killable child process.

    Args:
        command: what to run; None runs `hwm.data.check_child`.
    """

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = list(command or (sys.executable, "-m", "hwm.data.check_child"))
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def check(self, path: Path, timeout_sec: float) -> VideoCheck:
        """The child's answer for one video, within the time limit (the start of a child does not count).

        Raises:
            DataError: the child itself cannot be started, a fault of the installation and not of the video.
        """
        child = self._started()
        assert child.stdin is not None
        with suppress(BrokenPipeError):  # it died on its own; the missing answer is told below
            child.stdin.write(json.dumps(str(path)).encode() + b"\n")
            child.stdin.flush()
        line = _read_line(child, timeout_sec)
        if line is None:
            self.kill()
            return VideoCheck(None, f"the decoder did not answer within {timeout_sec:g} s and was ended", None, False)
        if not line:
            code, last_words = self._death()
            return VideoCheck(None, f"the decoder ended with code {code}", last_words, False)
        said = json.loads(line)
        return VideoCheck(said.get("facts"), said.get("reason"), said.get("detail"), True)

    def kill(self) -> None:
        """End the child, if there is one; safe to call from another thread."""
        child = self._child
        if child is not None:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_TIMEOUT_SEC)

    def close(self) -> None:
        """End the child and give its pipes back."""
        self.kill()
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
        if self._log is not None:
            self._log.close()
        self._child = self._log = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        source = str(Path(__file__).parents[2])  # the child finds this same package, installed or not
        paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
        self._log = tempfile.TemporaryFile()  # not a pipe: a full one would block the child
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0,
            env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        if not _read_line(self._child, START_TIMEOUT_SEC):
            self.kill()
            raise DataError(
                "the process that checks videos cannot be started",
                expected=f"an answer of `{' '.join(self._command)}` within {START_TIMEOUT_SEC:g} s",
                found=self._death()[1],
                fix="hwm doctor",
            )
        return self._child

    def _death(self) -> tuple[int | None, str | None]:
        """Exit code and last line of the log of a child that has ended."""
        assert self._child is not None
        assert self._log is not None
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_END_TIMEOUT_SEC)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return self._child.returncode, lines[-1] if lines else None


def check_videos(
    paths: Sequence[Path],
    timeout_sec: Callable[[Path], float],
    num_workers: int,
    command: Sequence[str] | None = None,
) -> Iterator[tuple[Path, VideoCheck]]:
    """Check many videos at once.

    Args:
        paths: video files.
        timeout_sec: seconds that a file may take; it is ended then, and named.
        num_workers: children at a time.
        command: what a child runs; None runs `hwm.data.check_child`.

    Yields:
        Each path once, with its result, in the order in which they are ready.

    Raises:
        DataError: children cannot be started.
    """
    asked: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in paths:
        asked.put(path)
    answers: queue.SimpleQueue[tuple[Path, VideoCheck | DataError | None]] = queue.SimpleQueue()
    children = [CheckChild(command) for _ in range(min(num_workers, len(paths)))]
    threads = [
        threading.Thread(target=_work, args=(child, asked, answers, timeout_sec), daemon=True) for child in children
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in paths:
            path, check = answers.get()
            if check is None:
                raise DataError(f"the check of {path} failed in an unexpected way", fix="please report this as a bug")
            if isinstance(check, DataError):
                raise check
            yield path, check
    finally:
        _end(asked, children, threads)


def _end(asked: "queue.SimpleQueue[Path]", children: list[CheckChild], threads: list[threading.Thread]) -> None:
    """Leaves no process behind, whatever it was doing."""
    with suppress(queue.Empty):
        while True:
            asked.get_nowait()
    for child in children:
        child.kill()
    for thread in threads:
        if thread.ident is not None:
            thread.join(_END_TIMEOUT_SEC)
    for child in children:
        child.close()


def _work(
    child: CheckChild,
    asked: "queue.SimpleQueue[Path]",
    answers: "queue.SimpleQueue[tuple[Path, VideoCheck | DataError | None]]",
    timeout_sec: Callable[[Path], float],
) -> None:
    while True:
        try:
            path = asked.get_nowait()
        except queue.Empty:
            return
        answer: VideoCheck | DataError | None = None
        try:
            answer = child.check(path, timeout_sec(path))
        except DataError as error:
            answer = error
        finally:
            answers.put((path, answer))


def _read_line(child: subprocess.Popen[bytes], timeout_sec: float) -> bytes | None:
    """One line of the child's output; empty if it has ended, None if the time is over."""
    assert child.stdout is not None
    deadline = time.monotonic() + timeout_sec
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            part = os.read(child.stdout.fileno(), 65536)
            if not part:
                return b""
            line += part
    return line
