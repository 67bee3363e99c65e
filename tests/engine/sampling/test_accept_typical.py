"""Typical acceptance: what is kept, and that bad limits are refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from fastslow.engine.sampling.accept.accept import accept
from fastslow.engine.sampling.accept.lossy import LossyTypical
from fastslow.engine.sampling.rng import Purpose, draw, stream
from fastslow.engine.types import Floats, OneHot, Tree

V = 5


def judge(
    rule: LossyTypical, tree: Tree, target_probs: Sequence[Floats | OneHot], seed: int
) -> tuple[tuple[int, ...], int]:
    result = accept([tree], [target_probs], lambda b, d: stream(seed, d, Purpose.ACCEPT), [rule])
    return tuple(result.accepted_nodes[0]), result.tokens[0][-1]


def test_typical_acceptance_asks_less_where_the_target_is_unsure() -> None:
    rule = LossyTypical(epsilon=0.3, delta=0.5)
    flat = np.full(V, 0.2, dtype=np.float32)  # exp(-entropy) is 0.2: the bar is 0.1
    sharp = np.array([0.78, 0.15, 0.05, 0.02, 0.0], dtype=np.float32)
    # the bar of `sharp` is min(0.3, 0.5 * exp(-0.706)) = 0.247
    for token, path in ((0, (0,)), (1, ()), (4, ())):
        assert judge(rule, Tree.chain([token]), [sharp, OneHot(0)], 0)[0] == path
    assert judge(rule, Tree.chain([4, 4, 1]), [flat, flat, sharp, flat], 0)[0] == (0, 1)
    always = LossyTypical(epsilon=0.1, delta=1.0)  # above epsilon the entropy does not matter
    assert judge(always, Tree.chain([1]), [sharp, OneHot(0)], 0)[0] == (0,)


def test_typical_acceptance_takes_the_deepest_then_the_likeliest() -> None:
    rule = LossyTypical()
    p_V = np.array([0.4, 0.3, 0.2, 0.1, 0.0], dtype=np.float32)
    bush = Tree([0, 1, 2, 4, 1, 0], [-1, -1, 1, 0, 0, 3])
    path, last = judge(rule, bush, [p_V] * 7, 3)
    assert path == (0, 4)  # 0.4 * 0.3 against 0.3 * 0.2; below token 4 nothing counts
    assert last == draw(p_V, stream(3, 2, Purpose.ACCEPT))


@pytest.mark.parametrize("field", ["epsilon", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, math.nan])
def test_typical_acceptance_refuses_bad_limits(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} must be above 0"):
        LossyTypical(**{field: value})
