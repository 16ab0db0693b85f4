"""Copies of `metrics.jsonl` for those who watch runs in TensorBoard or Weights & Biases; the file stays the record.

names + run folder -> mirrors      each takes (step, values)
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from hwm.errors import ConfigError


class TensorBoardMirror:
    """Event files in `<run>/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._writer = _extra("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._writer.close()


class WandbMirror:
    """A Weights & Biases run in the project `hwm`, named after the run folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = _extra("wandb", "wandb")
        self._run = wandb.init(project="hwm", name=folder.name, dir=str(folder), config=dict(config), resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


Mirror: TypeAlias = TensorBoardMirror | WandbMirror


def open_mirrors(names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> tuple[Mirror, ...]:
    """Opens the mirrors that the configuration asks for, none by default.

    Raises:
        ConfigError: the package of a mirror is not installed.
    """
    return tuple(TensorBoardMirror(folder) if name == "tensorboard" else WandbMirror(folder, config) for name in names)


def _extra(module: str, extra: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"mirrors: {extra} is asked for but not installed", found=str(error), fix=f"pip install 'hwm[{extra}]'"
        ) from error
