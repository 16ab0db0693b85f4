"""Gaze-LLE ("Gazelle"): where do the people in a picture look?

ImageNet-normalised pictures [B, R, Y, X] and head boxes → for each person scene tokens [P, N, G], a heat map
[P, 64, 64] in 0..1, and (in/out variant) the probability that the gaze target is inside the picture.
Source: fkryan/gazelle (paper 2412.09586): frozen DINOv2 → 1 × 1 projection → + sine positions → + head token where the
head is → [in/out token] → transformer blocks → heads. Without a box the head map is zero and the output is a guess of
what draws attention; the model was made for a visible person seen from outside.
Left out: the released training code's stochastic depth (0.1), which does nothing at inference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hwm.errors import ConfigError, DataError
from hwm.models.dinov2 import DINOv2
from hwm.models.layers import Block, check_sizes, hidden_width, init_linear_and_norm

INOUT_HIDDEN_WIDTH = 128
FARTHEST_BOX = 2.0
"""A detector's box may reach out of the picture; one that reaches this many pictures far is given in pixels."""
# timm's layer norms, which the released decoder is made of, had eps 1e-6 in the version upstream's outputs come from.
EPS = 1e-6


@dataclass(frozen=True)
class GazelleSpec:
    """Sizes of a Gaze-LLE decoder.

    Attributes:
        width: scene-token width G.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over G.
        position_grid: (H, W) of the stored sine positions; pictures of another grid get them interpolated.
        out_size: (rows, columns) of the heat maps.
        inout: whether there is a token and a head for "the target is inside the picture".
    """

    width: int = 256
    depth: int = 3
    num_heads: int = 8
    mlp_ratio: float = 4.0
    position_grid: tuple[int, int] = (32, 32)
    out_size: tuple[int, int] = (64, 64)
    inout: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        sizes = dict(
            zip(("rows", "columns", "out_rows", "out_columns"), self.position_grid + self.out_size, strict=True)
        )
        check_sizes("gazelle", self.width, self.num_heads, depth=self.depth, mlp_ratio=self.mlp_ratio, **sizes)
        if self.width % 4:
            raise ConfigError("gazelle.width must be a multiple of 4 for its sine positions", found=str(self.width))


class GazeOutput(NamedTuple):
    """What Gazelle says, one row a person (P rows; without boxes one row a picture).

    Attributes:
        scene_tokens: [P, N, G] tokens after the last block, rows of the grid first.
        heatmaps: [P, 64, 64] probability of being looked at, 0..1, at `GazelleSpec.out_size`.
        heatmap_logits: [P, 2·H, 2·W] the same before the sigmoid, at twice the patch grid; upstream resizes after the
            sigmoid, so train with `binary_cross_entropy_with_logits` against a target of this size.
        inout: [P] probability that the target is inside the picture; None without an in/out head.
        inout_logits: [P] the same before the sigmoid.
        image_index: [P] which picture each row belongs to.
    """

    scene_tokens: Tensor
    heatmaps: Tensor
    heatmap_logits: Tensor
    inout: Tensor | None
    inout_logits: Tensor | None
    image_index: Tensor


