"""Transformer parts that V-JEPA 2, DINOv2, Gaze-LLE, the causal stack and the probe share.

Tokens [B, L, D] → tokens [B, L, D]. Pre-norm blocks with the parameter names of timm and of the released
checkpoints: norm1, attn.{qkv, proj}, norm2, mlp.{fc1, fc2}.
"""

import math
from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hwm.config import Precision
from hwm.errors import ConfigError
from hwm.models import kernels
from hwm.models.rope import RopeTable, rotate

INIT_STD = 0.02
MAX_SIZE = 1 << 20
MAX_REPEATS = 1 << 10


class Attention(nn.Module):
    """The projections of multi-head self-attention, those of query, key and value fused into one.

    Args:
        width: token width D.
        num_heads: attention heads M; must divide the width.
        qkv_bias: whether the fused projection has a bias (V-JEPA 2 and DINOv2: yes, Gaze-LLE: no).
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def project(self, x_BLD: Float[Tensor, "b l d"], rope: RopeTable | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, M, L, A]; queries and keys are turned by `rope` where it is given."""
        qkv = rearrange(kernels.project(x_BLD, self.qkv), "b l (three m a) -> three b m l a", three=3, m=self.num_heads)
        query, key, value = qkv.unbind(0)
        if rope is not None:
            query, key = rotate(query, rope), rotate(key, rope)
        return query, key, value

    def merge(
        self, mixed_BMLA: Float[Tensor, "b m l a"], onto: Float[Tensor, "b l d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Join the heads and project them back to the token width; added to `onto` where it is given."""
        return kernels.project(rearrange(mixed_BMLA, "b m l a -> b l (m a)"), self.proj, onto)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(
        self, x_BLD: Float[Tensor, "b l d"], onto: Float[Tensor, "b l d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Token by token; added to `onto` where it is given."""
        return kernels.mlp(x_BLD, self.fc1, self.fc2, onto)


class Block(nn.Module):
    """Pre-norm transformer block: x + attn(norm1(x)), then x + mlp(norm2(x)).

    Args:
        width: token width D.
        num_heads: attention heads.
        hidden_width: width inside the MLP.
        qkv_bias: see `Attention`.
        eps: epsilon of both layer norms.
    """

    def __init__(self, width: int, num_heads: int, hidden_width: int, qkv_bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden_width)

    def forward(
        self,
        x_BLD: Float[Tensor, "b l d"],
        rope: RopeTable | None = None,
        attn_mask: Bool[Tensor, "b #m #l l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Every token attends to every other, or where `attn_mask` is true."""
        return self.leave(x_BLD, kernels.attention(*self.enter(x_BLD, rope), attn_mask))

    def enter(self, x_BLD: Float[Tensor, "b l d"], rope: RopeTable | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What comes before attention, token by token: queries, keys and values, each [B, M, L, A]."""
        return self.attn.project(self.norm1(x_BLD), rope)

    def leave(self, x_BLD: Float[Tensor, "b l d"], mixed_BMLA: Float[Tensor, "b m l a"]) -> Float[Tensor, "b l d"]:
        """What comes after attention, token by token, from the block's input and what each token saw."""
        x_BLD = self.attn.merge(mixed_BMLA, onto=x_BLD)
        return self.mlp(self.norm2(x_BLD), onto=x_BLD)


def set_precision(frozen: nn.Module, precision: Precision) -> None:
    """Bring a frozen module with float32 weights to a numeric precision, in place."""
    if precision == "bf16-mixed":
        products_in_bfloat16(frozen)


def products_in_bfloat16(module: nn.Module) -> None:
    """Give the linear layers of all blocks of a frozen module bfloat16 weights, in place.

    Their products, attention and the MLP's hidden layer are then bfloat16, or float32 of rounded weights on a CPU that
    is slow in bfloat16 (`kernels`). The stream between blocks, layer norms and what lies before and after the blocks
    stay as they are, as under autocast.
    """
    for block in module.modules():
        if isinstance(block, Block):
            block.attn.to(torch.bfloat16)
            block.mlp.to(torch.bfloat16)


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Width inside the MLP; rounded, because ratios such as 48/11 are not exact in binary."""
    return round(width * mlp_ratio)


def check_sizes(name: str, width: int, num_heads: int, **sizes: int | float) -> None:
    """Refuse sizes that cannot make a transformer.

    Raises:
        ConfigError: a size is not positive, or the heads do not cut the width into equal even parts.
    """
    for size_name, size in {"width": width, "num_heads": num_heads, **sizes}.items():
        # Sizes may come from a file: one that builds a million blocks must fail before the first.
        largest = MAX_REPEATS if size_name in ("depth", "num_mask_tokens") else MAX_SIZE
        if not 0 < size <= largest:
            raise ConfigError(f"{name}.{size_name} is out of range", expected=f"1 to {largest}", found=str(size))
    if width % num_heads or width // num_heads % 2:
        raise ConfigError(
            f"{name}: num_heads does not fit the width",
            expected="heads of equal, even width",
            found=f"width {width}, num_heads {num_heads}",
        )


def init_linear_and_norm(module: nn.Module) -> None:
    """V-JEPA 2's initial weights for one sub-module; use with `Module.apply`."""
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # shapes without memory: weights will be loaded, there is nothing to fill
    if isinstance(module, nn.Linear | nn.Conv3d | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def rescale_residuals(blocks: Iterable[nn.Module]) -> None:
    """Divide what each block adds to its input by √(2·number of the block), as V-JEPA 2 does at the start."""
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2.0 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2.0 * number))
