"""The figures of several replicas: their sums, and what /metrics says of each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine
from loguru import logger
from metrics_client import client, scraped

from fastslow.serve.api.engine import NotReady
from fastslow.serve.observe import metrics
from fastslow.serve.observe.metric_registry import MOST_VALUES
from fastslow.serve.page import route

pytest.importorskip("ray")
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.ray import engine
from fastslow.serve.ray.deployed import Replicas
from fastslow.serve.ray.engine import STATS, RayEngine
from fastslow.serve.ray.messages import Returned
from fastslow.serve.ray.stats import MOST_GONE, StatsSum

SERIES = {
    "fastslow:replica_requests_running": "running",
    "fastslow:replica_requests_waiting": "waiting",
    "fastslow:replica_kv_pages_used": "pages_used",
    "fastslow:replica_kv_pages": "pages",
}


def of_one(n: int) -> dict[str, int]:
    return {"running": n, "waiting": n + 1, "pages": 100, "pages_used": n + 2, "tokens": 10 * n}


def test_sums_stay_and_the_gone_are_counted() -> None:
    sums = StatsSum()
    both = sums.of({"a": of_one(1), "b": of_one(2)})
    assert (both["tokens"], both["running"], both["replicas_gone"]) == (30, 3, 0)
    assert set(both["replicas"]) == {"a", "b"}
    one = sums.of({"b": of_one(2)})
    assert (one["tokens"], one["running"], one["replicas_gone"]) == (30, 2, 1)
    assert set(one["replicas"]) == {"b"}
    again = sums.of({"b": of_one(2), "c": of_one(3)})
    assert (again["tokens"], again["pages"], again["replicas_gone"]) == (60, 200, 1)
    assert sums.of({})["replicas_gone"] == 3


def test_figures_of_many_that_are_gone_take_no_more_room() -> None:
    sums = StatsSum()
    for n in range(MOST_GONE + 50):
        sums.of({f"replica {n}": of_one(1)})
    assert len(sums._latest) == MOST_GONE + 1
    last = sums.of({})
    assert (last["tokens"], last["running"]) == (10 * (MOST_GONE + 50), 0)
    assert last["replicas_gone"] == MOST_GONE + 50


class Call:
    """Of one replica."""

    def __init__(self, id: str, n: int, hangs: bool) -> None:
        self.id, self.n, self.hangs = id, n, hangs

    async def get_async(self) -> bytes:
        if self.hangs:
            await asyncio.Future()
        return packed(Returned(self.id, of_one(self.n)))


class TwoReplicas:
    """A handle of them. hangs: those that are stopped."""

    hangs = ""
    more = 0  # what both have counted since

    def broadcast(self, method: str, *arguments: Any) -> TwoReplicas:
        return self

    async def _fetch_replica_results_async(self) -> list[Call]:
        return [Call(id, n + self.more, id in self.hangs) for n, id in enumerate("ab", 1)]


def two_replicas(monkeypatch: pytest.MonkeyPatch) -> tuple[RayEngine, TwoReplicas]:
    monkeypatch.setattr(engine, "STATS", 0.05)
    monkeypatch.setattr(engine, "ABOUT", 0.05)
    several, handle = RayEngine(None), TwoReplicas()  # type: ignore[arg-type]
    several._handle, several.replicas = handle, Replicas(running=2)
    return several, handle


def test_a_replica_that_hangs_counts_as_it_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        several, handle = two_replicas(monkeypatch)
        handle.hangs = "ab"
        with pytest.raises(NotReady, match=r"no replica told its figures within 0\.05 s"):
            await several.stats()
        handle.hangs = "b"
        assert (await several.stats())["tokens"] == 10, "of the other one alone"
        handle.hangs = ""
        assert (await several.stats())["tokens"] == 30
        handle.hangs, handle.more = "b", 1
        said: list[str] = []
        sink = logger.add(said.append, level="WARNING")
        for _ in range(3):
            found = await several.stats()
            assert found["tokens"] == 20 + 20 and set(found["replicas"]) == {"a", "b"}
            assert found["replicas_gone"] == 0
        logger.remove(sink)
        assert len(said) == 1 and "what it told before counts" in said[0]
        handle.hangs = "ab"
        assert (await several.stats())["tokens"] == 40

    asyncio.run(main())


def test_figures_come_before_those_who_ask_leave() -> None:
    assert STATS < metrics.PATIENCE and STATS < route.PATIENCE


def test_a_request_that_none_knows_where_one_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        several, handle = two_replicas(monkeypatch)
        handle.hangs = "b"
        assert await several.cancel("x"), "the other one has it"
        handle.hangs = "ab"
        with pytest.raises(NotReady, match=r"a replica did not answer within 0\.05 s"):
            await several.cancel("x")

    asyncio.run(main())


class Several(FakeEngine):
    """It has replicas."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__()
        self.ids, self.there, self.gone = ids, True, 0

    async def stats(self) -> dict[str, Any]:
        if not self.there:
            raise NotReady("no replica runs")
        each = {id: of_one(n) for n, id in enumerate(self.ids)}
        now = {"replicas_running": len(each), "replicas_starting": 1, "replicas_gone": self.gone}
        return {**await super().stats(), "replicas": each, **now}


def by_replica(found: Any, name: str) -> dict[str, float]:
    return {dict(labels)["replica"]: value for (one, labels), value in found.items() if one == name}


def test_each_replica_has_series_until_it_is_gone() -> None:
    engine = Several(["a", "b"])
    with client(engine) as ours:
        found = scraped(ours)
        for name, field in SERIES.items():
            wanted = {id: of_one(n)[field] for n, id in enumerate(engine.ids)}
            assert by_replica(found, name) == wanted
        assert found["fastslow:replicas", (("state", "running"),)] == 2
        assert found["fastslow:replicas", (("state", "starting"),)] == 1
        engine.ids, engine.gone = ["b", "c"], 1
        found = scraped(ours)
        assert set(by_replica(found, "fastslow:replica_kv_pages")) == {"b", "c"}
        assert found["fastslow:replicas_gone_total", ()] == 1
        engine.there = False
        found = scraped(ours)
        assert not any(by_replica(found, name) for name in SERIES)
        assert found["fastslow:replicas_gone_total", ()] == 1


def test_their_number_is_bounded_but_not_by_those_that_were() -> None:
    engine = Several([])
    with client(engine) as ours:
        for day in range(3):
            engine.ids = [f"{day} {n:04}" for n in range(MOST_VALUES + 5)]
            shown = by_replica(scraped(ours), "fastslow:replica_requests_running")
            assert set(shown) == set(engine.ids[:MOST_VALUES])


def test_one_engine_has_no_replicas() -> None:
    with client(FakeEngine()) as ours:
        assert not any("replica" in name for name, _ in scraped(ours))
