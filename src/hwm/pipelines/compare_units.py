"""The plan of a comparison: which trainings it takes, what each is called, and what is there already.

A `CompareConfig` -> units, each a configuration of `pretrain` or `anticipate` whose name ends in a hash of its settings
and of all that it reads. A setting or a file that changes gives a unit of another name; a finished unit is used again
by every comparison in the same folder. Arms that differ only in stage 2 share their stage 1 by the same token.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import ValidationError

import hwm
from hwm.config import AnnotationConfig, AnticipateConfig, ClipDataConfig, CompareConfig, PretrainConfig, RunConfig
from hwm.data.content import content_sha256
from hwm.engine.checkpoint import CHECKPOINTS
from hwm.engine.requirements import needed_inputs
from hwm.engine.runlog import MAY_CHANGE, flat_settings, read_facts
from hwm.errors import ConfigError
from hwm.pipelines.compare_arms import names, stage1_of, stage2_of
from hwm.pipelines.data_parts import annotated_parts, named_parts

_Run = TypeVar("_Run", bound=RunConfig)
State = Literal["finished", "interrupted", "new"]

HASHED_BYTES = 16_000_000
"""Files up to this size count by their bytes, larger ones by size and time of change: a plan reads no terabytes."""
RECORD = 2
"""Raised whenever stage 2 writes more for the report: units that lack it are run again."""
_NOT_LEARNED = ("name", "checkpoint", "runtime.devices", *MAY_CHANGE)


class Unit(NamedTuple):
    """One training."""

    verb: Literal["pretrain", "anticipate"]
    config: RunConfig
    state: State
    needs: str | None
    """Name of the stage 1 that it stands on."""
    users: tuple[str, ...]
    """The arms that it is for."""

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        return self.config.name

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.config.folder / self.config.name


class Plan(NamedTuple):
    """All units of a comparison in an order in which they can run."""

    config: CompareConfig
    units: tuple[Unit, ...]


def make_plan(config: CompareConfig) -> Plan:
    """The units of a comparison; nothing is run or written.

    Raises:
        ConfigError: the templates do not fit an arm.
        DataError: annotations or lists of videos that cannot be read.
    """
    reader, units = _Inputs(), dict[str, Unit]()
    for seed in range(config.seed, config.seed + config.seeds):
        for arm in names(config):
            try:
                below = None if arm == "vjepa2" else stage1_of(config, arm, seed)
                if below is not None:
                    below = _named(below, f"stage1-{below.gaze}", reader, None)
                    _add(units, Unit("pretrain", below, state_of(below), None, (arm,)))
                checkpoint = None if below is None else below.folder / below.name
                above = _named(stage2_of(config, arm, seed, checkpoint), f"stage2-{arm}", reader, below)
            except ValidationError as error:
                said = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
                raise ConfigError(f"the recipe does not fit the arm {arm}", found=said) from None
            _add(units, Unit("anticipate", above, state_of(above), None if below is None else below.name, (arm,)))
    # Gazelle first: the first unit of all fills the token cache for the others.
    order = sorted(units.values(), key=lambda unit: (unit.verb != "pretrain", not _has_gaze(unit), unit.config.seed))
    return Plan(config, tuple(order))


def state_of(config: RunConfig) -> State:
    """Whether a unit's folder holds a finished run, one to go on with, or neither."""
    folder = config.folder / config.name
    if read_facts(folder).get("status") == "finished":
        return "finished"
    return "interrupted" if any((folder / CHECKPOINTS).glob("step-*")) else "new"


def _has_gaze(unit: Unit) -> bool:
    return isinstance(unit.config, PretrainConfig) and unit.config.gaze != "none"


def _add(units: dict[str, Unit], unit: Unit) -> None:
    known = units.get(unit.name)
    units[unit.name] = unit if known is None else known._replace(users=(*known.users, *unit.users))


def _named(config: _Run, label: str, inputs: "_Inputs", below: RunConfig | None) -> _Run:
    """The configuration under a name that tells what it is, and by its hash whether it is the same."""
    settings = flat_settings(config.model_dump(mode="json"))
    identity = {
        "hwm": hwm.__version__,
        "settings": {key: value for key, value in settings.items() if not key.startswith(_NOT_LEARNED)},
        "inputs": inputs.of(config),
        "stage1": None if below is None else below.name,
    }
    if isinstance(config, AnticipateConfig):
        identity["record"] = RECORD
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return config.model_copy(update={"name": f"{label.replace('+', '-')}-seed{config.seed}-{digest}"})


class _Inputs:
    """Fingerprints of what configurations read; each file is looked at once."""

    def __init__(self) -> None:
        self._of_file: dict[Path, str] = {}
        self._of_videos: dict[str, dict[str, str]] = {}

    def of(self, config: RunConfig) -> dict[str, str]:
        """Fingerprint of every file behind a configuration: weights, lists, annotations, gaze files, videos."""
        named = {path.as_posix(): self._file(path) for path in _files(config)}
        assert isinstance(config, PretrainConfig | AnticipateConfig)
        return named | self._videos(config.data if isinstance(config, PretrainConfig) else config.annotations)

    def _videos(self, named: ClipDataConfig | AnnotationConfig) -> dict[str, str]:
        key = named.model_dump_json()
        if key not in self._of_videos:
            parts = named_parts(named) if isinstance(named, ClipDataConfig) else annotated_parts(named)
            paths = [item.path for part in parts.values() for item in part.items if item.path is not None]
            self._of_videos[key] = {path.as_posix(): self._file(path) for path in paths if path.is_file()}
        return self._of_videos[key]

    def _file(self, path: Path) -> str:
        if path not in self._of_file:
            about = path.stat()
            is_small = about.st_size <= HASHED_BYTES
            self._of_file[path] = content_sha256(path) if is_small else f"{about.st_size} {about.st_mtime_ns}"
        return self._of_file[path]


def _files(config: RunConfig) -> Iterator[Path]:
    """Files that the settings name; of a folder of weights or gaze files, those in it."""
    yield from sorted(Path(str(files("hwm.weights"))).glob("mini/*/model.safetensors"))
    for item in needed_inputs(config):
        if item.setting == "checkpoint":
            continue
        if item.path.is_file():
            yield item.path
        elif item.path.is_dir() and not item.setting.startswith(("data.", "annotations.")):
            yield from sorted(path for path in item.path.rglob("*") if path.suffix in (".csv", ".json", ".safetensors"))
