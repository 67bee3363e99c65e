"""Random numbers by place: a draw depends on seed, purpose and position, not on the rest of the batch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from fastslow.engine.types import Floats

BLOCK = 1024  # tokens that `draw` sums in one go


class Purpose(IntEnum):
    """Drafting and acceptance never share a stream."""

    ACCEPT = 1
    DRAFT = 2


def stream(seed: int, position: int, purpose: Purpose) -> np.random.Generator:
    """The uniform stream of one place in one request's text.

    Counter-based (Philox 4x64; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011):
    `seed` and `purpose` are the key, `position` (tokens before this one) the counter's high word.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, position, 0]))


def sibling_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a prompt (n > 1); sample 0 keeps the seed itself."""
    if index == 0:
        return seed
    words = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def successor_seed(seed: int) -> int:
    """The seed of an answer that begins again: fresh numbers. The old ones made the first answer such
    that it was dropped, so with them the second one would not have its mode's probabilities."""
    words = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def draw(p_V: Floats, draws: np.random.Generator) -> int:
    """Draw a token, by the inverse distribution function and one uniform number; never one of probability 0.

    The function is summed in float64: in float32 a small probability far down a large vocabulary would
    vanish. It is summed in blocks first: only one block is needed token by token.
    """
    upto = np.cumsum(np.add.reduceat(p_V, np.arange(0, len(p_V), BLOCK), dtype=np.float64))
    mark = draws.random() * upto[-1]
    block = int(np.searchsorted(upto, mark, side="right"))
    if block == len(upto):
        return int(np.flatnonzero(p_V)[-1])
    inside = p_V[block * BLOCK : (block + 1) * BLOCK]
    cdf = np.cumsum(inside, dtype=np.float64)
    if block:
        cdf += upto[block - 1]
    place = int(np.searchsorted(cdf, mark, side="right"))
    if place == len(cdf):  # the two ways to sum a block round differently
        place = int(np.flatnonzero(inside)[-1])
    return block * BLOCK + place
