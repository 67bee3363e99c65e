"""Clients that leave, and requests that are cancelled, in a flood: nothing runs on, and nothing counts as running."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import pytest
from serve_engines import asked, idle, pieces_of, settings_of, until, write_served

from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.ray.cluster import Cluster
from fastslow.serve.ray.deployed import OwnDeployment
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.replicas import ReplicaSettings
from fastslow.serve.ray.router import FastSlowRouter

pytestmark = pytest.mark.slow


def router_of(engine: RayEngine) -> FastSlowRouter:
    found: Any = engine._stream._router._asyncio_router._active_request_router
    assert isinstance(found, FastSlowRouter)
    return found


def test_nothing_is_left_of_requests_whose_clients_leave(tmp_path: Path) -> None:
    random = Random(5)

    async def main() -> None:
        settings = settings_of(write_served(tmp_path), max_waiting=200)
        two = ReplicaSettings(least=2, most=2, health_seconds=0.5)
        several = RayEngine(OwnDeployment(Cluster(cpus=2), settings, two))
        await several.start()
        try:
            continued = ContinuedEngine(several)
            await until(lambda: several.replicas.running == 2)

            async def leaves(id: str, seconds: float, told: bool) -> None:
                asking = asyncio.create_task(pieces_of(continued, asked(id, 3000, mode="fast")))
                await asyncio.sleep(seconds)
                if told:
                    await continued.cancel(id)
                else:
                    asking.cancel()
                await asyncio.wait([asking])

            for flood in range(4):
                await asyncio.gather(
                    *(leaves(f"{flood}-{n}", random.uniform(0, 0.5), n % 3 == 0) for n in range(60))
                )
            await until(lambda: idle(several))
            router = router_of(several)
            await until(lambda: not router._counted, 10.0)
            loads = router.chooser._loads.values()
            assert len(loads) == 2 and not any(load._mine for load in loads)
            assert not router.chooser._sent and not several._running and not continued._running
        finally:
            await several.close()

    asyncio.run(main())
