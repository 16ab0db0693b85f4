"""Multi-block masks of the masked-latent objective: which patches of a clip are hidden.

Blocks are rectangles on the patch grid that hide the same patches at every step (tubes through the whole clip), as in
V-JEPA 2's pre-training. All clips of a batch keep the same number of patches, so that they stack.
"""

from typing import NamedTuple

import numpy as np

from hwm.config import MaskConfig


class Masks(NamedTuple):
    """Flat patch ids of a batch: seen by the encoder, and hidden from it."""

    keep_BL: np.ndarray
    hidden_BM: np.ndarray


def hidden_blocks(rows: int, cols: int, config: MaskConfig, rng: np.random.Generator) -> np.ndarray:
    """Union of random rectangles on the grid, bool [rows, cols], true where hidden; never the whole grid."""
    hidden = np.zeros((rows, cols), dtype=bool)
    for _ in range(config.num_blocks):
        area = rows * cols * rng.uniform(*config.scale)
        shape = np.exp(rng.uniform(*np.log(config.aspect)))
        height = int(np.clip(round(np.sqrt(area / shape)), 1, rows))
        width = int(np.clip(round(np.sqrt(area * shape)), 1, cols))
        top, left = rng.integers(0, rows - height + 1), rng.integers(0, cols - width + 1)
        hidden[top : top + height, left : left + width] = True
    if hidden.all():
        hidden[rng.integers(rows), rng.integers(cols)] = False
    return hidden


def draw_masks(
    batch: int, num_steps: int, grid: tuple[int, int], config: MaskConfig, rng: np.random.Generator
) -> Masks:
    """Masks of a batch of clips of `num_steps` tubelets.

    Clips that keep more patches than the one that keeps fewest lose random ones, so that all rows have equal length.
    """
    rows, cols = grid
    seen = [~hidden_blocks(rows, cols, config, rng).ravel() for _ in range(batch)]
    num_kept = min(int(mask.sum()) for mask in seen)
    keep = np.stack([np.sort(rng.permutation(np.flatnonzero(mask))[:num_kept]) for mask in seen])
    hidden = np.stack([np.setdiff1d(np.arange(rows * cols), row) for row in keep])
    offsets = np.arange(num_steps) * rows * cols
    through_time = tuple(
        (offsets[None, :, None] + ids[:, None, :]).reshape(batch, -1).astype(np.int64) for ids in (keep, hidden)
    )
    return Masks(*through_time)
