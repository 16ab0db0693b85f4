"""Encoding a video of any length in bounded memory: window after window, without gradients.

ImageNet-normalised video [B, R, F, Y, X], any F and any aspect that the patch divides → latents [B, T, N, D] with
T = ⌈F / tubelet⌉. Tokens of one window attend to each other and to no other window; each window starts at time 0, as in
training. A window of one clip runs at a time, so beyond the video and its latents memory does not grow with B or F.
(The published example keeps the activations of all blocks for a backward pass that never comes: about 40 GB for 64
frames of ViT-L.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hwm.errors import ConfigError
from hwm.models.vjepa2 import VJEPA2Encoder


@torch.inference_mode()
def encode_long(
    encoder: VJEPA2Encoder, video_BRFYX: Float[Tensor, "b 3 f y x"], frames_per_window: int = 16
) -> Float[Tensor, "b t n d"]:
    """Encode a video window by window.

    Args:
        encoder: a V-JEPA 2 or 2.1 encoder; windows are moved to its device and type one at a time.
        video_BRFYX: the video, on any device. Where F does not fill the last tubelet, the last frame is repeated.
        frames_per_window: frames that see each other: 16 in most of V-JEPA 2's pre-training, 64 in its last phase.

    Returns:
        Layer-normed latents as the encoder gives them, on the encoder's device.

    Raises:
        ConfigError: no frames, sides that the patch does not divide, or a window that is no multiple of the tubelet.
    """
    tubelet = encoder.spec.tubelet_size
    grid = encoder.spec.grid(*video_BRFYX.shape[-2:])
    num_frames = video_BRFYX.shape[2]
    if num_frames < 1:
        raise ConfigError("the video has no frames", expected="at least one", found="0")
    if frames_per_window < tubelet or frames_per_window % tubelet:
        raise ConfigError(
            "frames_per_window does not divide into tubelets",
            expected=f"a multiple of {tubelet}", found=str(frames_per_window),
        )  # fmt: skip
    weight = encoder.patch_embed.proj.weight
    num_steps = -(-num_frames // tubelet)
    z_BTND = weight.new_empty(video_BRFYX.shape[0], num_steps, grid[0] * grid[1], encoder.spec.width)
    for clip_RFYX, z_TND in zip(video_BRFYX, z_BTND, strict=True):
        for first in range(0, num_frames, frames_per_window):
            window_RFYX = clip_RFYX[:, first : first + frames_per_window].to(weight)
            missing = -window_RFYX.shape[1] % tubelet
            window_RFYX = torch.cat((window_RFYX, window_RFYX[:, -1:].expand(-1, missing, -1, -1)), dim=1)
            z_LD = encoder(window_RFYX[None])[0]
            where = slice(first // tubelet, first // tubelet + window_RFYX.shape[1] // tubelet)
            z_TND[where] = z_LD.unflatten(0, (-1, grid[0] * grid[1]))
    return z_BTND
