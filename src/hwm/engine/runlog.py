"""The record of a run, written as it goes: one folder, the same for every verb.

    <folder>/<name>/
        config.yaml       the resolved configuration, itself a valid CONFIG
        run.json          versions, commit, command, sha256 of weights and data, coverage with reasons, warnings, status
        metrics.jsonl     one line a step that is logged: {"step": 20, "train/total": 0.61, ...}
        timings.jsonl     what depends on the machine and the hour: {"step": 20, "train/data_wait": 0.03}
        checkpoints/      see `checkpoint`

`metrics.jsonl` holds means over all steps since the last line, never the last batch alone, and no clock times, so that
a resumed run writes the same file as a straight one. A lock keeps two runs out of one folder and dies with its process.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from torch import nn

from hwm.config import RunConfig
from hwm.data.exclusions import Exclusion, check_coverage, most_frequent, summarise
from hwm.engine.checkpoint import CHECKPOINTS, CheckpointStore
from hwm.engine.disk import Disk
from hwm.engine.logged import METRICS, TIMINGS, lines_until
from hwm.engine.mirrors import Mirror, open_mirrors
from hwm.engine.progress import say, warn
from hwm.engine.provenance import now, provenance
from hwm.errors import ConfigError, RunError
from hwm.recipes import dump_config, load_config
from hwm.terminal import counted

MAY_CHANGE = (
    "folder", "tokens.folder", "runtime.num_workers", "mirrors", "keep_last", "save_every", "log_every",
    "validate_every",
)  # fmt: skip
"""Settings that may differ when a run goes on, since they decide nothing that is learned."""
_OTHERWISE = "give this run another name=..., or --fresh to throw the earlier one away"


class RunLog(AbstractContextManager["RunLog"]):
    """The record of one run; made by `RunLog.open`, used in a `with` block."""

    def __init__(self, folder: Path, facts: dict[str, Any], mirrors: Sequence[Mirror], lock: TextIO | None) -> None:
        self.folder = folder
        self._facts, self._mirrors, self._lock = facts, mirrors, lock
        self._sums: dict[str, tuple[float, int]] = {}
        self._disk = Disk()
        self._save_facts()

    @classmethod
    def open(cls, config: RunConfig, verb: str, *, resume: bool, is_writer: bool = True) -> "RunLog":
        """Opens the run folder of a configuration.

        Args:
            config: names the folder, and is written into it.
            verb: the command, e.g. `pretrain`.
            resume: keep what is there and go on from it (if there is a checkpoint); False clears an earlier run.
            is_writer: False in all but one process of a run: such a log writes nothing.

        Raises:
            RunError: another process uses the folder, or the run that is there was made with other settings, or by
                another command (which is never cleared).
        """
        folder = config.folder / config.name
        if not is_writer:
            return cls(folder, {}, (), None)
        lock = _lock(folder)
        with ExitStack() as unless_opened:
            unless_opened.callback(lock.close)
            _require_own(folder, verb)
            going_on = resume and any((folder / CHECKPOINTS).glob("step-*"))
            earlier = _earlier(folder, config) if going_on else {}
            mirrors = open_mirrors(config.mirrors, folder, config.model_dump(mode="json"))
            if not going_on:
                _clear(folder)
            with _refusals_of(f"run folder {folder}"):
                dump_config(config, folder / "config.yaml")
            unless_opened.pop_all()
        facts = earlier | {"verb": verb, "name": config.name, "seed": config.seed} | provenance()
        facts |= {"status": "running", "warnings": earlier.get("warnings", []), "coverage": {}}
        facts["started"] = earlier.get("started", facts["started"])
        return cls(folder, facts, mirrors, lock)

    def record(self, **facts: Any) -> None:
        """Adds facts to `run.json` (JSON values only); a fact of the same name is replaced."""
        self._facts |= facts
        self._save_facts()

    def warn(self, text: str) -> None:
        """Says a warning on the terminal, and adds it to `run.json`."""
        warn(f"{self.folder.name}: {text}")
        warnings = self._facts.setdefault("warnings", [])
        if text not in warnings:  # a run that goes on finds again what its earlier part has said
            warnings.append(text)
        self._save_facts()

    def record_coverage(self, what: str, *, expected: int, used: int, excluded: Sequence[Exclusion]) -> None:
        """Adds to `run.json` what was used and what was left out, each with its reason; says how much was left out.

        Raises:
            DataError: used and excluded do not add up to what was expected.
        """
        check_coverage(what, expected, used, len(excluded))
        self._facts.setdefault("coverage", {})[what] = {
            "expected": expected, "used": used, "excluded": summarise(excluded),
            "items": [exclusion._asdict() for exclusion in excluded],
        }  # fmt: skip
        self._save_facts()
        if excluded:
            reasons = most_frequent(excluded)
            say(f"{what}: {used} of {expected} used, left out: {reasons} (names in {self.folder / 'run.json'})")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step to the window whose means `flush` writes.

        Raises:
            RunError: a value is not finite.
        """
        _require_finite(step, values)
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def flush(self, step: int) -> None:
        """Writes a line with the means of all steps added since the last one.

        Raises:
            RunError: the disk is full or refuses.
        """
        if self._sums:
            means = {name: total / count for name, (total, count) in self._sums.items()}
            self._sums = {}
            self.write(step, means)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line to `metrics.jsonl` now.

        Raises:
            RunError: a value is not finite, or the disk is full or refuses.
        """
        _require_finite(step, values)
        if self._lock is None:
            return
        self._append(METRICS, step, values)

    def write_timings(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line to `timings.jsonl`, which no two runs share, so that `metrics.jsonl` can be compared.

        Raises:
            RunError: a value is not finite, or the disk is full or refuses.
        """
        _require_finite(step, values)
        if self._lock is not None:
            self._append(TIMINGS, step, values)

    def _append(self, name: str, step: int, values: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **values}, allow_nan=False)
        path = self.folder / name
        with _refusals_of(f"{path} (step {step})", "free some space, then run the same command again"):
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        for mirror in self._mirrors:
            mirror.write(step, values)

    def save(
        self, store: CheckpointStore, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        """Saves a checkpoint that also holds the open window of metrics.

        Raises:
            RunError: it could not be written; earlier ones are intact.
        """
        saved = store.save(step, modules, optimizer, {"window": self._sums})
        for rejected in saved.not_removed:
            self.warn(f"step {step}: old checkpoint {rejected.folder} {rejected.reason}")

    def resume_from(
        self, store: CheckpointStore, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> int:
        """Goes on from the newest whole checkpoint, if there is any; lines of later steps leave `metrics.jsonl`.

        Returns:
            Steps done: 0 where there is no checkpoint.

        Raises:
            RunError: there are checkpoints and none is whole, or it does not fit the modules.
        """
        if not store.steps():
            return 0
        restored = store.load(modules, optimizer)
        self._sums = {name: (total, count) for name, (total, count) in restored.extra["window"].items()}
        for rejected in restored.rejected:
            self.warn(f"checkpoint {rejected.folder} is damaged and was passed over: {rejected.reason}")
        if self._lock is not None:
            self._truncate(restored.step)
            self.record(resumed=[*self._facts.get("resumed", []), {"step": restored.step, "time": now()}])
        return restored.step

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, SystemExit | KeyboardInterrupt)
        status = "finished" if error is None else "stopped" if stopped else "failed"
        why = {} if error is None or stopped else {"error": f"{type(error).__name__}: {error}"}
        self._facts.pop("error", None)
        with ExitStack() as closed:
            for closable in (*self._mirrors, *([self._lock] if self._lock is not None else [])):
                closed.callback(closable.close)
            try:
                self.record(status=status, ended=now(), **why)
            except OSError as refused:
                if error is None:
                    raise
                # What ended the run is told, and not that the full disk took no record of it either.
                reason = refused.strerror or refused
                warn(f"{self.folder.name}: run.json could not be written ({reason}) and still says `running`")

    def _save_facts(self) -> None:
        if self._lock is not None:
            content = json.dumps(self._facts, indent=1, ensure_ascii=False, allow_nan=False, default=str)
            self._disk.replace(self.folder / "run.json", content.encode())

    def _truncate(self, step: int) -> None:
        """Drops lines of steps that will be done again, and what a crash left of one; says which others are lost."""
        for name in (METRICS, TIMINGS):
            kept, num_lost = lines_until(self.folder / name, step)
            self._disk.replace(self.folder / name, "".join(f"{line}\n" for line in kept).encode())
            if num_lost:
                lines = counted(num_lost, "line")
                self.warn(
                    f"{name}: {lines} of steps up to {step} cannot be read and {'is' * (num_lost == 1) or 'are'} gone"
                )


def read_facts(folder: Path) -> dict[str, Any]:
    """What `run.json` says of a run; empty where it is missing or damaged."""
    try:
        facts = json.loads((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _lock(folder: Path) -> TextIO:
    """Takes the folder for this process; the system gives it back when the process ends, however it ends."""
    with _refusals_of(f"run folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise RunError(
            f"run folder {folder} is in use", found=f"process {holder}", fix="wait for it, or give this run a name=..."
        ) from error
    with ExitStack() as unless_written, _refusals_of(f"run folder {folder}"):
        unless_written.callback(file.close)
        file.truncate(0)
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
        unless_written.pop_all()
    return file


@contextmanager
def _refusals_of(what: str, fix: str = "free some space, or choose another --folder") -> Iterator[None]:
    """Inside, what the disk refuses is told with its name; a full one names no file."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what} cannot be used: {error.strerror or error}", fix=fix) from error


def _require_own(folder: Path, verb: str) -> None:
    """No run takes the folder of a run that another command made: its checkpoints may be all there is of it."""
    other = read_facts(folder).get("verb", verb)
    if other != verb:
        raise RunError(
            f"{folder} holds a run of another command", expected=f"no run, or one of `hwm {verb}`",
            found=f"one of `hwm {other}`", fix="give this run another name=..., or take that folder away",
        )  # fmt: skip


def _earlier(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The record of the run that is to go on, after a check that it is the same run."""
    stored = folder / "config.yaml"
    if stored.exists():
        try:
            old = flat_settings(load_config(type(config), stored).model_dump(mode="json"))
        except ConfigError as error:
            raise RunError(
                f"{stored} cannot be read, so nobody can say with which settings the run was started",
                found=str(error), fix=f"put it back, or {_OTHERWISE}",
            ) from error  # fmt: skip
        new = flat_settings(config.model_dump(mode="json"))
        differing = [
            key
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
        ]
        if differing:
            changes = ", ".join(f"{key} (was {old.get(key)}, now {new.get(key)})" for key in differing)
            raise RunError(f"run {folder} was started with other settings", found=changes, fix=_OTHERWISE)
    try:
        facts = json.loads((folder / "run.json").read_bytes())
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError) as error:
        return {"warnings": [f"run.json of the earlier part could not be read ({type(error).__name__})"]}


def _clear(folder: Path) -> None:
    """Removes an earlier run's record; other files in the folder are left alone."""
    for name in ("run.json", METRICS, TIMINGS, "config.yaml"):
        (folder / name).unlink(missing_ok=True)
    if (folder / CHECKPOINTS).exists():
        shutil.rmtree(folder / CHECKPOINTS)


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _require_finite(step: int, values: Mapping[str, float]) -> None:
    bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise RunError(f"step {step}: a metric is not finite", found=", ".join(bad))
