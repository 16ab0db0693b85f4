"""What is seen: the frozen encoder and the frozen Gazelle over the same frames, one latent step at a time.

Frames of a step → layer-normed latents `z_SND` on the patch grid, and Gazelle's scene tokens resampled to that grid,
layer-normed, `scene_SNG`. A step never sees another step, so a latent at time t depends on nothing after t and can be
kept and read back. S is any number of steps (clips and time flattened together). Mirrors the target computation of
V-JEPA 2-AC (each frame alone, repeated to a tubelet, then `F.layer_norm`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hwm.losses import layer_normed
from hwm.models.gazelle import GazeLLE
from hwm.models.vjepa2 import VJEPA2Encoder


class Observed(NamedTuple):
    """Tokens of S steps: latents, and where there is a Gazelle its scene tokens, gaze weights and heat maps."""

    z_SND: Tensor
    scene_SNG: Tensor | None
    gaze_SN: Tensor | None
    heatmaps_SYX: Tensor | None


def gaze_weights(heatmaps_SYX: Float[Tensor, "s y x"], grid: tuple[int, int]) -> Float[Tensor, "s n"]:
    """How much each patch is looked at, summing to 1 over a step.

    The map's mean over a patch, squared: a faint background over many patches must not outweigh the attended place.
    """
    weights = F.adaptive_avg_pool2d(heatmaps_SYX[:, None], grid).flatten(1).square()
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)


def resample_scene(scene_SGHW: Float[Tensor, "s g h w"], grid: tuple[int, int]) -> Float[Tensor, "s n g"]:
    """Bring scene tokens to the encoder's patch grid: block average where it divides, else antialiased bilinear."""
    rows, cols = grid
    height, width = scene_SGHW.shape[-2:]
    if height % rows == 0 and width % cols == 0:
        resampled = F.avg_pool2d(scene_SGHW, (height // rows, width // cols))
    else:
        resampled = F.interpolate(scene_SGHW, size=grid, mode="bilinear", antialias=True, align_corners=False)
    return resampled.flatten(2).transpose(1, 2)


class Observer(nn.Module):
    """Frozen encoder and (optionally) frozen Gazelle; always in `eval()` and without gradients.

    Args:
        encoder: gives the latents.
        gazelle: gives scene tokens and gaze weights.
        plain_features: scene tokens are the features of Gazelle's DINOv2 (width of the backbone), without the gaze
            learned on top of them; gaze weights stay Gazelle's.
    """

    def __init__(self, encoder: VJEPA2Encoder, gazelle: GazeLLE | None, plain_features: bool = False) -> None:
        super().__init__()
        if plain_features and gazelle is None:
            raise ValueError("DINOv2's features were asked of an observer without Gazelle")
        self.plain_features = plain_features
        self.encoder = encoder
        self.gazelle = gazelle
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Observer":
        """Stay in `eval()`: a frozen observer has no training mode."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, frames_SFRYX: Float[Tensor, "s f r y x"], gaze_frames_SRYX: Float[Tensor, "s r y2 x2"] | None
    ) -> Observed:
        """Encode S steps, each alone.

        Args:
            frames_SFRYX: normalised encoder view; F = 1 (`step: frame`) or 2 (`step: tubelet`).
            gaze_frames_SRYX: normalised Gazelle view of the frame at the step's own time, or None.

        Returns:
            Layer-normed latents; layer-normed scene tokens and gaze weights on the same patch grid; heat maps.

        Raises:
            ValueError: a Gazelle view without a Gazelle, or F that is neither 1 nor the tubelet size.
        """
        num_frames = frames_SFRYX.shape[1]
        if num_frames == 1:
            z_SND = self.encoder.encode_frames(frames_SFRYX[:, 0])
        elif num_frames == self.encoder.spec.tubelet_size:
            z_SND = self.encoder(frames_SFRYX.transpose(1, 2))
        else:
            raise ValueError(f"a step holds 1 or {self.encoder.spec.tubelet_size} frames, found {num_frames}")
        z_SND = layer_normed(z_SND)
        if gaze_frames_SRYX is None:
            return Observed(z_SND, None, None, None)
        if self.gazelle is None:
            raise ValueError("gaze frames were given, but this observer has no Gazelle")
        rows, cols = self.encoder.spec.grid(*frames_SFRYX.shape[-2:])
        features_SDHW = self.gazelle.backbone(gaze_frames_SRYX)
        gaze = self.gazelle.decode(features_SDHW)
        scene_SGHW = gaze.scene_tokens.transpose(1, 2).unflatten(2, tuple(features_SDHW.shape[-2:]))
        if self.plain_features:
            scene_SGHW = features_SDHW
        scene_SNG = layer_normed(resample_scene(scene_SGHW, (rows, cols)))
        return Observed(z_SND, scene_SNG, gaze_weights(gaze.heatmaps, (rows, cols)), gaze.heatmaps)
