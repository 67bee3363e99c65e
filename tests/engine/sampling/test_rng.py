"""Randomness by address."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from accept_tools import table

from fastslow.engine.sampling.rng import BLOCK, Purpose, draw, sibling_seed, stream


def test_a_place_has_its_own_stream_apart_from_the_next_and_its_siblings() -> None:
    places = [
        (seed, position, purpose)
        for seed in (0, 1, 2**63 - 1)
        for position in (0, 1, 100_000)
        for purpose in Purpose.__members__.values()
    ]
    draws = [tuple(stream(*place).random(3)) for place in places]
    assert len(set(draws)) == len(places) and draws == [tuple(stream(*place).random(3)) for place in places]
    long = stream(5, 0, Purpose.ACCEPT).random(20_000)
    assert stream(5, 1, Purpose.ACCEPT).random() not in long
    seeds = [sibling_seed(seed, i) for seed in (0, 1, 2**63 - 1) for i in range(128)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert sibling_seed(42, 0) == 42


def test_draw_inverts_the_distribution_whole_and_in_blocks() -> None:
    p_V = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=np.float32)
    last = float(np.nextafter(1.0, 0.0))
    for value, token in ((0.0, 1), (0.24, 1), (0.25, 3), (0.74, 3), (0.75, 4), (last, 4), (1.0, 4)):
        fixed: Any = SimpleNamespace(random=lambda value=value: value)
        assert draw(p_V, fixed) == token
    for vocab in (1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17):
        p_V = table(4, vocab=vocab)(()).copy()
        p_V[vocab // 3 : vocab // 2] = 0.0
        p_V[vocab - vocab // 9 :] = 0.0
        cdf_V = np.cumsum(p_V, dtype=np.float64)
        draws, again = stream(1, 0, Purpose.ACCEPT), stream(1, 0, Purpose.ACCEPT)
        for _ in range(300):
            token = draw(p_V, draws)
            mark = again.random() * cdf_V[-1]
            assert p_V[token] > 0 and cdf_V[token] - p_V[token] - 1e-12 <= mark <= cdf_V[token] + 1e-12


def test_draw_does_not_depend_on_where_a_row_lies_in_memory() -> None:
    p_V = table(5, vocab=4 * BLOCK + 3)(())
    space = np.zeros(len(p_V) + 16, dtype=np.float32)
    for shift in range(16):
        space[shift : shift + len(p_V)] = p_V
        moved_V = space[shift : shift + len(p_V)]
        places = np.arange(0, len(p_V), BLOCK)
        one, other = (np.add.reduceat(x, places, dtype=float) for x in (p_V, moved_V))
        assert np.array_equal(one, other)
        drawn = [draw(x, stream(shift, 0, Purpose.ACCEPT)) for x in (p_V, moved_V)]
        assert drawn[0] == drawn[1]
