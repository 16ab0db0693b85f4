"""Keys and values of the steps so far, grown without copying the past at every step.

Appending works as on a growable array: a buffer has room for more than it holds, and a view of its first tokens is
handed out. Whoever appends to the end of what is filled writes into the room behind it, which no earlier view covers;
whoever appends to an earlier place gets a buffer of its own. So a view never changes, and a cache serves many futures.
With gradients on, tensors are joined instead, because autograd must keep each state.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass
class Buffer:
    """Storage [B, M, capacity, A] of which the first `filled` tokens are taken."""

    storage: Tensor
    filled: int


class Kept(NamedTuple):
    """Tokens [B, M, S, A] so far, and the buffer that they lie in; None where they lie alone."""

    tokens: Tensor
    buffer: Buffer | None = None

    def first(self, length: int) -> "Kept":
        """The first `length` tokens."""
        return Kept(self.tokens[:, :, :length], self.buffer)

    def append(self, new_BMLA: Tensor) -> "Kept":
        """These tokens followed by new ones; `self` keeps its value."""
        if torch.is_grad_enabled():
            return Kept(torch.cat((self.tokens, new_BMLA), dim=2))
        before = self.tokens.shape[2]
        after = before + new_BMLA.shape[2]
        buffer = self.buffer
        if buffer is None or not _has_room(buffer, before, after):
            # Twice the need: over a long roll-out each token is copied about once.
            storage = new_BMLA.new_empty(*new_BMLA.shape[:2], 2 * after, new_BMLA.shape[3])
            storage[:, :, :before] = self.tokens
            buffer = Buffer(storage, before)
        buffer.storage[:, :, before:after] = new_BMLA
        buffer.filled = after
        return Kept(buffer.storage[:, :, :after], buffer)


def _has_room(buffer: Buffer, before: int, after: int) -> bool:
    """Whether `before` is the end of the buffer, which may be written to in this mode and is large enough."""
    writable = buffer.storage.is_inference() == torch.is_inference_mode_enabled()
    return writable and buffer.filled == before and buffer.storage.shape[2] >= after
