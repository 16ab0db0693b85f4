"""The V-JEPA 2.1 video encoder: V-JEPA 2's with an image tokenizer, four output norms and another rotary form.

ImageNet-normalised video [B, R, F, Y, X] → latents [B, T·N, D]; one frame alone [B, R, 1, Y, X] → [B, N, D] through a
patch kernel of its own. A learned vector tells pictures from videos. `levels` gives the four normed levels side by
side, [B, T·N, 4·D], which the predictor of the undistilled models reads.
Source: `app/vjepa_2_1` of facebookresearch/vjepa2; paper 2603.14482.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hwm.errors import ConfigError
from hwm.models.rope import STRETCHED, RopeForm
from hwm.models.vjepa2 import EncoderSpec, TubeletEmbedding, VJEPA2Encoder

NUM_LEVELS = 4
LEVEL_BLOCKS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}
"""Depth → the blocks after which a level is read; the last is always the encoder's output."""


class VJEPA21Encoder(VJEPA2Encoder):
    """V-JEPA 2.1 encoder; a clip of one frame is a picture."""

    version: ClassVar[str] = "2.1"
    rope_form: ClassVar[RopeForm] = STRETCHED

    def encode_frames(self, frames_BRYX: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b n d"]:
        """Encode each frame alone, as the picture it is (V-JEPA 2 has to repeat it to fill a tubelet)."""
        return self(frames_BRYX.unsqueeze(2))

    def levels(
        self, video_BRFYX: Float[Tensor, "b 3 f y x"], keep_BL: Int[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b k d4"]:
        """The four normed levels of each token, the lowest first; arguments as in `forward`.

        Raises:
            ConfigError: where the levels of an encoder of this depth lie is not published.
        """
        if self.spec.depth not in LEVEL_BLOCKS:
            raise ConfigError(
                "the levels of this encoder are not known",
                expected=f"a depth of {', '.join(map(str, LEVEL_BLOCKS))} blocks",
                found=str(self.spec.depth),
            )
        x_BLD, rope = self._start(video_BRFYX, keep_BL)
        read = []
        for index, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, rope)
            if index in LEVEL_BLOCKS[self.spec.depth]:
                read.append(self.norms_block[len(read)](x_BLD))
        return torch.cat(read, dim=-1)

    def _make_output(self) -> None:
        width = self.spec.width
        self.patch_embed_img = TubeletEmbedding(width, self.spec.patch_size, tubelet_size=1)
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.norms_block = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(NUM_LEVELS))

    def _embed(self, video_BRFYX: Tensor) -> Tensor:
        if video_BRFYX.shape[2] == 1:
            return self.patch_embed_img(video_BRFYX) + self.img_mod_embed
        return super()._embed(video_BRFYX) + self.video_mod_embed

    def _finish(self, x_BLD: Tensor) -> Tensor:
        return self.norms_block[-1](x_BLD)


def build_encoder(spec: EncoderSpec) -> VJEPA2Encoder:
    """A new encoder of the spec's version."""
    return VJEPA21Encoder(spec) if spec.version == VJEPA21Encoder.version else VJEPA2Encoder(spec)
