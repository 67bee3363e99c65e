"""More replicas under load, replicas of several ranks, and a replica that hangs; one Ray cluster for all."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray_engines import KeptCluster, descendants, kill, living, replica_pids
from serve_engines import LONG, answer_of, asked, settings_of, until, write_served

from fastslow.output import Output
from fastslow.serve.api.engine import NotReady
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
        clients = [asyncio.create_task(_keep_asking(engine, n)) for n in range(16)]
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
        await answer_of(engine, asked(f"{client} {number}", LONG // 2, f"{client}", mode="fast"))


async def _both_answer(engine: RayEngine) -> bool:
    each = (await engine.stats())["replicas"].values()
    return len(each) == 2 and all(one["steps"] > 0 for one in each)


def test_a_replica_of_two_ranks(opened: Opened) -> None:
    async def main() -> None:
        alone = await settings_of(opened.folder).open()
        asks = [
            asked("greedy", 30, sampling={"temperature": 0}),
            asked("seeded", 30, sampling={"temperature": 1.0, "seed": 5}),
        ]
        right = [_tokens(await answer_of(alone, ask)) for ask in asks]
        await alone.close()
        settings = settings_of(opened.folder, parallel="ep=2", device="cpu")
        replicas = ReplicaSettings(cpus=2, health_seconds=0.5)
        engine = RayEngine(OwnDeployment(opened.cluster, settings, replicas, name="ranks"))
        await engine.start()
        try:
            found = await asyncio.gather(*(answer_of(engine, ask) for ask in asks))
            assert [_tokens(output) for output in found] == right
            [replica] = replica_pids("ranks")
            ranks = descendants(replica)
            assert ranks, "they are processes of the replica"
            running = asyncio.create_task(answer_of(engine, asked("long", LONG)))
            await until(lambda: bool(engine._running))
            kill(replica)
            with pytest.raises(NotReady):
                await running
            await until(lambda: not living(ranks), SOON)
            await until(lambda: replica_pids("ranks") not in ([], [replica]), SOON)
            await until(lambda: _answers(engine), SOON)
            assert _tokens(await answer_of(engine, asks[0])) == right[0]
        finally:
            await engine.close()

    opened.runner.run(main())


def test_a_hung_replica_is_replaced(opened: Opened) -> None:
    async def main() -> None:
        replicas = ReplicaSettings(health_seconds=0.5, hung_seconds=2.0)
        own = OwnDeployment(opened.cluster, settings_of(opened.folder), replicas, name="hung")
        engine = RayEngine(own)
        await engine.start()
        try:
            await answer_of(engine, asked("before", 4))
            [replica] = replica_pids("hung")
            os.kill(replica, signal.SIGSTOP)
            await until(lambda: replica_pids("hung") not in ([], [replica]), SOON)
            await until(lambda: not living([replica]), SOON)
            await until(lambda: _answers(engine), SOON)
        finally:
            await engine.close()

    opened.runner.run(main())


async def _answers(engine: RayEngine) -> bool:
    with suppress(NotReady):
        await answer_of(engine, asked("again", 4))
        return True
    return False


def _tokens(output: Output) -> list[Any]:
    return [list(choice.token_ids) for choice in output.choices]
