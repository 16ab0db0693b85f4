"""Progress of anything longer than two seconds: a bar with rate and time left on a terminal, plain lines elsewhere.

    with Progress("stage 1", total=1000, done=400) as bar:
        bar.advance(loss=0.42)
    with LateProgress("videos probed") as told:          where how many there are is found on the way
        told(3, 200)

Bars may be nested. Only the first of several processes shows anything.
"""

import time
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

import rich
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from hwm.terminal import printable

_LINE_EVERY_SEC = 15.0


def warn(text: str) -> None:
    """Says something that should be looked at, on a line of its own, above any bar."""
    say(f"warning: {text}", style="yellow")


def say(text: str, style: str = "") -> None:
    """Says something that is worth knowing, on a line of its own, above any bar."""
    if not _is_silent():
        rich.get_console().print(Text(printable(text), style=style), soft_wrap=True)


class Progress(AbstractContextManager["Progress"]):
    """How far something is.

    Args:
        label: what is being done.
        total: how many things there are to do.
        done: how many of them were done before (a resumed run); they do not count towards the rate.
        console: where to show it; None takes rich's shared console.
        even: whether things take about as long as one another; only then does their rate tell the time left.
    """

    def __init__(
        self, label: str, total: int, done: int = 0, console: Console | None = None, *, even: bool = True
    ) -> None:
        self._even = even
        self.label, self.total, self.done = label, total, done
        self._console = console or rich.get_console()
        self._at_start, self._started, self._last_line = done, time.monotonic(), time.monotonic()
        self._shown: dict[str, float] = {}
        self._silent = _is_silent()
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def advance(self, count: int = 1, **shown: float) -> None:
        """Counts `count` more as done, and shows some values beside the bar."""
        self.set(self.done + count, **shown)

    def set(self, done: int, **shown: float) -> None:
        """Says how many are done, and shows some values beside the bar."""
        self.done = done
        self._shown |= shown
        if self._bar is not None:
            self._bar.update(self._task, completed=done, beside=self._beside())
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SEC:
            self._line()

    def __enter__(self) -> "Progress":
        self._started = self._last_line = time.monotonic()
        if self._console.is_terminal and not self._silent:
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[beside]}", style="dim"), TimeElapsedColumn(),
                *([TimeRemainingColumn()] if self._even else []),
            )  # fmt: skip
            self._bar = RichProgress(*columns, console=self._console)
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, beside="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._last_line > self._started or time.monotonic() - self._started > 2.0:
            self._line()

    def _rate(self) -> float:
        return (self.done - self._at_start) / max(time.monotonic() - self._started, 1e-9)

    def _beside(self) -> str:
        values = [f"{name} {value:.4g}" for name, value in self._shown.items()]
        return "  ".join([f"{self._rate():.3g}/s", *values])

    def _line(self) -> None:
        self._last_line = time.monotonic()
        if self._silent:
            return
        rate = self._rate()
        is_told = self._even and rate > 0 and self.done < self.total
        left = f", {(self.total - self.done) / rate:.0f} s left" if is_told else ""
        self._console.print(Text(f"{self.label}: {self.done}/{self.total}  {self._beside()}{left}"), soft_wrap=True)


class LateProgress(AbstractContextManager["LateProgress"]):
    """A `Progress` that is shown from when the number of things is first told.

    Args:
        label: what is being done.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Progress | None = None
        self._shown = ExitStack()

    def __call__(self, done: int, total: int) -> None:
        """Says how many are done, of how many."""
        if self._bar is None:
            self._bar = self._shown.enter_context(Progress(self._label, total))
        self._bar.set(done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()


def _is_silent() -> bool:
    """Whether this is not the first of several processes."""
    return getattr(rank_zero_only, "rank", 0) != 0
