"""Simulated clusters: every request ends once, the real router decides, replicas come, go and die."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.scaling import ScalingSettings
from fastslow.serve.engines.routing.settings import RoutingSettings
from fastslow.tools.simulate import cluster as cluster_module
from fastslow.tools.simulate.cluster import (
    ClusterResult,
    SimulatedCluster,
)
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.figures import figures, possible_hit_rate, simulated_times
from fastslow.tools.simulate.load import at_rate
from fastslow.tools.simulate.prompt_text import prompt_text
from fastslow.tools.simulate.report import charts, svg
from fastslow.tools.simulate.routers import ROUTERS, PowerOfTwo, PrefixOnly, read_routing, router
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.sweep import Sweep
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace
from fastslow.tools.simulate.trace import ALL, TracedRequest

CURVE = ModeSteps((1, 512), (0.02, 0.08))
COSTS = ReplicaCosts(
    {"fast": CURVE, "deep": CURVE}, pages=40_000, max_running=64, prompt_rows=512, start_seconds=5
)
RECIPE = TraceRecipe(
    requests=400,
    rate=8,
    deep=0.25,
    deep_tokens=400,
    bots=6,
    system_tokens=600,
    latency_ms=200,
    think_seconds=5,
)
TRACE = make_trace(RECIPE)


def simulate(replicas: int = 3, costs: ReplicaCosts = COSTS, **more: object) -> ClusterResult:
    return SimulatedCluster(TRACE, costs, ClusterSettings(replicas, **more)).run()  # type: ignore[arg-type]


def is_whole(result: ClusterResult) -> None:
    assert Counter(a.request.id for a in result.answers) == Counter(r.id for r in TRACE)
    for answer, end in zip(result.answers, result.ends, strict=True):
        assert answer.made == answer.request.answer_tokens
        assert answer.request.arrival < (answer.first or 0.0) <= end


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("replicas", [1, 2, 12])
def test_every_request_ends_once_and_the_same_each_time(name: str, replicas: int) -> None:
    result = simulate(replicas, router=name)
    is_whole(result)
    span = TRACE[-1].arrival - TRACE[0].arrival
    assert replicas * span < result.replica_seconds < (1 + 1e-9) * replicas * result.seconds
    again = simulate(replicas, router=name)
    assert [(a.request.id, end) for a, end in zip(result.answers, result.ends)] == [
        (a.request.id, end) for a, end in zip(again.answers, again.ends)
    ]


def test_the_real_router_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the chooser ranks first is where requests go, and it hears of all that happens."""
    seen: Counter[str] = Counter()
    last: dict[str, str] = {}

    class Watched(ReplicaChooser):
        def rank(self, request: RoutedRequest) -> list[str]:
            ranked = sorted(super().rank(request), reverse=True)  # always the same one
            last[request.id] = ranked[0]
            return ranked

        def routed(self, request: RoutedRequest, id: str) -> None:
            seen["routed"] += 1
            super().routed(request, id)

        def report(self, id: str, report: object) -> None:
            seen["report"] += 1
            super().report(id, report)  # type: ignore[arg-type]

        def ended(self, request_id: str) -> None:
            seen["ended"] += 1
            super().ended(request_id)

    monkeypatch.setattr("fastslow.tools.simulate.routers.ReplicaChooser", Watched)
    result = simulate(3)
    assert {a.replica for a in result.answers} == {"replica-2"} == set(last.values())
    assert seen["routed"] == len(TRACE) and seen["ended"] >= len(TRACE)
    assert seen["report"] >= 2.5 * result.seconds


def test_settings_reach_the_real_router() -> None:
    assert read_routing("reserved_share=64, few=2") == RoutingSettings(reserved_share=64.0, few=2)
    with pytest.raises(ValueError, match="reserved_shore.*did you mean.*reserved_share"):
        read_routing("reserved_shore=1")
    with pytest.raises(ValueError, match="few='x' must be a number"):
        read_routing("few=x")
    made = router("fastslow", lambda id: 0, lambda: 0.0, RoutingSettings(seed=1))
    assert type(made) is ReplicaChooser


def test_prefixes_are_found_as_routers_send_them() -> None:
    """The router that knows prefixes only finds most of what one cache would; power of two finds less."""
    most = possible_hit_rate(TRACE, 16)
    hits = {
        name: figures(name, 8, simulate(8, router=name), most).modes[ALL].hit_rate or 0.0
        for name in ROUTERS
    }
    assert hits["pow2"] < hits["prefix"] <= most
    assert hits["pow2"] < hits["fastslow"] <= most


def test_one_replica_hits_what_one_cache_can() -> None:
    late = [replace(r, arrival=5 * n) for n, r in enumerate(TRACE)]
    result = SimulatedCluster(late, COSTS, ClusterSettings(1)).run()
    cached = sum(a.cached or 0 for a in result.answers)
    prompts = sum(r.prompt_tokens for r in late)
    assert cached / prompts == pytest.approx(possible_hit_rate(late, 16), rel=1e-9)


