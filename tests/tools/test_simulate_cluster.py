"""Simulated clusters: every request ends once, and the real router decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.tools.simulate.cluster import SimulatedCluster, prompt_text
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.figures import by_mode, possible_hit_rate, simulated_times
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace
from fastslow.tools.simulate.trace import ALL, TracedRequest

CURVE = ModeSteps(rows=(1, 512), seconds=(0.02, 0.08))
COSTS = ReplicaCosts(modes={"fast": CURVE, "deep": CURVE}, pages=40_000, first_seconds=0.01)
RECIPE: dict[str, Any] = {"requests": 200, "rate": 8, "deep": 0.25, "deep_tokens": 200}
TRACE = make_trace(TraceRecipe(**RECIPE, bots=6, system_tokens=600, latency_ms=200))


@pytest.mark.parametrize("replicas", [1, 4])
def test_every_request_ends_once_and_the_same_each_time(replicas: int) -> None:
    result, again = (SimulatedCluster(TRACE, COSTS, replicas).run() for _ in range(2))
    assert Counter(a.request.id for a in result.answers) == Counter(r.id for r in TRACE)
    for answer in result.answers:
        assert answer.made == answer.request.answer_tokens
        assert answer.request.arrival < answer.first <= answer.end
    assert result.replica_seconds > replicas * (TRACE[-1].arrival - TRACE[0].arrival)
    assert 0 < result.busy_seconds < result.replica_seconds
    ends = [[(a.request.id, a.end) for a in one.answers] for one in (result, again)]
    assert ends[0] == ends[1]


def test_the_real_router_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the chooser ranks first is where requests go, and it hears of all that happens."""
    seen: Counter[str] = Counter()

    class Watched(ReplicaChooser):
        def rank(self, request: RoutedRequest) -> list[str]:
            return sorted(super().rank(request), reverse=True)  # always the same one

        def routed(self, request: RoutedRequest, id: str) -> None:
            seen[id] += 1
            super().routed(request, id)

        def report(self, id: str, report: object) -> None:
            seen["report"] += 1
            super().report(id, report)  # type: ignore[arg-type]

        def ended(self, request_id: str) -> None:
            seen["ended"] += 1
            super().ended(request_id)

    monkeypatch.setattr("fastslow.tools.simulate.cluster.ReplicaChooser", Watched)
    result = SimulatedCluster(TRACE, COSTS, 3).run()
    assert seen["replica-2"] == len(TRACE) and seen["ended"] >= len(TRACE)
    assert "replica-1" not in seen
    assert seen["report"] >= 2.5 * max(a.end for a in result.answers)


def test_prefixes_are_found() -> None:
    most = possible_hit_rate(TRACE, 16)
    several = by_mode(simulated_times(SimulatedCluster(TRACE, COSTS, 6).run()))
    assert 0.8 * most < (several[ALL].hit_rate or 0.0) <= most
    late = [r.model_copy(update={"arrival": 60.0 * n}) for n, r in enumerate(TRACE[:100])]
    one = by_mode(simulated_times(SimulatedCluster(late, COSTS, 1).run()))
    assert one[ALL].hit_rate == pytest.approx(possible_hit_rate(late, 16), rel=1e-9)


def test_text_for_the_router_is_shared_as_far_as_the_pieces_are() -> None:
    def asked(id: str, *pieces: tuple[str, int], tokens: int = 400) -> str:
        usual: dict[str, Any] = {"arrival": 0, "mode": "fast", "answer_tokens": 1}
        return prompt_text(TracedRequest(**usual, prompt_tokens=tokens, id=id, prefix=pieces))

    one, two = asked("1", ("system", 100), ("a", 50)), asked("2", ("system", 100), ("b", 50))
    shared = next(n for n, (a, b) in enumerate(zip(one, two)) if a != b)
    assert 400 <= shared < 410 and len(one) == 1600
    assert len(asked("3", tokens=100_000)) == 65_536
