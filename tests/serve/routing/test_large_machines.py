"""The defaults on large machines: simulated ones of 256 places, in whose steps one more answer hardly counts."""

from __future__ import annotations

from fastslow.tools.simulate.cluster import ClusterSettings, SimulatedCluster
from fastslow.tools.simulate.figures import ModeFigures, by_mode, simulated_times
from fastslow.tools.simulate.planned import planned_costs
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace

LARGE = planned_costs("openpangu-pro-moe-72b", "800i-a2", 4)


def run(replicas: int, recipe: TraceRecipe, **more: object) -> dict[str, ModeFigures]:
    """Figures by mode."""
    trace = make_trace(recipe)
    result = SimulatedCluster(trace, LARGE, ClusterSettings(replicas, **more)).run()  # type: ignore[arg-type]
    return dict(by_mode(simulated_times(result)))


def load(deep: float, deep_tokens: int) -> TraceRecipe:
    return TraceRecipe(
        requests=3000, rate=20, deep=deep, deep_tokens=deep_tokens, bots=40, latency_ms=200
    )


def test_half_of_the_load_deep() -> None:
    ours, two = (run(6, load(0.5, 1500), router=router) for router in ("fastslow", "pow2"))
    assert ours["deep"].first[1] <= 1.5 * two["deep"].first[1]
    assert (ours["fast"].in_time or 0.0) >= 0.98


def test_prefixes_are_found_although_answers_run_there() -> None:
    ours, two = (run(3, load(0.15, 500), router=router) for router in ("fastslow", "prefix"))
    assert (ours["all"].hit_rate or 0.0) >= (two["all"].hit_rate or 1.0) - 0.04
