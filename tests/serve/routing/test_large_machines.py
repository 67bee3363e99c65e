"""The defaults on large machines: simulated ones of 256 places, in whose steps one more answer hardly counts."""

from __future__ import annotations

from typing import Any

from test_simulate_files import on_a2

from fastslow.tools.plan.replica_costs import planned_costs
from fastslow.tools.simulate.cluster import SimulatedCluster
from fastslow.tools.simulate.figures import ModeFigures, by_mode, simulated_times
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace


def run(replicas: int, deep: float, deep_tokens: int) -> dict[str, ModeFigures]:
    """Figures by mode."""
    usual: dict[str, Any] = {"requests": 2000, "rate": 20, "bots": 40, "latency_ms": 200}
    trace = make_trace(TraceRecipe(**usual, deep=deep, deep_tokens=deep_tokens))
    return by_mode(
        simulated_times(SimulatedCluster(trace, planned_costs(on_a2(4)), replicas).run())
    )


def test_half_of_the_load_deep() -> None:
    found = run(6, 0.5, 1500)
    assert found["deep"].first[1] <= 0.16  # measured: 0.110
    assert (found["fast"].in_time or 0.0) >= 0.98


def test_prefixes_are_found_although_answers_run_there() -> None:
    assert (run(3, 0.15, 500)["all"].hit_rate or 0.0) >= 0.73  # measured: 0.759
