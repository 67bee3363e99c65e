"""The router before simulated replicas: what quick requests wait beside deep ones, and what caches find."""

import numpy as np
import pytest
from simulated_replicas import Asked, beginnings, make_trace, simulate

from fastslow.serve.engines.routing.settings import RoutingSettings

OURS = RoutingSettings(seed=0)


def waits(trace: list[Asked], deep: bool, share: float) -> float:
    """Seconds to the first token that this share of the quick or the deep ones stays below."""
    return float(np.quantile([one.first for one in trace if one.routed.deep is deep], share))


@pytest.mark.parametrize("replicas", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_quick_ones_hardly_feel_a_flood_of_deep_ones(replicas: int) -> None:
    alone, ours, shared = (make_trace(rate * replicas, think, 100) for rate, think in ((1.4, 0), (2, 0.3), (2, 0.3)))
    simulate(alone, replicas, OURS)
    simulate(ours, replicas, OURS)
    simulate(shared, replicas, RoutingSettings(seed=0, reserved_seconds=-1.0))
    usual = waits(alone, False, 0.95)
    assert waits(ours, False, 0.95) <= 1.5 * usual < 8 * usual < waits(shared, False, 0.95)
    assert waits(ours, True, 0.5) <= 3 * waits(shared, True, 0.5), "they have the other replicas"


@pytest.mark.parametrize("replicas", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_nine_tenths_of_the_prefixes_that_one_cache_would_find(replicas: int) -> None:
    trace = make_trace(replicas, 0.1, 400)
    simulate(trace, replicas, OURS)
    seen: set[tuple[str, ...]] = set()
    possible = 0
    for one in trace:
        possible += sum(len(text[-1]) // 4 for text in beginnings(one.pieces) if text in seen)
        seen.update(beginnings(one.pieces))
    every = sum(one.routed.prompt_tokens for one in trace)
    assert sum(one.cached for one in trace) >= 0.9 * possible > 0.3 * every
