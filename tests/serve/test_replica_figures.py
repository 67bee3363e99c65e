"""The figures of several replicas: their sums, and what /metrics says of each."""

from typing import Any

from fake_engine import FakeEngine
from metrics_client import client, scraped
from routing_tools import figures_of

from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.replica_stats import MOST_GONE, StatsSum
from fastslow.serve.observe.metrics import MOST_VALUES

SERIES = {
    "fastslow:replica_requests_running": "running", "fastslow:replica_requests_waiting": "waiting",
    "fastslow:replica_kv_pages_used": "pages_used", "fastslow:replica_kv_pages": "pages",
}  # fmt: skip


def test_sums_stay_and_the_gone_are_counted_in_bounded_room() -> None:
    sums = StatsSum()
    for there, *wanted in (
        ({"a": 1, "b": 2}, 30, 3, 0), ({"b": 2}, 30, 2, 1), ({"b": 2, "c": 3}, 60, 5, 1), ({}, 60, 0, 3),
    ):  # fmt: skip
        found = sums.of({id: figures_of(n) for id, n in there.items()})
        assert [found[name] for name in ("tokens", "running", "replicas_gone")] == wanted
        assert set(found["replicas"]) == set(there) and found["pages"] == 100 * len(there)
    sums = StatsSum()
    for n in range(MOST_GONE + 50):
        sums.of({f"replica {n}": figures_of(1)})
    assert len(sums._latest) == MOST_GONE + 1 and sums.of({})["tokens"] == 10 * (MOST_GONE + 50)


class Several(FakeEngine):
    """It has replicas."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__()
        self.ids, self.there, self.gone = ids, True, 0

    async def stats(self) -> dict[str, Any]:
        if not self.there:
            raise NotReady("no replica runs")
        each = {id: figures_of(n) for n, id in enumerate(self.ids)}
        now = {"replicas_running": len(each), "replicas_starting": 1, "replicas_gone": self.gone}
        return {**await super().stats(), "replicas": each, **now}


def by_replica(found: Any, name: str) -> dict[str, float]:
    return {dict(labels)["replica"]: value for (one, labels), value in found.items() if one == name}


def test_each_replica_has_series_until_it_is_gone() -> None:
    engine = Several(["a", "b"])
    with client(engine) as ours:
        found = scraped(ours)
        for name, field in SERIES.items():
            wanted = {id: figures_of(n)[field] for n, id in enumerate(engine.ids)}
            assert by_replica(found, name) == wanted
        assert found["fastslow:replicas", (("state", "running"),)] == 2
        assert found["fastslow:replicas", (("state", "starting"),)] == 1
        engine.ids, engine.gone = ["b", "c"], 1
        for there in (True, False):
            engine.there = there
            found = scraped(ours)
            for name in SERIES:
                assert set(by_replica(found, name)) == ({"b", "c"} if there else set())
            assert found["fastslow:replicas_gone_total", ()] == 1
        engine.there = True
        for day in range(3):  # their number is bounded, but not by those that were
            engine.ids = [f"{day} {n:04}" for n in range(MOST_VALUES + 5)]
            shown = by_replica(scraped(ours), "fastslow:replica_requests_running")
            assert set(shown) == set(engine.ids[:MOST_VALUES])
