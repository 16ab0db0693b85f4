"""How tokens are stored: float16, bfloat16, or int8 with one scale a token; they come back as float32.

    tokens [S, N, D] + dtype -> named tensors as stored -> tokens [S, N, D] float32

Gaze weights are few and small beside the tokens, and are float16 whatever the tokens are. The relative errors of each
precision are in docs/cache.md.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hwm.config import TokenDtype

_SCALE = ".scale"
_LEVELS = 127
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}


class TokenSizes(NamedTuple):
    """Sizes of one step's tokens."""

    num_patches: int
    """N."""
    width: int
    """D."""
    scene_width: int | None
    """G; None without a Gazelle."""


def pack(name: str, tokens_SND: Tensor, dtype: TokenDtype) -> dict[str, Tensor]:
    """Tokens as they are stored, under their name; with int8 also `<name>.scale` [S, N]."""
    if dtype != "int8":
        return {name: tokens_SND.to(_DTYPES[dtype])}
    tokens_SND = tokens_SND.float()
    scale_SN = tokens_SND.abs().amax(dim=-1) / _LEVELS
    levels_SND = (tokens_SND / scale_SN.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round()
    return {name: levels_SND.to(torch.int8), name + _SCALE: scale_SN}


def unpack(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """The tokens [S, N, D] float32 of what `pack` made."""
    tokens_SND = stored[name].float()
    scale_SN = stored.get(name + _SCALE)
    return tokens_SND if scale_SN is None else tokens_SND.mul_(scale_SN[..., None])


def names_of(part: str, dtype: TokenDtype) -> tuple[str, ...]:
    """Names of the tensors of a part's file."""
    beside: Sequence[str] = ("times",) if part == "z" else ("gaze",)
    return (part, *([part + _SCALE] if dtype == "int8" else []), *beside)


def bytes_a_step(sizes: TokenSizes, dtype: TokenDtype, parts: Sequence[str]) -> int:
    """Bytes of one step in the files of some parts, headers (about a kilobyte a file) not counted."""
    token_bytes, scale_bytes = (1, 4) if dtype == "int8" else (2, 0)
    total = 0
    for part in parts:
        width = sizes.width if part == "z" else sizes.scene_width
        assert width is not None, "scene tokens without a Gazelle"
        beside = 8 if part == "z" else 2 * sizes.num_patches
        total += sizes.num_patches * (width * token_bytes + scale_bytes) + beside
    return total