def test_deaths_lose_nothing() -> None:
    result = simulate(3, mtbf_hours=0.005)
    is_whole(result)
    assert result.deaths > 2 and result.continued > 0
    assert sum(a.sent - 1 for a in result.answers) >= result.continued
    assert sum(result.ends) > sum(simulate(3).ends)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_single_replica_that_dies_is_waited_for(name: str) -> None:
    is_whole(simulate(1, router=name, mtbf_hours=0.01))


def test_replicas_follow_the_load() -> None:
    scaling = ScalingSettings(
        least=1, most=6, quick_queue_seconds=0.5, start_seconds=10, down_seconds=10
    )
    small = replace(COSTS, max_running=8, prompt_rows=256)
    grown = simulate(1, small, scaling=scaling)
    fixed = simulate(1, small)
    is_whole(grown)
    assert 2 <= grown.most_replicas <= 6
    assert len(grown.sizes) > 1 and grown.sizes[0][1] == 1
    waits = [max(t.first for t in simulated_times(r)) for r in (grown, fixed)]
    assert waits[0] < waits[1] / 2
    bounds = []
    for end in (TRACE[-1].arrival, TRACE[0].arrival + grown.seconds):
        sizes = [(time, n) for time, n in grown.sizes if time < end]
        changes = [time for time, _ in sizes[1:]] + [end]
        bounds.append(sum(n * (b - a) for (a, n), b in zip(sizes, changes, strict=True)))
    assert bounds[0] < grown.replica_seconds < bounds[1]


def test_text_for_routers_is_shared_as_far_as_the_pieces_are() -> None:
    def asked(id: str, *pieces: tuple[str, int], tokens: int = 400) -> str:
        return prompt_text(TracedRequest(0, "fast", tokens, 1, id=id, prefix=pieces))

    one, two = asked("1", ("system", 100), ("a", 50)), asked("2", ("system", 100), ("b", 50))
    shared = next(n for n, (a, b) in enumerate(zip(one, two)) if a != b)
    assert 400 <= shared < 410 and len(one) == 1600
    assert len(asked("3", tokens=100_000)) == 65_536


def test_power_of_two_takes_the_shorter_queue() -> None:
    lengths = {"a": 5, "b": 1, "c": 9}
    two = PowerOfTwo(lengths.__getitem__, Random(0))
    two.set_replicas(lengths)
    request = RoutedRequest("1", "fast", False, "x", 1, 1)
    taken = Counter(two.rank(request)[0] for _ in range(600))
    assert taken["c"] == 0 and taken["b"] == pytest.approx(400, abs=60)
    assert two.rank(replace(request, avoid=("a", "b")))[0] == "c"


def test_prefix_only_takes_the_longest_match_whatever_the_load() -> None:
    lengths = {"a": 50, "b": 0}
    known = PrefixOnly(lambda id: lengths[id], Random(0))
    known.set_replicas(lengths)
    long = RoutedRequest("1", "fast", False, "x" * 640, 160, 1)
    known.routed(long, "a")
    assert known.rank(replace(long, id="2", mode="deep"))[0] == "a"
    assert known.rank(replace(long, id="3", prompt="y" * 640))[0] == "b"
    nearly = "x" * 64 + "z" * 640  # a match of less than a tenth
    assert known.rank(replace(long, id="4", prompt=nearly))[0] == "b"
    known.set_replicas(["b"])
    assert known.rank(long) == ["b"]


def test_a_sweep_scales_the_load_with_the_replicas() -> None:
    told: list[float] = []
    sweep = Sweep(TRACE, COSTS, ClusterSettings(1), rate_each=2.0)
    found = [
        f for _, f in sweep.run(["fastslow", "pow2"], [2, 4], lambda share, _: told.append(share))
    ]
    assert [(f.router, f.replicas) for f in found] == [
        ("fastslow", 2), ("pow2", 2), ("fastslow", 4), ("pow2", 4),
    ]  # fmt: skip
    assert told == sorted(told) and 0 <= told[0] <= told[-1] <= 1
    assert found[2].modes[ALL].requests == pytest.approx(2 * found[0].modes[ALL].requests, rel=0.4)


@pytest.mark.parametrize("rate", [0.5, 8.0, 100.0])
def test_another_rate_has_more_users_and_not_hasty_ones(rate: float) -> None:
    load = at_rate(TRACE, rate, 40)
    assert len({r.id for r in load}) == len(load)
    assert [r.arrival for r in load] == sorted(r.arrival for r in load)
    taken = load[-1].arrival
    assert len(load) / taken == pytest.approx(rate, rel=0.4)
    # a turn comes as long after the one before it as in the trace, but where the trace goes round
    pauses = {r.id: r.arrival for r in TRACE}
    here = {r.id: r.arrival for r in load}
    same, around = 0, 0
    for one in load:
        name, _, copy = one.id.partition("~")
        before = [p for p, _ in one.prefix if p in here and p != one.id]
        for part in before:
            assert part.partition("~")[2] == copy
            gap = pauses[name] - pauses[part.partition("~")[0]]
            if one.arrival - here[part] == pytest.approx(gap):
                same += 1
            else:
                around += 1
    assert same > 3 * around
    assert {p for r in load for p, _ in r.prefix if p.startswith("bot")} <= {
        f"bot-{n}" for n in range(6)
    }


