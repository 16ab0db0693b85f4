"""`hwm compare CONFIG`: does gaze help, and would we know?

    plan = make_plan(config)     which trainings it takes, and which are there already
    result = run(plan)           trains what is missing, each unit in a process of its own, and writes the report

The first unit fills the token cache that the others read. It runs alone but for helpers, one for each other process
that is allowed, which run `hwm extract` on its recipe and so share the encoding.

A unit that fails is told at the end with its log; the others finish, and the report says what is missing. One that
another comparison runs is waited for. The report is made from the finished stage-2 runs alone
(`pipelines.compare_runs`), as `hwm compare --from RUN...` makes it.
"""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from hwm.config import CompareConfig, PretrainConfig, RunConfig
from hwm.engine.progress import Progress, say
from hwm.engine.runlog import RunLog
from hwm.engine.runtime import EXIT_STOPPED, StopFlag
from hwm.errors import RunError, naming
from hwm.evaluation.compare_report import Written
from hwm.pipelines.compare_child import open_log, start_unit
from hwm.pipelines.compare_cost import Clock
from hwm.pipelines.compare_runs import report_on
from hwm.pipelines.compare_units import Plan, Unit, state_of
from hwm.recipes import dump_config

POLL_SEC = 0.2
STOP_SEC = 60.0
"""How long a unit may take to save after it was asked to stop."""


class Failure(NamedTuple):
    """A unit that did not finish."""

    unit: str
    reason: str
    log: Path | None
    """None where it was not started."""


def run(plan: Plan) -> Written:
    """Train every unit that is not finished, then write `report.html`.

    Raises:
        RunError: units failed (told after the others have finished and the report is written), or none finished.
    """
    config = plan.config
    with RunLog.open(config, "compare", resume=False) as log, StopFlag() as stop:
        failures = _train(plan, log, stop)
        log.record(units={unit.name: state_of(unit.config) for unit in plan.units})
        done = [u.folder for u in plan.units if u.verb == "anticipate" and state_of(u.config) == "finished"]
        if not done:
            raise _failed(plan, failures, "no unit of stage 2 has finished, so there is nothing to compare")
        missing = [f"{failure.unit}: {failure.reason}" for failure in failures]
        result = report_on(done, log.folder, config.num_examples, config.ceilings, missing, config.equivalence)
        log.record(report=str(result.report))
        if failures:
            raise _failed(plan, failures, f"the report of the others is {result.report}")
        return result


def _train(plan: Plan, log: RunLog, stop: StopFlag) -> list[Failure]:
    """Runs the units that are not finished, as many at a time as the configuration allows."""
    waiting = [unit for unit in plan.units if unit.state != "finished"]
    done = {unit.name for unit in plan.units if unit.state == "finished"}
    failures: list[Failure] = []
    clock = Clock(plan)
    bar = Progress("units", len(plan.units), done=len(done), even=False)  # `clock` tells the time left
    with Children(plan.config) as children, bar:
        while waiting or children.running:
            if stop.requested:
                raise SystemExit(EXIT_STOPPED)
            for unit, code, seconds in children.collect():
                if code == 0 and state_of(unit.config) == "finished":
                    done.add(unit.name)
                    clock.add(unit, seconds)
                else:
                    failures.append(Failure(unit.name, _why(unit, code), log_of(unit)))
            lost = {failure.unit for failure in failures}
            for unit in [unit for unit in waiting if unit.needs in lost]:
                waiting.remove(unit)
                failures.append(Failure(unit.name, f"its stage 1, {unit.needs}, failed", None))
            is_first = not (done or failures)
            room = (1 if is_first else plan.config.processes) - len(children.running)
            ready = [unit for unit in waiting if unit.needs is None or unit.needs in done]
            for unit in _started(ready, room, children, done):
                waiting.remove(unit)
                if is_first and unit.name not in done:
                    children.help_encode(unit)
            bar.set(len(done) + len(failures), **clock.left(waiting, children.running))
            time.sleep(POLL_SEC)
        for printed in children.failed_helpers():
            log.warn(f"a process that helped to encode failed, and the unit did its share: {printed}")
    return failures


