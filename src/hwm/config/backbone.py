"""The frozen models of stage 2: the world model of stage 1, or V-JEPA 2's own encoder and masked predictor."""

from typing import Literal

from pydantic import Field

from hwm.config.base import EncoderConfig, Part, PathText, Precision


class HwmBackboneConfig(Part):
    """The world model of stage 1, named by `checkpoint`."""

    kind: Literal["hwm"] = "hwm"
    """Says that the world model of stage 1 is the backbone."""
    rollout: Literal["imagined", "copy-last"] = "imagined"
    """`copy-last` gives the probe the last observed latent where imagined ones would stand: the baseline."""


class MaskedPredictorConfig(Part):
    """V-JEPA 2's frozen masked predictor."""

    weights: PathText | None = None
    """A released V-JEPA 2 `.pt` or a folder of ours; null reads it from the `.pt` of the encoder."""
    num_heads: int | None = Field(default=None, ge=1)
    """Attention heads, only where the file cannot tell (a released `.pt` whose width is not in the table)."""
    precision: Precision = "32-true"
    """Numeric precision of the frozen masked predictor; see `EncoderConfig`."""


class VJEPA2BackboneConfig(Part):
    """V-JEPA 2's own encoder and masked predictor: the baseline without gaze and without stage 1.

    `probe.inputs` says what is read: `context` is upstream's `no_predictor`, `future` its `no_encoder`.
    """

    kind: Literal["vjepa2"]
    """Says that V-JEPA 2's own pair is the backbone."""
    encoder: EncoderConfig = EncoderConfig()
    predictor: MaskedPredictorConfig = MaskedPredictorConfig()
    """Not read with `probe.inputs=context`."""
    fps: float = Field(default=8.0, gt=0)
    """Frames a second of the clip, which holds `protocol.num_steps` frames (upstream: 32 at 8 a second)."""
    mask_index: int = Field(default=1, ge=0)
    """Mask token at the targets; upstream's evaluation uses 1, its training 0 (1 is a token that was never trained)."""
    num_output_frames: int = Field(default=2, ge=1)
    """Frames predicted in a round; fewer than a tubelet count as one."""
    num_rounds: int = Field(default=1, ge=1)
    """Rounds of prediction (upstream's `num_steps`); their positions are not moved along, as upstream."""
    position_frames: int = Field(default=64, ge=2)
    """Frames that the predictor's positions span (released: built for 64); a target beyond them is an error."""