class GazeLLE(nn.Module):
    """DINOv2 backbone and Gaze-LLE decoder; the decoder's parameter names are those of the released files.

    Args:
        backbone: picture encoder; freeze it for Gaze-LLE as published.
        spec: sizes of the decoder.
    """

    pos_embed: Tensor

    def __init__(self, backbone: DINOv2, spec: GazelleSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.linear = nn.Conv2d(backbone.spec.width, spec.width, kernel_size=1)
        self.head_token = nn.Embedding(1, spec.width)
        self.transformer = nn.Sequential(
            *(
                Block(spec.width, spec.num_heads, hidden_width(spec.width, spec.mlp_ratio), qkv_bias=False, eps=EPS)
                for _ in range(spec.depth)
            )
        )
        self.heatmap_head = nn.Sequential(
            nn.ConvTranspose2d(spec.width, spec.width, kernel_size=2, stride=2),
            nn.Conv2d(spec.width, 1, kernel_size=1, bias=False),
        )
        self.register_buffer("pos_embed", sine_positions(spec.width, *spec.position_grid))
        if spec.inout:
            self.inout_token = nn.Embedding(1, spec.width)
            self.inout_head = nn.Sequential(
                nn.Linear(spec.width, INOUT_HIDDEN_WIDTH), nn.ReLU(), nn.Dropout(0.1), nn.Linear(INOUT_HIDDEN_WIDTH, 1)
            )
        self.transformer.apply(init_linear_and_norm)

    def forward(
        self,
        images_BRYX: Float[Tensor, "b 3 y x"],
        head_boxes: Sequence[Sequence[Sequence[float] | None]] | None = None,
    ) -> GazeOutput:
        """Where each person looks.

        Args:
            images_BRYX: ImageNet-normalised pictures; the backbone's patch must divide their sides.
            head_boxes: for each picture its people, each a box (left, top, right, bottom) as shares 0..1 of the
                picture, or None for a person whose head is not known. None: one unknown person a picture.

        Returns:
            One row a person, pictures in order, people in the order of their boxes.

        Raises:
            ConfigError: the patch does not divide the pictures.
            DataError: a list for each picture is not given, or a box is not a box.
        """
        return self.decode(self.backbone(images_BRYX), head_boxes)

    def decode(
        self,
        features_BDHW: Float[Tensor, "b d h w"],
        head_boxes: Sequence[Sequence[Sequence[float] | None]] | None = None,
    ) -> GazeOutput:
        """The part after the backbone; see `forward`.

        Raises:
            DataError: a list for each picture is not given, or a box is not a box.
        """
        num_images = features_BDHW.shape[0]
        if head_boxes is None:
            head_boxes = [[None]] * num_images
        if len(head_boxes) != num_images:
            raise DataError(
                "head boxes do not match the pictures",
                expected=f"one list for each of {num_images} pictures",
                found=f"{len(head_boxes)} lists",
            )
        grid = (features_BDHW.shape[2], features_BDHW.shape[3])
        device = features_BDHW.device
        counts = torch.tensor([len(boxes) for boxes in head_boxes], device=device)
        image_index_P = torch.arange(len(head_boxes), device=device).repeat_interleave(counts)
        boxes = [box for boxes in head_boxes for box in boxes]
        heads_PHW = torch.stack([head_map(box, grid) for box in boxes]) if boxes else torch.zeros(0, *grid)

        projected_BGHW = self.linear(features_BDHW)
        projected_BGHW = projected_BGHW + self._positions(grid).to(projected_BGHW.dtype)
        head_1G11 = self.head_token.weight[..., None, None]
        x_PGHW = projected_BGHW[image_index_P] + heads_PHW.to(device).unsqueeze(1) * head_1G11
        return self._decode(x_PGHW.flatten(2).transpose(1, 2), grid, image_index_P)

    def _decode(self, x_PNG: Tensor, grid: tuple[int, int], image_index_P: Tensor) -> GazeOutput:
        inout_logits_P = None
        if self.spec.inout:
            inout_P1G = self.inout_token.weight.expand(x_PNG.shape[0], 1, -1)
            x_PLG = self.transformer(torch.cat((inout_P1G, x_PNG), dim=1))
            inout_logits_P = self.inout_head(x_PLG[:, 0]).squeeze(-1)
            scene_PNG = x_PLG[:, 1:]
        else:
            scene_PNG = self.transformer(x_PNG)
        logits_PYX = self.heatmap_head(scene_PNG.transpose(1, 2).unflatten(2, grid)).squeeze(1)
        return GazeOutput(
            scene_tokens=scene_PNG,
            heatmaps=self._resize(logits_PYX.sigmoid()),
            heatmap_logits=logits_PYX,
            inout=None if inout_logits_P is None else inout_logits_P.sigmoid(),
            inout_logits=inout_logits_P,
            image_index=image_index_P,
        )

    def _resize(self, heatmaps_PYX: Tensor) -> Tensor:
        if heatmaps_PYX.shape[1:] == self.spec.out_size or not len(heatmaps_PYX):
            return heatmaps_PYX.reshape(-1, *self.spec.out_size)
        resized = interpolate(
            heatmaps_PYX.unsqueeze(1), size=self.spec.out_size, mode="bilinear", align_corners=False, antialias=True
        )
        return resized.squeeze(1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [G, H, W]. Another grid interpolates the stored one (bicubic, cell centres).

        Making the sines anew for a smaller grid would give the top-left corner of the trained one instead.
        """
        if grid == self.spec.position_grid:
            return self.pos_embed
        return interpolate(self.pos_embed.unsqueeze(0), size=grid, mode="bicubic", align_corners=False).squeeze(0)


def sine_positions(width: int, height: int, columns: int) -> Float[Tensor, "g h w"]:
    """Fixed sine positions: the first half of the channels tells the column, the second half the row."""
    half = width // 2
    frequencies = torch.exp(torch.arange(0.0, half, 2) * -(log(10_000.0) / half))
    axes = []
    for count in (columns, height):
        angles = frequencies[:, None] * torch.arange(float(count))
        axes.append(torch.stack((angles.sin(), angles.cos()), dim=1).flatten(0, 1))
    of_column = axes[0][:, None, :].expand(-1, height, -1)
    of_row = axes[1][:, :, None].expand(-1, -1, columns)
    return torch.cat((of_column, of_row)).contiguous()


def head_map(box: Sequence[float] | None, grid: tuple[int, int]) -> Float[Tensor, "h w"]:
    """1 on the cells of `grid` that the box (left, top, right, bottom; shares 0..1) covers, else 0; None: all 0.

    Raises:
        DataError: the box has not four finite numbers, its right or bottom lies before its left or top, or it is one
            of pixels.
    """
    height, width = grid
    cells = torch.zeros(height, width)
    if box is None:
        return cells
    if not hasattr(box, "__len__"):  # one box for each picture was given, and no list of boxes
        raise DataError(
            "a head box is not a box", expected="a list of boxes (or of None) for each picture: [[box], [box], …]",
            found=str(box),
        )  # fmt: skip
    is_box = len(box) == 4 and all(map(isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]
    if not is_box or max(box) > FARTHEST_BOX:
        raise DataError(
            "a head box is not a box",
            expected="(left, top, right, bottom) as shares 0..1 of the picture, or None",
            found=str(tuple(box)),
        )
    left, right = (min(max(round(x * width), 0), width) for x in (box[0], box[2]))
    top, bottom = (min(max(round(y * height), 0), height) for y in (box[1], box[3]))
    cells[top:bottom, left:right] = 1.0
    return cells
