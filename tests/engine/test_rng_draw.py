"""Drawing from probabilities: in blocks, the whole distribution function is inverted."""

from __future__ import annotations

import numpy as np

from fastslow.engine.sampling.rng import BLOCK, Purpose, draw, stream
from fastslow.engine.types import Floats


def random_probs(seed: int, vocab: int) -> Floats:
    p_V = np.exp(1.5 * np.random.default_rng(seed).normal(size=vocab))
    p_V /= p_V.sum()
    return p_V.astype(np.float32)


def test_draw_in_blocks_inverts_the_whole_distribution() -> None:
    for vocab in (1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17):
        p_V = random_probs(4, vocab)
        p_V[vocab // 3 : vocab // 2] = 0.0
        p_V[vocab - vocab // 9 :] = 0.0
        cdf_V = np.cumsum(p_V, dtype=np.float64)
        draws, again = stream(1, 0, Purpose.ACCEPT), stream(1, 0, Purpose.ACCEPT)
        for _ in range(300):
            token = draw(p_V, draws)
            mark = again.random() * cdf_V[-1]
            assert p_V[token] > 0
            assert cdf_V[token] - p_V[token] - 1e-12 <= mark <= cdf_V[token] + 1e-12


def test_draw_does_not_depend_on_where_a_row_lies_in_memory() -> None:
    p_V = random_probs(5, 4 * BLOCK + 3)
    space = np.zeros(len(p_V) + 16, dtype=np.float32)
    for shift in range(16):
        space[shift : shift + len(p_V)] = p_V
        moved_V = space[shift : shift + len(p_V)]
        one, other = (
            np.add.reduceat(x, np.arange(0, len(x), BLOCK), dtype=float) for x in (p_V, moved_V)
        )
        assert np.array_equal(one, other)
        assert draw(p_V, stream(shift, 0, Purpose.ACCEPT)) == draw(
            moved_V, stream(shift, 0, Purpose.ACCEPT)
        )
