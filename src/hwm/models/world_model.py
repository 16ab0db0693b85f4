"""The human world model: observe a clip, imagine what comes next.

    observe:  frames → layer-normed latents z_BTND and scene tokens scene_BTNG       (frozen)
    imagine:  z, scene → the next K steps ẑ_BKND and ŝ_BKNG                          (learned in stage 1)

`weights.pretrained.HumanWorldModel` is this class with `save_pretrained` and `from_pretrained`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.config import GazeControl, Precision
from hwm.errors import DataError
from hwm.models.measured_gaze import SCENE_WIDTH
from hwm.models.observer import Observed, Observer
from hwm.models.predictor import GazePredictor, Rollout


@dataclass(frozen=True)
class TimeGrid:
    """When a step is and how it is seen; stage 2 takes it over from stage 1."""

    fps: float
    """Steps a second, from the first frame of the video."""
    step: Literal["frame", "tubelet"]
    """One frame a step, or two consecutive ones."""
    encoder_resolution: int
    """Side of the encoder's square view in pixels."""
    gazelle_resolution: int | None
    """Side of Gazelle's square view in pixels; None where there is no Gazelle."""
    measured_gaze: bool = False
    """Whether the predictor's scene tokens are measured gaze (`models.measured_gaze`) and not Gazelle's."""
    gaze_control: GazeControl = "none"
    """What stands in for the predictor's scene tokens (`tokens.controls`, and `dinov2` in the observer)."""
    encoder_precision: Precision = "32-true"
    """Numeric precision of the encoder."""
    gazelle_precision: Precision = "32-true"
    """Numeric precision of Gazelle, where there is one."""

    @property
    def precisions(self) -> dict[str, Precision]:
        """The precision of each frozen part, by the name of its setting."""
        return {"encoder.precision": self.encoder_precision, "gazelle.precision": self.gazelle_precision}

    @property
    def gaze(self) -> Literal["none", "estimated", "measured"]:
        """Where the predictor's scene tokens come from."""
        if self.measured_gaze:
            return "measured"
        return "none" if self.gazelle_resolution is None else "estimated"


_HIGHEST = 16.0
"""No normalised pixel is as far from 0; one in 0..255 is, but in a black frame."""


class WorldModel(nn.Module):
    """Frozen observer and gaze-conditioned predictor on one time grid."""

    mean_scene_NG: Tensor
    """The scene token of every step, for each patch, where the control is `mean`; made in stage 1 and saved."""

    def __init__(self, observer: Observer, predictor: GazePredictor, grid: TimeGrid) -> None:
        super().__init__()
        if (observer.gazelle is None) != (grid.gazelle_resolution is None):
            raise ValueError("the time grid must give a Gazelle resolution exactly where the observer has a Gazelle")
        if grid.measured_gaze and observer.gazelle is not None:
            raise ValueError("a world model on measured gaze has no Gazelle")
        if grid.gaze == "none" and grid.gaze_control != "none":
            raise ValueError(f"the control {grid.gaze_control} replaces scene tokens, and there are none")
        if observer.plain_features != (grid.gaze_control == "dinov2"):
            raise ValueError("the observer must give DINOv2's features exactly where the time grid says gaze dinov2")
        scene = (predictor.spec.scene_width, predictor.spec.scene_normed)
        if (grid.measured_gaze and scene != (SCENE_WIDTH, False)) or (grid.gaze == "none" and scene[0] is not None):
            raise ValueError(f"a predictor of these scene tokens {scene} does not go with gaze {grid.gaze}")
        self.observer = observer
        self.predictor = predictor
        self.grid = grid
        if grid.gaze_control == "mean":
            rows, cols = observer.encoder.spec.grid(grid.encoder_resolution, grid.encoder_resolution)
            self.register_buffer("mean_scene_NG", torch.zeros(rows * cols, predictor.spec.scene_width or 0))

    @property
    def has_gaze(self) -> bool:
        """Whether the predictor is conditioned on gaze."""
        return self.grid.gaze != "none"

    def observe(
        self,
        frames_BTFRYX: Tensor,
        gaze_frames_BTRYX: Tensor | None = None,
    ) -> Observed:
        """Encode clips, each step alone; normalised pixels in, tokens [B, T, N, ·] and heat maps [B, T, 64, 64] out.

        Args:
            frames_BTFRYX: floats of the encoder's view; F = 1 (`step: frame`) or 2 (`step: tubelet`).
            gaze_frames_BTRYX: floats of Gazelle's view at the steps' own times, where there is a Gazelle.

        Raises:
            DataError: pixels of another type or shape, on another device, or not normalised.
        """
        _require_pixels(
            frames_BTFRYX, "frames", "[clips, steps, frames a step, 3, rows, columns]", self.observer.encoder,
            num_axes=6,
        )  # fmt: skip
        if gaze_frames_BTRYX is not None:
            shape = f"[{frames_BTFRYX.shape[0]}, {frames_BTFRYX.shape[1]}, 3, rows, columns], as many as of the frames"
            reader = self.observer.encoder if self.observer.gazelle is None else self.observer.gazelle
            like = tuple(frames_BTFRYX.shape[:2])
            _require_pixels(gaze_frames_BTRYX, "gaze frames", shape, reader, num_axes=5, like=like)
        batch, steps = frames_BTFRYX.shape[:2]
        gaze = None if gaze_frames_BTRYX is None else gaze_frames_BTRYX.flatten(0, 1)
        seen = self.observer(frames_BTFRYX.flatten(0, 1), gaze)
        gazed = (None if part is None else part.unflatten(0, (batch, steps)) for part in seen[1:])
        return Observed(seen.z_SND.unflatten(0, (batch, steps)), *gazed)

    @torch.inference_mode()
    def imagine(
        self,
        z_BTND: Float[Tensor, "b t n d"],
        scene_BTNG: Float[Tensor, "b t n g"] | None,
        num_steps: int,
        known_BT: Bool[Tensor, "b t"] | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
    ) -> Rollout:
        """Imagine the `num_steps` steps after the last observed one (no gradients; see `GazePredictor.rollout`).

        Args:
            z_BTND: latents of the observed steps, as `observe` gives them.
            scene_BTNG: their scene tokens; None for a model without gaze, or where gaze is known at no step.
            num_steps: K, of 1 / `grid.fps` seconds each.
            known_BT: steps whose gaze is known; None: all of them.
            valid_BT: false for padding before the start of the video; None: no padding.

        Returns:
            Imagined latents `z_BKND` and, of a model with gaze, scene tokens `scene_BKNG`.

        Raises:
            DataError: `num_steps` is no whole number of at least 1, or tokens or masks do not fit the model or each
                other.
        """
        if not hasattr(num_steps, "__index__") or num_steps < 1:
            raise DataError("there is no step to imagine", expected="num_steps of at least 1", found=str(num_steps))
        self._require_tokens(z_BTND, scene_BTNG, known_BT, valid_BT)
        return self.predictor.rollout(z_BTND, scene_BTNG, num_steps, known_BT, valid_BT)

    def _require_tokens(
        self, z_BTND: Tensor, scene_BTNG: Tensor | None, known_BT: Tensor | None, valid_BT: Tensor | None
    ) -> None:
        spec = self.predictor.spec
        _require_tensor(z_BTND, "latents")
        if z_BTND.ndim != 4 or z_BTND.shape[-1] != spec.latent_width or 0 in z_BTND.shape[1:]:
            raise DataError(
                "these latents cannot be gone on from", found=_form(z_BTND), fix="give z_SND as observe gives it",
                expected=f"floats [clips, steps, patches, {spec.latent_width}], at least one step and patch",
            )  # fmt: skip
        _require_like_weights(z_BTND, "latents", self.predictor)
        clips, steps, patches = z_BTND.shape[:3]
        if scene_BTNG is not None:
            _require_tensor(scene_BTNG, "scene tokens")
            if spec.scene_width is None or scene_BTNG.shape != (clips, steps, patches, spec.scene_width):
                raise DataError(
                    "these scene tokens do not go with the latents and the model", found=_form(scene_BTNG),
                    expected="None: the model has no gaze" if spec.scene_width is None
                    else f"[{clips}, {steps}, {patches}, {spec.scene_width}]",
                    fix="give scene_SNG as observe gives it",
                )  # fmt: skip
            _require_like_weights(scene_BTNG, "scene tokens", self.predictor)
        for name, mask in (("known_BT", known_BT), ("valid_BT", valid_BT)):
            if mask is not None and (mask.dtype != torch.bool or mask.shape != (clips, steps)):
                raise DataError(
                    f"{name} does not go with the latents", expected=f"torch.bool [{clips}, {steps}]",
                    found=_form(mask),
                )  # fmt: skip