def _started(ready: Sequence[Unit], room: int, children: "Children", done: set[str]) -> list[Unit]:
    """Starts as many units as there is room for, and takes those for done that another comparison has finished."""
    taken: list[Unit] = []
    for unit in ready:
        if room <= 0:
            break
        if state_of(unit.config) == "finished":
            done.add(unit.name)
        elif children.start(unit):
            room -= 1
        else:
            continue
        taken.append(unit)
    return taken


class Children(AbstractContextManager["Children"]):
    """The processes that run units; on leaving, those that still run are asked to save and stop, and waited for."""

    def __init__(self, config: CompareConfig) -> None:
        self._processes, self._threads = config.processes, max(1, (os.cpu_count() or 1) // config.processes)
        self._running: list[tuple[Unit, BaseProcess, float]] = []
        self._helpers: list[tuple[Path, BaseProcess]] = []
        self._told: set[str] = set()

    @property
    def running(self) -> list[Unit]:
        """Units that run now."""
        return [unit for unit, _, _ in self._running]

    def start(self, unit: Unit) -> bool:
        """Starts a unit: the same command that a user would give, with its output in the unit's log.

        Returns:
            Whether it was started; false where another comparison runs it, which is said once.
        """
        child = self._child(unit.verb, unit.config)
        if child is not None:
            self._running.append((unit, child, time.monotonic()))
        elif unit.name not in self._told:
            self._told.add(unit.name)
            say(f"{unit.name} is being run by another comparison: this one waits for it")
        return child is not None

    def help_encode(self, unit: Unit) -> None:
        """Starts the helpers of a unit that trains stage 1, where it reads cached tokens."""
        if not isinstance(unit.config, PretrainConfig) or unit.config.tokens.source != "cached":
            return
        for number in range(1, self._processes):
            config = unit.config.model_copy(update={"name": f"tokens{number}-{unit.name}"})
            if (child := self._child("extract", config)) is not None:
                self._helpers.append((_log(config), child))

    def failed_helpers(self) -> list[Path]:
        """Logs of the helpers that ended with an error."""
        return [log for log, child in self._helpers if child.exitcode]

    def _child(self, verb: str, config: RunConfig) -> BaseProcess | None:
        log = open_log(_log(config))
        if log is None:
            return None
        with closing(log):
            recipe = config.folder / f"{config.name}.yaml"
            with naming(recipe):
                dump_config(config, recipe)
            return start_unit(verb, recipe, log, self._threads)

    def collect(self) -> list[tuple[Unit, int, float]]:
        """Units that have ended since the last call, with their exit codes and seconds."""
        ended = [(unit, code, time.monotonic() - at) for unit, child, at in self._running
                 if (code := child.exitcode) is not None]  # fmt: skip
        gone = {unit.name for unit, _, _ in ended}
        self._running = [entry for entry in self._running if entry[0].name not in gone]
        return ended

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        children = [child for _, child, _ in self._running] + [child for _, child in self._helpers]
        for child in children:
            child.terminate()
        for child in children:
            child.join(STOP_SEC)
            if child.exitcode is None:
                child.kill()
                child.join()


def log_of(unit: Unit) -> Path:
    """What a unit printed."""
    return _log(unit.config)


def _log(config: RunConfig) -> Path:
    return config.folder / f"{config.name}.log"


def _why(unit: Unit, code: int) -> str:
    """The error that a unit's log ends with."""
    lines = log_of(unit).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()]
    ending = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{errors[-1].removeprefix('error: ')} ({ending})" if errors else ending


def _failed(plan: Plan, failures: Sequence[Failure], also: str) -> RunError:
    lines = [f"{f.unit}: {f.reason}" + (f"\n      log: {f.log}" if f.log else "") for f in failures]
    return RunError(
        f"{len(failures)} of {len(plan.units)} units failed; {also}",
        found="\n    ".join(["", *lines]),
        fix="mend the cause and run the same command again: finished units are not run twice",
    )
