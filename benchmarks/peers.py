"""Peers that need more than an import: upstream's Gaze-LLE decoder on transformers' DINOv2, and plain dense attention.

Where a library that upstream imports is not installed, the few of its parts that are run are stood in for by plain
PyTorch, so that upstream's own code can be timed: timm's transformer block and torchvision's resize.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.context import Context, gazelle_source, stand_ins
from hwm.models.dinov2 import DINOv2
from hwm.models.gazelle import GazeLLE
from hwm.weights.huggingface_write import dinov2_to_huggingface, save_huggingface


class PlainBlock(nn.Module):
    """A pre-norm block in plain PyTorch, with timm's parameter names and fused attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        del drop_path  # nothing in eval mode
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim, bias=False), "proj": nn.Linear(dim, dim)})
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, D] to tokens."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        x = x + self.attn["proj"](mixed)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class TransformersBackbone(nn.Module):
    """`Dinov2Model` behind the interface that upstream's Gaze-LLE asks of a backbone."""

    def __init__(self, ours: DINOv2, side: int, folder: Path) -> None:
        super().__init__()
        from transformers import Dinov2Model

        save_huggingface(dinov2_to_huggingface(ours), folder)
        self.model = Dinov2Model.from_pretrained(folder, attn_implementation="sdpa")
        self.width, self.grid = ours.spec.width, (side // 14, side // 14)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to a feature map [B, D, H, W]."""
        tokens = self.model(pixel_values=images).last_hidden_state[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def get_dimension(self) -> int:
        """Width of the features."""
        return self.width

    def get_out_size(self, in_size: tuple[int, int]) -> tuple[int, int]:
        """The patch grid."""
        return in_size[0] // 14, in_size[1] // 14


def upstream_gazelle(context: Context, ours: GazeLLE, side: int) -> Any:
    """Upstream's `GazeLLE` with the weights of ours.

    Raises:
        ConfigError: `context.gazelle` has no such package.
    """
    assert context.gazelle is not None
    folder: Path = gazelle_source(context.gazelle, context.scratch)
    backbone = TransformersBackbone(ours.backbone, side, context.scratch / "dinov2")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with stand_ins(
        {
            "timm.models.vision_transformer": {"Block": PlainBlock},
            "torchvision.transforms.functional": {"resize": _resize},
            "sklearn.metrics": {"roc_auc_score": None},
        }
    ):
        upstream = importlib.import_module("gazelle.model").GazeLLE
    theirs = upstream(backbone, dim=ours.spec.width, num_layers=ours.spec.depth, in_size=(side, side)).eval()
    decoder = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("backbone.")}
    wrong = theirs.load_state_dict(decoder, strict=False)
    assert not wrong.unexpected_keys, wrong
    return theirs


def stood_in() -> list[str]:
    """Which libraries of upstream's Gaze-LLE are not installed."""
    return [name for name in ("timm", "torchvision", "sklearn") if importlib.util.find_spec(name) is None]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
