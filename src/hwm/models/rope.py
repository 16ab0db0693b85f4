"""Three-axis rotary position encoding of V-JEPA 2 (time, row, column), in its two forms.

Positions [L, 3] → a `RopeTable` of cosines and sines [L, A] → queries and keys [B, M, L, A] turned by it.
Source: `RoPEAttention` of facebookresearch/vjepa2. A head of width A is cut into three equal even parts for time, row
and column, in this order; what is left over at its end is not turned. Which form it is belongs to the weights.

The quirk that the weights of V-JEPA 2 were trained with: channels are paired as neighbours (2i, 2i+1), but the angles
of one part are laid out as [f0..fk, f0..fk] instead of [f0, f0, f1, f1, ..]. The two channels of a pair therefore turn
by two different angles, which is not a rotation. It is kept on purpose: the weights know nothing else. V-JEPA 2.1
turns each pair by one angle, and its encoder stretches rows and columns to those of its pre-training grid.
"""

from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx

NUM_AXES = 3
FREQUENCY_BASE = 10_000.0
TABLES_KEPT = 4
ROWS_AT_ONCE = 2048
"""Tokens × heads turned at once on a CPU without gradients: 512 KB of float32 for heads of 64."""


class RopeForm(NamedTuple):
    """What a set of weights was trained with.

    Attributes:
        tiled: angles of one part laid out as [f0..fk, f0..fk] (V-JEPA 2); false: each angle twice in a row (2.1).
        reference_side: rows and columns of any grid are stretched to span those of a square grid of this side (2.1's
            encoder: 16); None takes the indices as they are.
    """

    tiled: bool
    reference_side: int | None = None


TILED = RopeForm(tiled=True)
INTERLEAVED = RopeForm(tiled=False)
STRETCHED = RopeForm(tiled=False, reference_side=16)


class RopeTable(NamedTuple):
    """Cosines and sines for each token and head channel, [L, A] or, where clips differ, [B, L, A]."""

    cos: Tensor
    sin: Tensor

    def rows(self, ids_BL: Int[Tensor, "b l"]) -> "RopeTable":
        """The table [B, L, A] of the tokens `ids_BL` out of a table [all tokens, A]."""
        return RopeTable(self.cos[ids_BL], self.sin[ids_BL])


def axis_positions(
    num_steps: int, height: int, width: int, first_step: int = 0, device: torch.device | None = None
) -> Int[Tensor, "l 3"]:
    """Positions (t, row, column) of the tokens of `num_steps` steps on a `height` × `width` grid, columns fastest."""
    steps = torch.arange(first_step, first_step + num_steps, device=device)
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    return torch.cartesian_prod(steps, rows, columns)


