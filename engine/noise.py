"""Randomness by address: a draw depends on who asks and where, never on what runs beside it."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from fastslow.engine.types import Floats


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


def draw(p_V: Floats, draws: np.random.Generator) -> int:
    """One token from a law, by its inverse distribution function; never one of probability 0."""
    cdf_V = np.cumsum(p_V, dtype=np.float64)
    place = int(np.searchsorted(cdf_V, draws.random() * cdf_V[-1], side="right"))
    return place if place < len(p_V) else int(np.flatnonzero(p_V)[-1])