def test_a_rate_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="all come at once"):
        at_rate(TRACE[:1], 5.0, 10)
    for rate, shown in ((1e6, "1e.06"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"{shown} requests a second for .* are more than"):
            at_rate(TRACE, rate, 40)
    with pytest.raises(ValueError, match="1e-06 requests a second leave none of this trace"):
        at_rate(TRACE, 1e-6, 40)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"replicas": 0}, "replicas=0 must be between 1 and"),
        ({"router": "pow"}, "router='pow' is unknown.*pow2"),
        ({"mtbf_hours": 0.0}, "mtbf_hours=0.0 must be above 0"),
        ({"machine_replicas": 0}, "machine_replicas=0 must be between 1 and 64"),
        ({"report_seconds": math.nan}, "report_seconds=nan must be above 0"),
    ],
)
def test_settings_that_do_not_fit(more: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterSettings(**({"replicas": 1} | more))  # type: ignore[arg-type]


def test_a_trace_that_does_not_fit() -> None:
    wrong = replace(TRACE[0], mode="quick")
    with pytest.raises(ValueError, match="mode 'quick' has no step costs"):
        cluster_module.check_trace([wrong], COSTS)
    large = replace(TRACE[0], prompt_tokens=700_000)
    with pytest.raises(ValueError, match="needs 4.* pages of 16 tokens, and a replica has 40000"):
        cluster_module.check_trace([large], COSTS)


def test_replicas_of_a_machine_need_a_slowdown() -> None:
    with pytest.raises(ValueError, match="machine_replicas=2 needs costs with a slowdown"):
        SimulatedCluster(TRACE, COSTS, ClusterSettings(2, machine_replicas=2))


def test_replicas_that_die_leave_their_place_on_the_machine() -> None:
    slow = replace(COSTS, slowdown=(1.2, 1.5))
    result = simulate(4, slow, machine_replicas=2, mtbf_hours=30 / 3600)
    is_whole(result)
    assert result.deaths > 3


def test_a_simulation_that_would_hardly_end_is_refused() -> None:
    with pytest.raises(ValueError, match="mtbf_hours=1e-09 must be at least 0.00139: replicas"):
        SimulatedCluster(TRACE, COSTS, ClusterSettings(2, mtbf_hours=1e-9))
    late = [TRACE[0], replace(TRACE[0], id="late", arrival=1e9)]
    with pytest.raises(ValueError, match=r"2 replicas make 2e\+09 reports in the 1e\+09 s"):
        SimulatedCluster(late, COSTS, ClusterSettings(2))


def test_a_replica_that_dies_while_it_was_to_go_is_not_replaced() -> None:
    made = SimulatedCluster(TRACE, COSTS, ClusterSettings(2))
    for _ in range(2):
        made._start(ready=True)
    first, second = made._members.values()
    first.leaving = True
    made._die(first)
    assert list(made._members.values()) == [second]
    made._die(second)
    assert len(made._members) == 1


def test_replicas_that_go_are_counted_until_their_answers_are_over() -> None:
    scaling = ScalingSettings(least=1, most=3, down_seconds=5)
    long = [TracedRequest(0.1 * n, "fast", 10, 3000, f"long {n}") for n in range(3)]
    trace = [*long, TracedRequest(120.0, "fast", 10, 5, "last")]
    found = SimulatedCluster(trace, COSTS, ClusterSettings(3, "pow2", scaling=scaling)).run()
    assert [count for _, count in found.sizes] == [3, 3, 3, 2, 1]
    ends = sorted(found.ends)
    assert [when for when, _ in found.sizes[3:]] == pytest.approx(ends[:2])
    area = sum(
        count * (until - at) for (at, count), (until, _) in zip(found.sizes, found.sizes[1:])
    )
    area += found.sizes[-1][1] * (found.seconds - found.sizes[-1][0])
    assert found.replica_seconds == pytest.approx(area)


def test_a_number_of_replicas_without_a_mode_is_drawn_without_it() -> None:
    """With few requests a mode that is rare may not come at all."""
    both = figures("fastslow", 2, simulate(2), 0.9)
    fast = replace(both, replicas=3, modes={ALL: both.modes[ALL], "fast": both.modes["fast"]})
    for every in ([both, fast], [fast, both]):
        titles = [chart.title for chart in charts(every)]
        assert "First token of deep, p95" in titles and "Later tokens of deep, p95" in titles
        (deep,) = [c for c in charts(every) if c.title == "First token of deep, p95"]
        assert [len(one.points) for one in deep.series] == [1]
        assert svg(every)
