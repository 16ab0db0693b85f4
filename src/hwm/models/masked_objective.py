"""The masked-latent objective that makes or adapts an encoder (V-JEPA 2 pre-training, with 2.1's loss on context).

A clip with hidden patches → the encoder sees the rest → a masked predictor names the tokens that a slowly moving copy
of the encoder (the EMA target) gives for the whole clip. Loss: L1 against layer-normed targets, on hidden patches and
(weighted) on visible ones. Two more terms, off by default, keep very small encoders from collapsing: a hinge on the
deviation of each feature (VICReg) and the pixels of every patch (as a masked auto-encoder).
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hwm.losses import layer_normed, variance_hinge
from hwm.models.masked_predictor import MaskedPredictor
from hwm.models.vjepa2 import VJEPA2Encoder


class MaskedLosses(NamedTuple):
    """Parts of the loss; `total` is the one to differentiate, `target_BSD` is what the collapse monitors look at."""

    total: Tensor
    hidden: Tensor
    context: Tensor
    variance: Tensor
    pixel: Tensor
    target_BSD: Tensor


def patch_pixels(video_BRFYX: Float[Tensor, "b r f y x"], tubelet: int, patch: int) -> Float[Tensor, "b l p"]:
    """Pixels of every tubelet, in token order, each tubelet normalised as a whole to mean 0 and deviation 1.

    All its frames, so that the difference between them (what moves) is part of what must be told.
    """
    tubelets = rearrange(video_BRFYX, "b r (t u) (h p) (w q) -> b (t h w) (u p q r)", u=tubelet, p=patch, q=patch)
    deviation = tubelets.std(dim=-1, keepdim=True)
    return (tubelets - tubelets.mean(dim=-1, keepdim=True)) / (deviation + 0.1)


def masked_losses(
    encoder: VJEPA2Encoder,
    target_encoder: VJEPA2Encoder,
    predictor: MaskedPredictor,
    pixel_head: nn.Linear,
    video_BRFYX: Float[Tensor, "b r f y x"],
    keep_BL: Int[Tensor, "b l"],
    *,
    context_weight: float,
    variance_weight: float,
    pixel_weight: float,
) -> MaskedLosses:
    """Loss of a batch of normalised clips; `keep_BL` are the flat ids of the visible patches."""
    with torch.no_grad():
        target_BSD = layer_normed(target_encoder(video_BRFYX))
    context_BLD = encoder(video_BRFYX, keep_BL)
    num_tokens = target_BSD.shape[1]
    everywhere = torch.arange(num_tokens, device=keep_BL.device).expand(keep_BL.shape[0], -1)
    grid = encoder.spec.grid(*video_BRFYX.shape[-2:])
    predicted_BSD = predictor(context_BLD, keep_BL, everywhere, mask_index=0, grid=grid)
    visible = torch.zeros_like(everywhere, dtype=torch.bool).scatter(1, keep_BL, True)

    error_BS = (predicted_BSD - target_BSD).abs().mean(dim=-1)
    hidden, context = error_BS[~visible].mean(), error_BS[visible].mean()
    variance = variance_hinge(context_BLD.flatten(0, 1))
    pixels = patch_pixels(video_BRFYX, encoder.spec.tubelet_size, encoder.spec.patch_size)
    pixel = (pixel_head(predicted_BSD) - pixels).square().mean()
    total = hidden + context_weight * context + variance_weight * variance + pixel_weight * pixel
    return MaskedLosses(total, hidden, context, variance, pixel, target_BSD)


@torch.no_grad()
def update_target(target_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """Move the target encoder towards the encoder: target ← momentum · target + (1 − momentum) · encoder."""
    for target, source in zip(target_encoder.parameters(), encoder.parameters(), strict=True):
        target.lerp_(source, 1.0 - momentum)
