"""The router before simulated replicas: of 8 places whose steps each answer makes longer."""

from functools import partial
from typing import Any

import pytest

from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.tools.simulate import cluster
from fastslow.tools.simulate.cluster import SimulatedCluster
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.figures import ModeFigures, by_mode
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace

STEPS = ModeSteps(rows=(1, 8, 512), seconds=(0.05, 0.085, 0.085))
SMALL = ReplicaCosts(modes={"fast": STEPS, "deep": STEPS}, pages=20_000, max_running=8)


def run(costs: ReplicaCosts, replicas: int, recipe: TraceRecipe) -> dict[str, ModeFigures]:
    """Figures by mode."""
    return by_mode(SimulatedCluster(make_trace(recipe), costs, replicas).run())


def small(rate: float, deep: float, system_tokens: int = 100) -> TraceRecipe:
    usual: dict[str, Any] = {"requests": 600, "deep_tokens": 400, "answer_tokens": 10}
    usual |= {"bots": 6, "latency_ms": 1000}
    return TraceRecipe(rate=rate, deep=deep, system_tokens=system_tokens, **usual)


@pytest.mark.parametrize("replicas", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_quick_ones_hardly_feel_a_flood_of_deep_ones(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(SMALL, replicas, small(1.4 * replicas, deep=0))["fast"].first[1]
    flood = small(2 * replicas, deep=0.3)
    ours = run(SMALL, replicas, flood)
    monkeypatch.setattr(cluster, "RoutingSettings", partial(RoutingSettings, reserved_seconds=-1.0))
    shared = run(SMALL, replicas, flood)
    assert ours["fast"].first[1] <= 1.5 * alone < 8 * alone < shared["fast"].first[1]
    assert ours["deep"].first[0] <= 3 * shared["deep"].first[0], "they have the other replicas"


@pytest.mark.parametrize("replicas", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_nine_tenths_of_the_prefixes_that_one_cache_would_find(replicas: int) -> None:
    recipe = small(replicas, deep=0.1, system_tokens=400)
    quick = ModeSteps(rows=STEPS.rows, seconds=tuple(one / replicas for one in STEPS.seconds))
    as_large = ReplicaCosts(modes={"fast": quick, "deep": quick}, pages=20_000 * replicas, max_running=8 * replicas)
    possible = run(as_large, 1, recipe)["all"].hit_rate
    assert run(SMALL, replicas, recipe)["all"].hit_rate >= 0.9 * possible > 0.3
