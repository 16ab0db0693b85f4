"""The gaze-conditioned causal predictor: latents and gaze up to step t → the latents of step t + 1.

    x_t = W_z z_t + W_m (z_t − z_{t−1}) + g · (W_s s_t   where gaze is known,   n   where it is not)
    ẑ_{t+1} = LN(z_t + W_o h_t)          ŝ_{t+1} = LN(s_t + W_g h_t)         (no LN on the ŝ of measured gaze)

`h_t` comes from a block-causal transformer (`causal_stack`), `g` is a gate that starts at zero and `n` a learned
"no gaze" vector. Step 0 of training therefore equals the no-gaze model. W_o and W_g start at zero, so an untrained
predictor copies the last step, and all it learns is change: in a video of 4 steps a second most patches do not move.
Layer-normed latents in and out, as in V-JEPA 2-AC (whose stack this is; the residual around it is ours).
The change since the step before is given (0 at the first step), because attention needs hundreds of updates to find
the same patch one step earlier, and until it has, nothing beats the copy.
Gaze is causal: step t is conditioned on s_t, never on s_{t+1}.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from hwm.losses import layer_normed
from hwm.models.causal_stack import CausalStack, CausalStackSpec, KVCache

GATE_RATE = 16.0
"""The gate is this many times its parameter: a scalar that AdamW moves by one learning rate a step would stay shut."""


@dataclass(frozen=True)
class PredictorSpec:
    """Sizes of the predictor: latents D, scene tokens G (None: a model that never sees gaze), its own width E."""

    latent_width: int
    scene_width: int | None
    width: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    scene_normed: bool = True
    """Whether scene tokens are layer-normed, as Gazelle's are; those of measured gaze are read as they stand."""


class Prediction(NamedTuple):
    """For each given step t, the imagined step t + 1; no scene tokens where no gaze was given."""

    z_BTND: Tensor
    scene_BTNG: Tensor | None

    def step(self, index: int) -> "Prediction":
        """One step, still with a time axis of length 1."""
        where = slice(index, index + 1 or None)
        return Prediction(self.z_BTND[:, where], None if self.scene_BTNG is None else self.scene_BTNG[:, where])


class Past(NamedTuple):
    """What a roll-out goes on from: the given latents, and the keys and values of all given steps."""

    z_BTND: Tensor
    cache: KVCache

    def first(self, num_steps: int) -> "Past":
        """The past as it was after the first `num_steps` steps: exact, because no step depends on a later one.

        Raises:
            ValueError: it does not hold so many steps, or none are asked for.
        """
        return Past(self.z_BTND[:, :num_steps], self.cache.first(num_steps))


class Rollout(NamedTuple):
    """K imagined steps after the last given one."""

    z_BKND: Tensor
    scene_BKNG: Tensor | None


