"""More replicas under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_engines import KeptCluster
from serve_engines import LONG, answer_of, asked, settings_of, until, write_served

from fastslow.serve.ray.deployed import OwnDeployment
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.replicas import ReplicaSettings

pytestmark = pytest.mark.slow
SOON = 120.0  # seconds: other tests may run beside it


class Opened:
    """What the tests here share."""

    def __init__(self, runner: asyncio.Runner, cluster: KeptCluster, folder: Path) -> None:
        self.runner, self.cluster, self.folder = runner, cluster, folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    folder = write_served(tmp_path_factory.mktemp("served"))
    with asyncio.Runner() as runner:
        cluster = KeptCluster(cpus=2)
        try:
            yield Opened(runner, cluster, folder)
        finally:
            runner.run(cluster.end())


def test_a_flood_brings_a_second_replica_that_takes_requests(opened: Opened) -> None:
    async def main() -> None:
        settings = settings_of(opened.folder, max_running=1)
        replicas = ReplicaSettings(least=1, most=2)
        engine = RayEngine(OwnDeployment(opened.cluster, settings, replicas, name="scaled"))
        await engine.start()
        assert (engine.replicas.running, engine.replicas.starting) == (1, 0)
        clients = [asyncio.create_task(_keep_asking(engine, n)) for n in range(8)]
        try:
            await until(lambda: engine.replicas.running == 2, SOON)
            await until(lambda: _both_answer(engine), SOON)
        finally:
            for task in clients:
                task.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await engine.close()

    opened.runner.run(main())


async def _keep_asking(engine: RayEngine, client: int) -> None:
    number = 0
    while True:
        number += 1
        await answer_of(engine, asked(f"{client} {number}", LONG // 4, f"{client}", mode="fast"))


async def _both_answer(engine: RayEngine) -> bool:
    each = (await engine.stats())["replicas"].values()
    return len(each) == 2 and all(one["steps"] > 0 for one in each)
