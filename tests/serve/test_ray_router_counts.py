"""What counts as sent: the router's own bookkeeping, with Ray's objects as far as it reads them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache
from routing_tools import deep, report, request

from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.ray.router import FastSlowRouter


class Alone(FastSlowRouter):
    """Without what Ray gives a router."""

    def __init__(self, names: list[str], **reports: Any) -> None:
        self.initialize_state(seed=1)
        self._replica_queue_len_cache = ReplicaQueueLengthCache()
        self._queue_len_gauge_last_update: dict[Any, float] = {}
        self.running = [replica(name, reports.get(name)) for name in names]
        self._set_replicas(self.running)

    async def ask(self, pending: Any) -> str:
        ranks = await self.choose_replicas(self.running, pending)
        assert sorted(r[0].replica_id.unique_id for r in ranks) == sorted(self._by_name)
        return str(ranks[0][0].replica_id.unique_id)

    def counts(self) -> list[int]:
        return [self.chooser.answers(r.replica_id.unique_id) for r in self.running]


def replica(name: str, stats: Any = None) -> Any:
    return SimpleNamespace(replica_id=id_of(name), routing_stats=stats, max_ongoing_requests=100)


def id_of(name: str) -> Any:
    return ReplicaID(name, DeploymentID("engine"))


def pending(routed: RoutedRequest | None, internal: str = "i") -> Any:
    return SimpleNamespace(
        args=[] if routed is None else [routed],
        kwargs={},
        metadata=SimpleNamespace(internal_request_id=internal),
        future=asyncio.Future(),
    )


def run(main: Any) -> None:
    asyncio.run(main())


def test_a_request_counts_from_the_choice_to_its_end() -> None:
    async def main() -> None:
        router = Alone(["a", "b"])
        asked = pending(request("x"))
        place = await router.ask(asked)
        assert sum(router.counts()) == 1
        assert await router.ask(asked) in "ab", "asked again while all are full"
        assert sum(router.counts()) == 1
        router.on_request_routed(asked, id_of(place), None)
        assert sum(router.counts()) == 1
        router.on_request_completed(id_of(place), "i")
        assert router.counts() == [0, 0] and not router._counted
        router.on_request_completed(id_of(place), "i")

    run(main)


def test_it_counts_where_it_went() -> None:
    async def main() -> None:
        router = Alone(["a", "b"])
        asked = pending(request("x"))
        place = await router.ask(asked)
        other = ({"a", "b"} - {place}).pop()
        router.on_request_routed(asked, id_of(other), None)
        assert router.chooser.answers(other) == 1 and router.chooser.answers(place) == 0
        router.on_request_completed(id_of(other), "i")
        assert router.counts() == [0, 0]

    run(main)


def test_one_that_is_cancelled_before_it_was_sent_counts_no_more() -> None:
    async def main() -> None:
        router = Alone(["a", "b"])
        asked = pending(request("x"))
        await router.ask(asked)
        asked.future.cancel()
        await asyncio.sleep(0)
        assert router.counts() == [0, 0] and not router._counted

    run(main)


def test_the_same_id_again_counts_by_itself() -> None:
    async def main() -> None:
        router = Alone(["a", "b"])
        routed = request("x")
        first, second = pending(routed, "1"), pending(routed, "2")
        place = await router.ask(first)
        await router.ask(second)  # elsewhere, since the first one broke
        assert sum(router.counts()) == 2
        router.on_request_completed(id_of(place), "1")  # heard of later
        assert sum(router.counts()) == 1

    run(main)


def test_calls_about_requests_count_as_nothing() -> None:
    async def main() -> None:
        router = Alone(["a", "b"])
        for place in "ab":
            assert await router.ask(pending(request("", replica=place))) == place
        await router.ask(pending(None))
        ranks = await router.choose_replicas(router.running, None)
        assert len(ranks) == 2
        assert router.counts() == [0, 0] and not router._counted

    run(main)


def test_reports_are_read_and_damaged_ones_told_once(logged: list[str]) -> None:
    async def main() -> None:
        busy = report(1.0, running={"deep": 50}, deep=50).to_dict()
        router = Alone(["a", "b"], a=busy, b={"version": 7})
        assert router.counts() == [50, 0]
        router.running[1].routing_stats = {"version": 8}
        router._set_replicas(router.running)
        assert len(logged) == 1 and "b is routed to as if it had not reported" in logged[0]
        assert await router.ask(pending(deep("x"))) == "b"
        router._set_replicas(router.running[:1])
        assert router.chooser.rank(request("x")) == ["a"]

    run(main)


def test_ray_need_not_ask_a_replica_that_the_router_knows() -> None:
    async def main() -> None:
        router = Alone(["a"])
        await router.ask(pending(request("x")))
        assert router.replica_queue_len_cache.get(router.running[0].replica_id) == 1

    run(main)


def test_a_replica_that_could_not_be_reached_is_asked_before_more_is_sent() -> None:
    """Else Ray would send to a dead one again and again."""

    def known(router: Alone) -> bool:
        return router.replica_queue_len_cache.get(id_of("a")) is not None

    async def main() -> None:
        router = Alone(["a"])
        await router.ask(pending(request("x")))
        assert known(router)
        router.on_replica_actor_unavailable(id_of("a"))
        await router.ask(pending(request("x"), "j"))
        assert not known(router)
        router._set_replicas([replica("a", report(1.0).to_dict())])
        await router.ask(pending(request("x"), "k"))
        assert known(router)
        router.on_replica_actor_unavailable(id_of("a"))
        router._set_replicas([replica("b")])
        assert not router._unsure, "one that is gone is forgotten"

    run(main)