class GazePredictor(nn.Module):
    """Predicts the next latents and the next scene tokens, given where people look."""

    def __init__(self, spec: PredictorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.stack = CausalStack(
            CausalStackSpec(spec.latent_width, spec.width, spec.depth, spec.num_heads, spec.mlp_ratio)
        )
        self.motion_proj = nn.Linear(spec.latent_width, spec.width, bias=False)
        nn.init.normal_(self.motion_proj.weight, std=spec.latent_width**-0.5)
        self.no_gaze = nn.Parameter(torch.randn(spec.width))
        self.gate_parameter = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.stack.predictor_proj.weight)
        # Gaze comes last, so that a model without it draws the same initial weights for everything else.
        if spec.scene_width is not None:
            self.scene_proj = nn.Linear(spec.scene_width, spec.width)
            self.scene_out = nn.Linear(spec.width, spec.scene_width)
            nn.init.normal_(self.scene_proj.weight, std=spec.scene_width**-0.5)
            nn.init.zeros_(self.scene_out.weight)
            nn.init.zeros_(self.scene_out.bias)

    @property
    def gate(self) -> Tensor:
        """The gate g, a scalar: 0 in a new model, reported over training."""
        return GATE_RATE * self.gate_parameter

    def teacher_forced(
        self,
        z_BTND: Float[Tensor, "b t n d"],
        scene_BTNG: Float[Tensor, "b t n g"] | None,
        known_BT: Bool[Tensor, "b t"] | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Prediction, Past]:
        """Predict step t + 1 from the true steps ≤ t, for every t at once.

        Args:
            z_BTND: layer-normed latents.
            scene_BTNG: scene tokens on the patch grid, layer-normed where `scene_normed`; None means no gaze anywhere.
            known_BT: where gaze is known; None means wherever `scene_BTNG` is given.
            valid_BT: false for padding before the start of the video, which no step attends to.

        Returns:
            The predictions, and what a roll-out goes on from (`past.first(k)` goes on from step k).
        """
        added = self._condition(z_BTND, scene_BTNG, known_BT) + self.motion_proj(_motion(z_BTND, valid_BT))
        hidden, cache = self.stack.encode(z_BTND, added, None, valid_BT)
        return self._predict(hidden, z_BTND, scene_BTNG, known_BT), Past(z_BTND, cache)

    def rollout(
        self,
        z_BTND: Float[Tensor, "b t n d"],
        scene_BTNG: Float[Tensor, "b t n g"] | None,
        num_steps: int,
        known_BT: Bool[Tensor, "b t"] | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
    ) -> Rollout:
        """Imagine `num_steps` ≥ 1 steps after the last given one, feeding each imagined step back (K = num_steps)."""
        prediction, past = self.teacher_forced(z_BTND, scene_BTNG, known_BT, valid_BT)
        known_B1 = None if known_BT is None else known_BT[:, -1:]
        return self.continue_from(prediction.step(-1), past, num_steps, known_B1)

    def continue_from(
        self, last: Prediction, past: Past, num_steps: int, known_B1: Bool[Tensor, "b 1"] | None = None
    ) -> Rollout:
        """Roll on from a prediction of one step and the past that it was made from (see `rollout`)."""
        imagined = [last]
        before_B1ND, cache = past.z_BTND[:, -1:], past.cache
        for _ in range(num_steps - 1):
            z_B1ND, scene_B1NG = imagined[-1]
            added = self._condition(z_B1ND, scene_B1NG, known_B1) + self.motion_proj(z_B1ND - before_B1ND)
            hidden, cache = self.stack.encode(z_B1ND, added, cache)
            imagined.append(self._predict(hidden, z_B1ND, scene_B1NG, known_B1))
            before_B1ND = z_B1ND
        scenes = [step.scene_BTNG for step in imagined if step.scene_BTNG is not None]
        z_BKND = torch.cat([step.z_BTND for step in imagined], dim=1)
        return Rollout(z_BKND, torch.cat(scenes, dim=1) if scenes else None)

    def _condition(self, z_BTND: Tensor, scene_BTNG: Tensor | None, known_BT: Tensor | None) -> Tensor:
        """The gated condition [B,T,N,E] that gaze adds to the embedded latents."""
        if scene_BTNG is None:
            return (self.gate * self.no_gaze).expand(*z_BTND.shape[:3], -1)
        projected = self.scene_proj(scene_BTNG)
        if known_BT is not None:
            projected = torch.where(known_BT[:, :, None, None], projected, self.no_gaze)
        return self.gate * projected

    def _predict(
        self, hidden_BTNE: Tensor, z_BTND: Tensor, scene_BTNG: Tensor | None, known_BT: Tensor | None
    ) -> Prediction:
        z_next = layer_normed(z_BTND + self.stack.predictor_proj(hidden_BTNE))
        if scene_BTNG is None:
            return Prediction(z_next, None)
        known = 1.0 if known_BT is None else known_BT[:, :, None, None].to(scene_BTNG.dtype)
        scene_next = known * scene_BTNG + self.scene_out(hidden_BTNE)
        return Prediction(z_next, layer_normed(scene_next) if self.spec.scene_normed else scene_next)


def _motion(z_BTND: Tensor, valid_BT: Tensor | None) -> Tensor:
    """What changed since the step before, [B,T,N,D]; 0 at the first step and right after padding."""
    change_BTND = pad(z_BTND[:, 1:] - z_BTND[:, :-1], (0, 0, 0, 0, 1, 0))
    if valid_BT is None:
        return change_BTND
    after_padding_BT = pad(~valid_BT[:, :-1], (1, 0), value=True)
    return change_BTND.masked_fill(after_padding_BT[:, :, None, None], 0.0)
