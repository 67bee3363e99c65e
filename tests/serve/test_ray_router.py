"""The router and the scaling policy in Ray's hands: a stand-in for the engine, on a local cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from routing_tools import deep, quick, report, request

from fastslow.serve.ray.replicas import ROUTERS, ReplicaSettings
from fastslow.serve.ray.routers import router_config
from fastslow.serve.ray.scaling import QueueScaling, autoscaling_stats

SOON = 60.0


def test_routers_by_name() -> None:
    for name in ROUTERS:
        assert router_config(name).request_routing_stats_period_s == 1.0
    with pytest.raises(ValueError, match="router='fastslo' is unknown.*fastslow"):
        ReplicaSettings(router="fastslo")


def context(metrics: dict[str, dict[str, float]], state: dict[str, Any], now: float) -> Any:
    return SimpleNamespace(
        aggregated_metrics=metrics,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        target_num_replicas=2,
        policy_state=state,
        current_time=now,
    )


def test_the_policy_remembers_from_look_to_look() -> None:
    stats = autoscaling_stats(report(1.0, waiting={"fast": 9}, quick_queue_seconds=30.0))
    metrics = {name: {"a": value, "b": value} for name, value in stats.items()}
    policy = QueueScaling(up_seconds=5.0)
    wanted, state = policy(context(metrics, {}, 100.0))
    assert wanted == 2
    assert policy(context(metrics, state, 106.0))[0] == 4
    assert policy(context({}, state, 106.0))[0] == 2, "nobody has reported"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=80_000_000)
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()
    ray.shutdown()


def stand_in() -> type:
    """A class that Ray takes along by value: its processes do not know the tests."""
    idle = report(0.0).to_dict()

    class StandIn:
        def __init__(self) -> None:
            self.id: str = serve.get_replica_context().replica_id.unique_id
            self.deep = 0

        async def stream(self, routed: Any, seconds: float) -> AsyncGenerator[str, None]:
            self.deep += routed.deep
            try:
                yield self.id
                await asyncio.sleep(seconds)
            finally:
                self.deep -= routed.deep

        async def where(self, routed: Any) -> str:
            return self.id

        async def die(self, routed: Any) -> None:
            import os

            os._exit(1)

        async def record_routing_stats(self) -> dict[str, Any]:
            running = {"deep": self.deep}
            return idle | {"at": time.time(), "running": running, "deep": self.deep}

    return StandIn


def deployed(router: str, **options: Any) -> Any:
    """A handle of two replicas, both running."""
    config = router_config(router, {"seed": 1} if router == "fastslow" else {}, period=0.2)
    made: Any = serve.deployment(stand_in()).options(
        name=router,
        num_replicas=2,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=config,
        **options,
    )
    return serve.run(made.bind(), name=router, route_prefix=None)


async def first(handle: Any, routed: Any, seconds: float) -> tuple[str, Any]:
    """Where a stream begins, and the stream."""
    stream = handle.options(stream=True).stream.remote(routed, seconds)
    return await anext(stream), stream


@pytest.mark.slow
def test_it_routes_as_the_chooser_says(cluster: None) -> None:
    handle = deployed("fastslow", max_ongoing_requests=100)

    async def main() -> None:
        places = {(await handle.where.remote(deep(f"{n} x")))[:] for n in range(20)}
        assert len(places) == 2, "without quick ones deep ones go everywhere"
        _, stream = await first(handle, quick("hello"), 0.1)
        assert [_ async for _ in stream] == []
        flood = [await first(handle, deep(f"{n} think"), 2.0) for n in range(30)]
        [full] = {place for place, _ in flood}
        [kept] = places - {full}
        for place in places:  # a call about a request goes where it is
            assert await handle.where.remote(request("", replica=place)) == place
        assert {(await first(handle, quick(f"{n}"), 0.0))[0] for n in range(10)} == {kept}
        for _, stream in flood:
            assert [_ async for _ in stream] == []
        text = "a system prompt " * 100
        home = await handle.where.remote(request(text))
        await asyncio.sleep(2)
        assert {await handle.where.remote(request(text + "x")) for _ in range(5)} == {home}
        with pytest.raises(Exception, match="died|unavailable|Died"):
            await handle.die.remote(request("", replica=kept))
        ends = time.monotonic() + SOON
        while time.monotonic() < ends:
            again = {await handle.where.remote(deep(f"{n} y")) for n in range(4)}
            if again <= {full}:
                break
        assert again == {full} or kept not in again

    asyncio.run(asyncio.wait_for(main(), SOON))


@pytest.mark.slow
def test_a_full_replica_hands_on(cluster: None) -> None:
    handle = deployed("fastslow", max_ongoing_requests=5)

    async def main() -> None:
        await first(handle, quick("hello"), 0.0)
        flood = [await first(handle, deep(f"{n} think"), 3.0) for n in range(10)]
        counts = [[place for place, _ in flood].count(p) for p in {place for place, _ in flood}]
        assert sorted(counts) == [5, 5], "beyond its places the kept one takes some, too"

    asyncio.run(asyncio.wait_for(main(), SOON))


@pytest.mark.slow
@pytest.mark.parametrize("router", ["prefix", "pow2"])
def test_rays_own_routers_take_the_same_calls(cluster: None, router: str) -> None:
    handle = deployed(router, max_ongoing_requests=100)

    async def main() -> set[str]:
        return {await handle.where.remote(request("a system prompt " * 50)) for _ in range(20)}

    assert len(asyncio.run(asyncio.wait_for(main(), SOON))) == (1 if router == "prefix" else 2)
