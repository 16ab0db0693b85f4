"""DINOv2, the picture encoder below Gaze-LLE: a vision transformer with a class token and LayerScale.

ImageNet-normalised pictures [B, R, Y, X] → a map of features [B, D, H, W] (`x_norm_patchtokens` laid out as a grid).
Source: facebookresearch/dinov2 as its hub builds it (patch 14, LayerScale, `interpolate_offset` 0.1, no antialias, no
registers); paper 2304.07193. The released models were trained at 518 pixels, a grid of 37 × 37.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hwm.errors import ConfigError
from hwm.models.layers import INIT_STD, Block, check_sizes, hidden_width, init_linear_and_norm

NUM_COLOURS = 3
INTERPOLATE_OFFSET = 0.1


@dataclass(frozen=True)
class DINOv2Spec:
    """Sizes of a DINOv2 encoder.

    Attributes:
        width: feature width D.
        depth: transformer blocks.
        num_heads: attention heads.
        position_side: side of the square grid of learned positions (released: 37).
        patch_size: pixels of a patch's side.
        mlp_ratio: hidden width of the MLP over D.
    """

    width: int
    depth: int
    num_heads: int
    position_side: int = 37
    patch_size: int = 14
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        sizes = {"depth": self.depth, "mlp_ratio": self.mlp_ratio, "patch_size": self.patch_size}
        check_sizes("backbone", self.width, self.num_heads, position_side=self.position_side, **sizes)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (H, W) of a picture of `height` × `width` pixels.

        Raises:
            ConfigError: the patch does not divide the picture.
        """
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                "Gazelle's view does not fit its patches",
                expected=f"multiples of {self.patch_size} pixels",
                found=f"{height} × {width} pixels",
                fix="set gazelle.resolution to a multiple of the patch size",
            )
        return height // self.patch_size, width // self.patch_size


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Channel by channel."""
        return x_BLD * self.gamma


class ScaledBlock(Block):
    """The shared block with a LayerScale on both of its branches."""

    def __init__(self, width: int, num_heads: int, hidden_width: int) -> None:
        super().__init__(width, num_heads, hidden_width)
        self.ls1 = LayerScale(width)
        self.ls2 = LayerScale(width)

    def leave(self, x_BLD: Float[Tensor, "b l d"], mixed_BMLA: Float[Tensor, "b m l a"]) -> Float[Tensor, "b l d"]:
        """See `Block.leave`."""
        x_BLD = x_BLD + self.ls1(self.attn.merge(mixed_BMLA))
        return x_BLD + self.ls2(self.mlp(self.norm2(x_BLD)))


class PatchEmbedding(nn.Module):
    """Pictures → one token a patch, rows first."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(NUM_COLOURS, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BRYX: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b n d"]:
        """Embed every patch."""
        return self.proj(images_BRYX).flatten(2).transpose(1, 2)


class DINOv2(nn.Module):
    """DINOv2 encoder; new ones start from random weights."""

    def __init__(self, spec: DINOv2Spec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbedding(spec.width, spec.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + spec.position_side**2, spec.width))
        hidden = hidden_width(spec.width, spec.mlp_ratio)
        self.blocks = nn.ModuleList(ScaledBlock(spec.width, spec.num_heads, hidden) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.apply(init_linear_and_norm)
        nn.init.trunc_normal_(self.pos_embed, std=INIT_STD)

    def forward(self, images_BRYX: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d h w"]:
        """Encode pictures whose sides the patch divides; returns the layer-normed patch features as a map.

        Raises:
            ConfigError: the patch does not divide the pictures.
        """
        grid = self.spec.grid(*images_BRYX.shape[-2:])
        patches_BND = self.patch_embed(images_BRYX)
        cls_B1D = self.cls_token.expand(patches_BND.shape[0], -1, -1)
        x_BLD = torch.cat((cls_B1D, patches_BND), dim=1) + self._positions(grid).to(patches_BND.dtype)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)[:, 1:].transpose(1, 2).unflatten(2, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Learned positions [1, 1 + N, D] at `grid`.

        The scale handed to `interpolate` is (size + 0.1) / trained size, not the true one: the hub keeps this old
        guard against rounding, and it shifts the sampling points a little. Released features were made with it.
        """
        side = self.spec.position_side
        if grid == (side, side):
            return self.pos_embed
        cls_position, positions = self.pos_embed.split((1, side * side), dim=1)
        scale = tuple((size + INTERPOLATE_OFFSET) / side for size in grid)
        trained_map = positions.transpose(1, 2).unflatten(2, (side, side)).float()
        # scale_factor takes rows first, then columns; its mapping is used as it is (no recompute_scale_factor).
        resized = interpolate(trained_map, scale_factor=scale, mode="bicubic", antialias=False)
        assert resized.shape[-2:] == grid
        return torch.cat((cls_position, resized.flatten(2).transpose(1, 2).to(cls_position.dtype)), dim=1)
