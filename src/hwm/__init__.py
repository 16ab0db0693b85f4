"""A gaze-conditioned human world model: watch people work, imagine what comes next, name the next step.

Public names are loaded on first use, so `import hwm` costs nothing and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwm.engine.assemble import load_stage1 as load_stage1
    from hwm.errors import HwmError as HwmError
    from hwm.recipes import load_config as load_config
    from hwm.weights.load import load_encoder as load_encoder
    from hwm.weights.load import load_gazelle as load_gazelle
    from hwm.weights.load import load_masked_predictor as load_masked_predictor
    from hwm.weights.load import load_probe as load_probe
    from hwm.weights.pretrained import HumanWorldModel as HumanWorldModel

__version__ = "0.1.0"

_HOMES = {
    "HumanWorldModel": "hwm.weights.pretrained",
    "HwmError": "hwm.errors",
    "load_config": "hwm.recipes",
    "load_encoder": "hwm.weights.load",
    "load_gazelle": "hwm.weights.load",
    "load_masked_predictor": "hwm.weights.load",
    "load_probe": "hwm.weights.load",
    "load_stage1": "hwm.engine.assemble",
}

__all__ = [
    "HumanWorldModel",
    "HwmError",
    "__version__",
    "load_config",
    "load_encoder",
    "load_gazelle",
    "load_masked_predictor",
    "load_probe",
    "load_stage1",
]


def __getattr__(name: str) -> object:
    """Imports a public name from the module it lives in, the first time somebody asks for it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hwm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