def split_ids(ids: Int[Tensor, "*shape"], grid: tuple[int, int]) -> Int[Tensor, "*shape 3"]:
    """Positions (t, row, column) of flat token ids on a (H, W) grid: id = (t·H + row)·W + column."""
    height, width = grid
    return torch.stack((ids // (height * width), ids // width % height, ids % width), dim=-1)


def stretched(
    positions: Int[Tensor, "*shape 3"], grid: tuple[int, int], form: RopeForm, dtype: torch.dtype
) -> Float[Tensor, "*shape 3"]:
    """Positions as the weights know them: rows and columns brought to the span of the form's reference grid."""
    if form.reference_side is None:
        return positions.to(dtype)
    span = form.reference_side - 1
    last = torch.tensor([1, *(max(side - 1, 1) for side in grid)], device=positions.device, dtype=dtype)
    scale = torch.tensor([1, span, span], device=positions.device, dtype=dtype)
    return positions.to(dtype) * scale / last


def rope_table(positions: Float[Tensor, "*shape 3"], head_width: int, form: RopeForm) -> RopeTable:
    """The table [*shape, A] for tokens at `positions`; left-over channels get cosine 1 and sine 0 (not turned)."""
    part = 2 * (head_width // NUM_AXES // 2)
    exponents = torch.arange(part // 2, device=positions.device, dtype=positions.dtype) / (part / 2)
    angles = positions.unsqueeze(-1) * FREQUENCY_BASE**-exponents
    twice = torch.cat((angles, angles), dim=-1) if form.tiled else angles.repeat_interleave(2, dim=-1)
    angles_A = torch.nn.functional.pad(twice.flatten(-2), (0, head_width - NUM_AXES * part))
    return RopeTable(angles_A.cos(), angles_A.sin())


def rotate(x_BMLA: Float[Tensor, "b m l a"], table: RopeTable) -> Float[Tensor, "b m l a"]:
    """Turn queries or keys by `table` (the same for all heads); the result keeps the dtype of `x_BMLA`.

    Four passes over memory: the neighbours swapped, the two products, their sum.
    """
    cos, sin = table.cos.unsqueeze(-3), _signed(table.sin).unsqueeze(-3)
    with_gradients, in_type = torch.is_grad_enabled(), x_BMLA.dtype == cos.dtype
    if x_BMLA.device.type != "cpu" or (with_gradients and (not in_type or torch.compiler.is_compiling())):
        return torch.addcmul(x_BMLA * cos, _neighbours(x_BMLA), sin).to(x_BMLA.dtype)
    if with_gradients:
        turned_BMLA = _Turn.apply(x_BMLA, cos, sin)
        assert isinstance(turned_BMLA, Tensor)
        return turned_BMLA
    return _turn(x_BMLA, cos.to(x_BMLA.dtype), sin.to(x_BMLA.dtype))


class _Turn(torch.autograd.Function):
    """`_turn` with a gradient, which is turned in the same way by the transposed table."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BMLA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keeps the table alone."""
        ctx.save_for_backward(cos, sin)
        return _turn(x_BMLA, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """What a channel gave to its neighbour comes back from there, with the neighbour's sine."""
        (grad_BMLA,), (cos, sin) = grad_outputs, ctx.saved_tensors
        return _turn(grad_BMLA, cos, _neighbours(sin)), None, None


def _turn(x_BMLA: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x · cos + neighbours(x) · sin` on a CPU, everything in one type.

    A few heads of a clip, or a few short clips, at a time, so that what lies between the passes stays in the cache; and
    turned where they are copied to, since heads cut out of a fused projection lie in pieces, which each pass would walk
    one by one.
    """
    num_clips, num_heads, length, _ = x_BMLA.shape
    heads = max(1, ROWS_AT_ONCE // length)
    clips = max(1, heads // num_heads)
    out_BMLA = torch.empty(x_BMLA.shape, dtype=x_BMLA.dtype)
    for clip, head in product(range(0, num_clips, clips), range(0, num_heads, heads)):
        some = slice(clip, clip + clips), slice(head, head + heads)
        cos_some, sin_some = (part if part.ndim == 3 else part[some[0]] for part in (cos, sin))
        some_BMLA = out_BMLA[some]
        some_BMLA.copy_(x_BMLA[some])
        neighbours_BMLA = torch.empty_like(some_BMLA)  # written channel by channel: twice as fast as `_neighbours`
        neighbours_BMLA[..., 0::2], neighbours_BMLA[..., 1::2] = some_BMLA[..., 1::2], some_BMLA[..., 0::2]
        some_BMLA.mul_(cos_some).addcmul_(neighbours_BMLA, sin_some)
    return out_BMLA


def _neighbours(x: Tensor) -> Tensor:
    """Each channel's neighbour in its place: 2i + 1 at 2i, and 2i at 2i + 1."""
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def _signed(sin: Tensor) -> Tensor:
    """Sines with the sign that the neighbour of each channel takes them with: minus for even channels."""
    return torch.stack((-sin[..., 0::2], sin[..., 1::2]), dim=-1).flatten(-2)


class RopeTables:
    """Makes the table of a grid once and keeps it, so that blocks share it. No module: nothing enters a state dict."""

    def __init__(self, head_width: int, form: RopeForm = TILED) -> None:
        self.head_width, self.form = head_width, form
        self._kept: dict[tuple[tuple[int, int], torch.device, torch.dtype], RopeTable] = {}

    def get(self, first_step: int, num_steps: int, grid: tuple[int, int], like: Tensor) -> RopeTable:
        """The table [T·H·W, A] of steps `first_step` … on the device of `like`, in at least 32-bit floats."""
        key = (grid, like.device, torch.promote_types(like.dtype, torch.float32))
        num_patches, last_step = grid[0] * grid[1], first_step + num_steps
        table = self._kept.get(key)
        if table is None or table.cos.shape[0] < last_step * num_patches:
            # Twice the need, so that a rollout that asks one step more each time does not make a table each time.
            # Never inference tensors: a table made while encoding must also serve a training step.
            with torch.inference_mode(False), torch.no_grad():
                positions = axis_positions(2 * last_step, *grid, device=like.device)
                table = rope_table(stretched(positions, grid, self.form, key[2]), self.head_width, self.form)
            self._kept[key] = table
            while len(self._kept) > TABLES_KEPT:
                del self._kept[next(iter(self._kept))]
        wanted = slice(first_step * num_patches, last_step * num_patches)
        return RopeTable(table.cos[wanted], table.sin[wanted])
