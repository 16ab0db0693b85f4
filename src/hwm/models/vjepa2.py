"""The V-JEPA 2 video encoder: a vision transformer over tubelets of 2 frames × 16 × 16 pixels.

ImageNet-normalised video [B, R, F, Y, X] → latents [B, T·H·W, D] with T = F/2, H = Y/16, W = X/16.
Source: `VisionTransformer` of facebookresearch/vjepa2 as released (RoPE, no class token, layer norms with eps 1e-6);
paper 2506.09985. Positions are raw indices of the grid, so any size and aspect that the patch divides will do.
`hwm.models.vjepa21` is the encoder of V-JEPA 2.1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from hwm.errors import ConfigError
from hwm.models.layers import Block, check_sizes, hidden_width, init_linear_and_norm, rescale_residuals
from hwm.models.rope import TILED, RopeForm, RopeTable, RopeTables

NUM_COLOURS = 3


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a V-JEPA 2 encoder.

    Attributes:
        width: latent width D.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        patch_size: pixels of a patch's side.
        tubelet_size: frames of a tubelet.
        version: which V-JEPA the weights are of; `hwm.models.vjepa21.build_encoder` makes the module that fits.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    patch_size: int = 16
    tubelet_size: int = 2
    version: Literal["2", "2.1"] = "2"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        sizes = {"depth": self.depth, "mlp_ratio": self.mlp_ratio, "patch_size": self.patch_size}
        check_sizes("encoder", self.width, self.num_heads, tubelet_size=self.tubelet_size, **sizes)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (H, W) of a picture of `height` × `width` pixels.

        Raises:
            ConfigError: the patch does not divide the picture.
        """
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                "the encoder's view does not fit its patches",
                expected=f"multiples of {self.patch_size} pixels",
                found=f"{height} × {width} pixels",
                fix="set encoder.resolution to a multiple of the patch size",
            )
        return height // self.patch_size, width // self.patch_size


class TubeletEmbedding(nn.Module):
    """The patch kernel. It never overlaps itself, so the convolution is a matrix product over unfolded tubelets."""

    def __init__(self, width: int, patch_size: int, tubelet_size: int) -> None:
        super().__init__()
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(NUM_COLOURS, width, kernel_size=kernel, stride=kernel)
        self.patch_size, self.tubelet_size = patch_size, tubelet_size

    def forward(self, video_BRFYX: Float[Tensor, "b r f y x"]) -> Float[Tensor, "b l d"]:
        """Embed every tubelet of a video whose sizes the kernel divides."""
        tubelets = rearrange(
            video_BRFYX,
            "b r (t u) (h p) (w q) -> b (t h w) (r u p q)",
            u=self.tubelet_size,
            p=self.patch_size,
            q=self.patch_size,
        )
        return linear(tubelets, self.proj.weight.flatten(1), self.proj.bias)

    def embed_repeated(self, frames_BRYX: Float[Tensor, "b r y x"]) -> Float[Tensor, "b n d"]:
        """Embed frames that each fill a whole tubelet: the kernel summed over time sees one frame once."""
        patches = rearrange(frames_BRYX, "b r (h p) (w q) -> b (h w) (r p q)", p=self.patch_size, q=self.patch_size)
        return linear(patches, self.proj.weight.sum(dim=2).flatten(1), self.proj.bias)


class VJEPA2Encoder(nn.Module):
    """V-JEPA 2 encoder; new ones start from V-JEPA 2's initial weights."""

    version: ClassVar[str] = "2"
    rope_form: ClassVar[RopeForm] = TILED

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        if spec.version != self.version:
            raise ConfigError("the encoder's version does not fit", expected=self.version, found=spec.version)
        self.spec = spec
        self.patch_embed = TubeletEmbedding(spec.width, spec.patch_size, spec.tubelet_size)
        hidden = hidden_width(spec.width, spec.mlp_ratio)
        self.blocks = nn.ModuleList(Block(spec.width, spec.num_heads, hidden) for _ in range(spec.depth))
        self._make_output()
        self._rope = RopeTables(spec.width // spec.num_heads, self.rope_form)
        self.apply(init_linear_and_norm)
        rescale_residuals(self.blocks)

    def forward(
        self, video_BRFYX: Float[Tensor, "b 3 f y x"], keep_BL: Int[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """Encode clips; every token attends to every other, in time too.

        Args:
            video_BRFYX: ImageNet-normalised clips; F, Y and X must be multiples of tubelet and patch.
            keep_BL: flat ids of the tokens that are seen; the others are dropped before the first block. Tokens keep
                the positions of their ids. None sees all.

        Returns:
            Layer-normed latents, T·H·W or L a clip, in the order of the ids.

        Raises:
            ConfigError: the clip does not divide into tubelets.
        """
        x_BLD, rope = self._start(video_BRFYX, keep_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, rope)
        return self._finish(x_BLD)

    def encode_frames(self, frames_BRYX: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b n d"]:
        """Encode each frame alone, repeated to fill one tubelet: what a latent step of V-JEPA 2-AC is.

        Args:
            frames_BRYX: ImageNet-normalised frames; every frame is independent of the others.

        Returns:
            Layer-normed latents of the H·W patches.
        """
        grid = self.spec.grid(*frames_BRYX.shape[-2:])
        rope = self._rope.get(0, 1, grid, self.patch_embed.proj.weight)
        x_BND = self.patch_embed.embed_repeated(frames_BRYX)
        for block in self.blocks:
            x_BND = block(x_BND, rope)
        return self._finish(x_BND)

    def _start(self, video_BRFYX: Tensor, keep_BL: Tensor | None) -> tuple[Tensor, RopeTable]:
        """The tokens that are seen, embedded, and their positions."""
        grid = self.spec.grid(*video_BRFYX.shape[-2:])
        x_BLD = self._embed(video_BRFYX)
        rope = self._rope.get(0, x_BLD.shape[1] // (grid[0] * grid[1]), grid, self.patch_embed.proj.weight)
        if keep_BL is not None:
            x_BLD = torch.take_along_dim(x_BLD, keep_BL.unsqueeze(-1), dim=1)
            rope = rope.rows(keep_BL)
        return x_BLD, rope

    def _make_output(self) -> None:
        self.norm = nn.LayerNorm(self.spec.width, eps=1e-6)

    def _embed(self, video_BRFYX: Tensor) -> Tensor:
        num_frames, tubelet = video_BRFYX.shape[2], self.spec.tubelet_size
        if num_frames < 1 or num_frames % tubelet:
            raise ConfigError(
                "the clip does not divide into tubelets",
                expected=f"a multiple of {tubelet} frames",
                found=f"{num_frames} frames",
            )
        return self.patch_embed(video_BRFYX)

    def _finish(self, x_BLD: Tensor) -> Tensor:
        return self.norm(x_BLD)
