"""A block-causal transformer over latent steps: the patches of step t see all patches of steps up to t.

Tokens [B, T, N, D] (+ condition [B, T, N, E]) → predictions [B, T, N, D]; row t predicts step t + 1.
Source: `VisionTransformerPredictorAC` of facebookresearch/vjepa2 without its action tokens: embed, add the condition,
RoPE blocks, norm, project back. `forward` and `step` are one computation; `step` keeps keys and values.

Attention never touches later steps (`block_causal`): no mask of L × L, half the arithmetic, and causality by
construction, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hwm.errors import ConfigError
from hwm.models.block_causal import Seen, attend_by_step, blocks_of
from hwm.models.kv_cache import Kept
from hwm.models.layers import Block, check_sizes, hidden_width, init_linear_and_norm, rescale_residuals
from hwm.models.rope import RopeTable, RopeTables

Attend = Callable[[Tensor, Tensor, Tensor, Seen], Tensor]
"""Queries, keys, values and what may be seen → what each query sees."""


@dataclass(frozen=True)
class CausalStackSpec:
    """Sizes of a causal stack.

    Attributes:
        in_width: width D of the latents that go in and come out.
        width: width E inside.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over E.
    """

    in_width: int
    width: int = 384
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        sizes = {"in_width": self.in_width, "depth": self.depth, "mlp_ratio": self.mlp_ratio}
        check_sizes("predictor", self.width, self.num_heads, **sizes)


class KVCache(NamedTuple):
    """What `step` remembers of the steps so far. It never changes: a step returns a new one (see `kv_cache`).

    Attributes:
        keys: for each block [B, M, T·N, A], already turned by their positions.
        values: for each block [B, M, T·N, A].
        num_steps: steps T seen so far.
        valid_BT: which of them may be attended to; None where all may.
    """

    keys: tuple[Kept, ...]
    values: tuple[Kept, ...]
    num_steps: int
    valid_BT: Tensor | None

    def first(self, num_steps: int) -> "KVCache":
        """The cache as it was after the first `num_steps` steps: exact, because no step depends on a later one.

        Raises:
            ValueError: the cache does not hold so many steps, or none are asked for.
        """
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(f"the cache holds {self.num_steps} steps, asked for the first {num_steps}")
        length = self.keys[0].tokens.shape[2] // self.num_steps * num_steps
        keys, values = (tuple(kept.first(length) for kept in each) for each in (self.keys, self.values))
        return KVCache(keys, values, num_steps, None if self.valid_BT is None else self.valid_BT[:, :num_steps])


class CausalStack(nn.Module):
    """Embed → block-causal RoPE blocks → norm → project back.

    Attributes:
        recompute: activation checkpointing: in training, keep only what goes into a block (and its keys and values)
            and compute the rest again on the way back. Less memory for about a third more time; the same gradients.
        attend_by_block: the compiled `block_causal.attend_by_block`, put here by `engine.compiling` on CUDA; several
            steps in half precision go through it. None: every step goes by itself.
    """

    def __init__(self, spec: CausalStackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
        self.attend_by_block: Attend | None = None
        hidden = hidden_width(spec.width, spec.mlp_ratio)
        self.predictor_embed = nn.Linear(spec.in_width, spec.width)
        self.predictor_blocks = nn.ModuleList(Block(spec.width, spec.num_heads, hidden) for _ in range(spec.depth))
        self.predictor_norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.predictor_proj = nn.Linear(spec.width, spec.in_width)
        self._rope = RopeTables(spec.width // spec.num_heads)
        self.apply(init_linear_and_norm)
        rescale_residuals(self.predictor_blocks)

    def forward(
        self,
        tokens_BTND: Float[Tensor, "b t n d"],
        condition_BTNE: Float[Tensor, "b t n e"] | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """Predict from all steps at once.

        Args:
            tokens_BTND: latents of the steps.
            condition_BTNE: added to the embedded latents.
            valid_BT: false for padded steps: valid steps never attend to them; a padded step sees itself and the
                valid steps before it, so that its (meaningless) output is finite.
            grid: (H, W) of the N patches; None takes a square.

        Returns:
            Row t: prediction for step t + 1, from steps up to t alone.

        Raises:
            ConfigError: the N patches are not an H × W grid.
        """
        return self.step(tokens_BTND, condition_BTNE, None, valid_BT, grid)[0]

    def step(
        self,
        tokens: Float[Tensor, "b n d"] | Float[Tensor, "b t n d"],
        condition: Float[Tensor, "b n e"] | Float[Tensor, "b t n e"] | None = None,
        cache: KVCache | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Float[Tensor, "b n d"] | Float[Tensor, "b t n d"], KVCache]:
        """Go on from `cache` by one step [B, N, D] or by several [B, T, N, D].

        Args:
            tokens: latents of the new steps.
            condition: added to the embedded latents, with the axes of `tokens`.
            cache: what the step before returned; None starts at step 0.
            valid_BT: as in `forward`, for the new steps (T = 1 for one step); None: all valid.
            grid: (H, W) of the N patches; None takes a square.

        Returns:
            Predictions with the axes of `tokens` (equal to `forward`'s rows), and the longer cache. Gradients flow
            through both.

        Raises:
            ConfigError: the N patches are not an H × W grid.
        """
        if tokens.ndim == 4:
            hidden_BTNE, cache = self.encode(tokens, condition, cache, valid_BT, grid)
            return self.predictor_proj(hidden_BTNE), cache
        condition_B1NE = condition.unsqueeze(1) if condition is not None else None
        hidden_B1NE, cache = self.encode(tokens.unsqueeze(1), condition_B1NE, cache, valid_BT, grid)
        return self.predictor_proj(hidden_B1NE.squeeze(1)), cache

    def encode(
        self,
        tokens_BTND: Float[Tensor, "b t n d"],
        condition_BTNE: Float[Tensor, "b t n e"] | None = None,
        cache: KVCache | None = None,
        valid_BT: Bool[Tensor, "b t"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Float[Tensor, "b t n e"], KVCache]:
        """What `step` computes before the last projection, for wrappers with several heads; arguments as there."""
        num_clips, num_steps, num_patches, _ = tokens_BTND.shape
        past = cache if cache is not None else KVCache((), (), 0, None)
        valid = _join_valid(past, valid_BT, num_clips, num_steps, tokens_BTND.device)
        rope = self._rope.get(past.num_steps, num_steps, _grid(num_patches, grid), self.predictor_embed.weight)
        x_BTNE = self.predictor_embed(tokens_BTND)
        if condition_BTNE is not None:
            x_BTNE = x_BTNE + condition_BTNE.to(x_BTNE.dtype)  # under autocast the stream is what it is without
        x_BLE = x_BTNE.flatten(1, 2)
        attend, seen = attend_by_step, Seen(num_patches, valid)
        if self.attend_by_block is not None and num_steps > 1 and not past.keys and _in_half(x_BLE):
            blocks = blocks_of(num_steps, num_patches, valid, x_BLE.device)
            attend = attend_by_step if blocks is None else self.attend_by_block
            seen = seen._replace(blocks=blocks)
        keys, values = [], []
        for index, block in enumerate(self.predictor_blocks):
            past_pair = (past.keys[index], past.values[index]) if past.keys else None
            x_BLE, key, value = self._advance(block, x_BLE, rope, past_pair, attend, seen)
            keys.append(key)
            values.append(value)
        hidden_BTNE = self.predictor_norm(x_BLE).unflatten(1, (num_steps, num_patches))
        return hidden_BTNE, KVCache(tuple(keys), tuple(values), past.num_steps + num_steps, valid)

    def _advance(
        self,
        block: nn.Module,
        x_BLE: Tensor,
        rope: RopeTable,
        past: tuple[Kept, Kept] | None,
        attend: Attend,
        seen: Seen,
    ) -> tuple[Tensor, Kept, Kept]:
        assert isinstance(block, Block)
        if self.recompute and torch.is_grad_enabled():
            advanced = checkpoint(_advance_block, block, x_BLE, rope, past, attend, seen, use_reentrant=False)
            assert isinstance(advanced, tuple)
            return advanced
        return _advance_block(block, x_BLE, rope, past, attend, seen)


def _advance_block(
    block: Block,
    x_BLE: Tensor,
    rope: RopeTable,
    past: tuple[Kept, Kept] | None,
    attend: Attend,
    seen: Seen,
) -> tuple[Tensor, Kept, Kept]:
    """One block over the new tokens; returns them with all keys and values so far."""
    query, key, value = block.enter(x_BLE, rope)
    keys, values = (Kept(key), Kept(value)) if past is None else (past[0].append(key), past[1].append(value))
    return block.leave(x_BLE, attend(query, keys.tokens, values.tokens, seen)), keys, values


def _join_valid(
    past: KVCache, valid_BT: Tensor | None, num_clips: int, num_steps: int, device: torch.device
) -> Tensor | None:
    """Validity of past and new steps together; None while nothing was ever padded."""
    if past.valid_BT is None and valid_BT is None:
        return None
    before = past.valid_BT
    if before is None:
        before = torch.ones(num_clips, past.num_steps, dtype=torch.bool, device=device)
    now = valid_BT if valid_BT is not None else torch.ones(num_clips, num_steps, dtype=torch.bool, device=device)
    return torch.cat((before, now), dim=1)


def _in_half(x: Tensor) -> bool:
    """Whether products of `x` are computed with 16 bits."""
    return x.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(x.device.type)


def _grid(num_patches: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    side = isqrt(num_patches)
    height, width = grid if grid is not None else (side, side)
    if height * width != num_patches:
        raise ConfigError(
            "the patches of a step do not fill their grid",
            expected=f"{height} × {width} = {height * width} patches",
            found=f"{num_patches} patches",
            fix="pass grid=(H, W) where the view is not square",
        )
    return height, width
