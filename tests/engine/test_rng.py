"""Randomness by address."""

from __future__ import annotations

import numpy as np

from fastslow.engine.sampling.rng import Purpose, draw, sibling_seed, stream


def test_a_place_has_its_own_stream_and_always_the_same() -> None:
    places = [
        (seed, position, purpose)
        for seed in (0, 1, 2**63 - 1)
        for position in (0, 1, 100_000)
        for purpose in Purpose
    ]
    draws = [tuple(stream(*place).random(3)) for place in places]
    assert len(set(draws)) == len(places)
    assert draws == [tuple(stream(*place).random(3)) for place in places]


def test_a_stream_does_not_run_into_that_of_the_next_position() -> None:
    long = stream(5, 0, Purpose.ACCEPT).random(20_000)
    assert stream(5, 1, Purpose.ACCEPT).random() not in long


def test_siblings_have_seeds_of_their_own() -> None:
    seeds = [sibling_seed(seed, i) for seed in (0, 1, 2**63 - 1) for i in range(128)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sibling_seed(42, 0) == 42


class Fixed:
    """A generator that always says the same."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value


def test_draw_inverts_the_distribution_and_never_takes_what_has_no_mass() -> None:
    p_V = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=np.float32)
    last = float(np.nextafter(1.0, 0.0))
    for value, token in ((0.0, 1), (0.24, 1), (0.25, 3), (0.74, 3), (0.75, 4), (last, 4), (1.0, 4)):
        assert draw(p_V, Fixed(value)) == token  # type: ignore[arg-type]


def test_draw_has_the_given_probabilities() -> None:
    p_V = np.array([0.1, 0.0, 0.6, 0.3], dtype=np.float32)
    counts = np.zeros(4)
    for position in range(4000):
        counts[draw(p_V, stream(3, position, Purpose.ACCEPT))] += 1
    assert counts[1] == 0
    chi2 = sum((c - 4000 * p) ** 2 / (4000 * p) for c, p in zip(counts, p_V) if p)
    assert chi2 < 13.8  # 2 degrees of freedom, 1 in 1,000
