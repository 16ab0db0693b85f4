"""The typed, frozen configuration tree: one class a verb, one string of help a field.

Values come from three places in this order: the defaults here, a YAML recipe, dotted overrides
(`optim.lr=1e-4`). Unknown keys are errors. `hwm.recipes.load_config` does the reading; this room is the schema.
Nothing here imports torch: a wrong recipe is refused before anything heavy is loaded.
"""

from hwm.config.adapt import AdaptConfig, AdaptDataConfig, AdaptGazeConfig, DinoConfig, MaskConfig
from hwm.config.anticipate import AnnotationConfig, AnticipateConfig, ProbeConfig, ProtocolConfig
from hwm.config.backbone import HwmBackboneConfig, MaskedPredictorConfig, VJEPA2BackboneConfig
from hwm.config.base import (
    AugmentConfig,
    ClipDataConfig,
    EncoderConfig,
    Gaze,
    GazeControl,
    GazeFilesConfig,
    GazelleConfig,
    GazePointControl,
    OptimConfig,
    Part,
    Precision,
    PredictorConfig,
    RunConfig,
    RuntimeConfig,
    TokenConfig,
    TokenDtype,
)
from hwm.config.compare import CompareConfig
from hwm.config.demo import TOYWORLD_FORMATS, TOYWORLD_VIEWS, DemoConfig, ToyWorldConfig
from hwm.config.gaze_score import GazeScoreConfig
from hwm.config.pretrain import LossConfig, PretrainConfig

__all__ = [
    "TOYWORLD_FORMATS",
    "TOYWORLD_VIEWS",
    "AdaptConfig",
    "AdaptDataConfig",
    "AdaptGazeConfig",
    "AnnotationConfig",
    "AnticipateConfig",
    "AugmentConfig",
    "ClipDataConfig",
    "CompareConfig",
    "DemoConfig",
    "DinoConfig",
    "EncoderConfig",
    "Gaze",
    "GazeControl",
    "GazeFilesConfig",
    "GazePointControl",
    "GazeScoreConfig",
    "GazelleConfig",
    "HwmBackboneConfig",
    "LossConfig",
    "MaskConfig",
    "MaskedPredictorConfig",
    "OptimConfig",
    "Part",
    "Precision",
    "PredictorConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ProtocolConfig",
    "RunConfig",
    "RuntimeConfig",
    "TokenConfig",
    "TokenDtype",
    "ToyWorldConfig",
    "VJEPA2BackboneConfig",
]
