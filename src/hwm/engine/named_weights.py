"""What a setting that names weights means: `mini`, a name of the catalogue, or a path.

A catalogue name is the file below `$HWM_HOME/weights`, wherever the command runs; `./NAME` is a folder of that name.
"""

import os
from os.path import expanduser
from pathlib import Path

from hwm.engine.home import home
from hwm.weights.catalog import find

MINI = "mini"
_SWITCHED_ON = ("1", "on", "yes", "true")


def weights_folder() -> Path:
    """Where fetched weights are kept."""
    return home() / "weights"


def weights_path(given: str) -> str:
    """The path of weights that a setting or a command names; `mini` stays as it is."""
    release = find(given)
    if release is not None:
        return str(weights_folder() / release.file)
    return given if given == MINI else str(Path(expanduser(given)))


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE`, the switch that this field's tools share, forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _SWITCHED_ON