def _require_pixels(
    pixels: Tensor, what: str, shape: str, owner: nn.Module, *, num_axes: int, like: tuple[int, ...] | None = None
) -> None:
    """Hold pixels to what `owner` reads: shape, type, device, and values as `normalise` gives them."""
    fix = "hwm.data.transforms.normalise makes them; frames[:, :, None] adds the axis of one frame a step"
    _require_tensor(pixels, what)
    fits = pixels.ndim == num_axes and pixels.shape[-3] == 3 and like in (None, tuple(pixels.shape[:2]))
    if not fits or not pixels.is_floating_point() or not pixels.numel():
        raise DataError(
            f"these {what} cannot be observed",
            expected=f"normalised floats {shape}, at least one of each",
            found=_form(pixels),
            fix=fix,
        )
    _require_like_weights(pixels, what, owner, torch.float32)
    low, high = (float(value) for value in torch.aminmax(pixels))
    if not max(-low, high) <= _HIGHEST:  # nor where a value is NaN
        raise DataError(
            f"these {what} are not normalised",
            expected=f"finite values, about -2 to 3 as of pixels in 0..1 less their mean (at most ± {_HIGHEST:g})",
            found=f"values from {low:g} to {high:g}",
            fix=fix,
        )


def _require_tensor(value: Tensor, what: str) -> None:
    if not isinstance(value, Tensor):
        raise DataError(
            f"these {what} are no tensor", expected="a torch.Tensor", found=type(value).__name__,
            fix="torch.from_numpy makes one of an array, torch.stack of a list of tensors",
        )  # fmt: skip


def _require_like_weights(value: Tensor, what: str, owner: nn.Module, *also: torch.dtype) -> None:
    """The type (or one of `also`) and the device of the weights that read it; under autocast any float will do."""
    weight = next(owner.parameters())
    types = dict.fromkeys((weight.dtype, *also))
    if value.device != weight.device or not (value.dtype in types or torch.is_autocast_enabled(value.device.type)):
        raise DataError(
            f"these {what} are of another type or device than the weights that read them",
            expected=f"{' or '.join(map(str, types))} on {weight.device}",
            found=f"{value.dtype} on {value.device}",
            fix=f"move them: .to({str(weight.device)!r}, {next(iter(types))})",
        )


def _form(value: Tensor) -> str:
    return f"{value.dtype} {list(value.shape)}"
