"""Edit distance between the sequence of actions that follows and sampled guesses of it (Ego4D's ED@Z).

In: logits [S, Z, C] of the next Z actions of S segments, true classes [S, Z]. Out: fractions 0..1, lower is better. As
in Ego4D's long-term anticipation: I sequences are sampled, the distance is that of the best of them, over Z. It is the
Damerau-Levenshtein distance with adjacent swaps (optimal string alignment): a deletion, an insertion, another action or
a swap of two neighbours costs 1.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hwm.errors import DataError

NUM_SEQUENCES = 5
"""Guesses that Ego4D's long-term anticipation allows."""


def sample_sequences(
    logits_SZC: Float[Tensor, "s z c"], generator: torch.Generator, num_sequences: int = NUM_SEQUENCES
) -> Int[Tensor, "s i z"]:
    """I sequences of classes, each position drawn from its softmax on its own; a function of the generator's seed."""
    probabilities = logits_SZC.float().softmax(dim=-1).flatten(0, 1)
    drawn = torch.multinomial(probabilities, num_sequences, replacement=True, generator=generator)
    return drawn.unflatten(0, logits_SZC.shape[:2]).transpose(1, 2)


def edit_distance(guesses_SIZ: Int[Tensor, "s i z"], true_SZ: Int[Tensor, "s z"]) -> float:
    """Mean over segments of the distance of the best guess, over Z.

    Args:
        guesses_SIZ: I sequences a segment.
        true_SZ: what followed; a class below 0 (not known in training) is matched by no guess.

    Raises:
        DataError: there is nothing to score.
    """
    if guesses_SIZ.numel() == 0:
        raise DataError("there are no sequences to score", found=f"guesses {list(guesses_SIZ.shape)}")
    return (edit_distances(guesses_SIZ, true_SZ).amin(dim=1).double().mean() / true_SZ.shape[1]).item()


def edit_distances(guesses_SIZ: Int[Tensor, "s i z"], true_SZ: Int[Tensor, "s z"]) -> Int[Tensor, "s i"]:
    """The distance 0..Z of each guess, by dynamic programming over prefixes, all segments at once."""
    length = true_SZ.shape[1]
    zero_SI = torch.zeros(guesses_SIZ.shape[:2], dtype=torch.int64)
    differs = guesses_SIZ[:, :, :, None] != true_SZ[:, None, None, :]
    # last[b]: from the first a - 1 actions of the guess to the first b of the truth; before: from the first a - 2.
    before, last = [zero_SI] * (length + 1), [zero_SI + b for b in range(length + 1)]
    for a in range(1, length + 1):
        row = [zero_SI + a]
        for b in range(1, length + 1):
            best = torch.minimum(last[b], row[b - 1]) + 1
            best = torch.minimum(best, last[b - 1] + differs[:, :, a - 1, b - 1])
            if a > 1 and b > 1:
                is_swap = ~differs[:, :, a - 1, b - 2] & ~differs[:, :, a - 2, b - 1]
                best = torch.where(is_swap, torch.minimum(best, before[b - 2] + 1), best)
            row.append(best)
        before, last = last, row
    return last[length]
