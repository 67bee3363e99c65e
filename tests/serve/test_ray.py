"""Two tiny replicas on a Ray cluster of this machine, through the protocol of an engine.

One cluster for all tests here: to start it takes most of their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from ray_engines import kill, replica_pids
from serve_engines import (
    LONG,
    answer_of,
    asked,
    first_of,
    idle,
    pieces_of,
    settings_of,
    until,
    write_served,
)

from fastslow.output import Output
from fastslow.serve.api.engine import Engine, NotReady
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.ray.cluster import Cluster
from fastslow.serve.ray.deployed import OwnDeployment
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.replicas import ReplicaSettings

CHAT = [{"role": "user", "content": "one two"}]


class Both:
    """The replicas, and one engine in this process beside them."""

    def __init__(self, runner: asyncio.Runner, ray: RayEngine, local: Engine) -> None:
        self.runner, self.ray, self.local = runner, ray, local


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    settings = settings_of(write_served(tmp_path_factory.mktemp("served")))
    with asyncio.Runner() as runner:

        async def opened() -> tuple[RayEngine, Engine]:
            replicas = ReplicaSettings(least=2, most=2, health_seconds=0.5)
            ray = RayEngine(OwnDeployment(Cluster(cpus=2), settings, replicas))
            with pytest.raises(NotReady, match="^the model is loading$"):
                print(ray.card)
            await ray.start()
            return ray, await settings.open()

        ray, local = runner.run(opened())
        try:
            runner.run(until(lambda: ray.replicas.running == 2))
            yield Both(runner, ray, local)
        finally:
            runner.run(local.close())
            runner.run(ray.close())


def test_answers_are_those_of_one_engine(both: Both) -> None:
    async def main() -> None:
        assert both.ray.ready and both.ray.card.modes == both.local.card.modes
        asks = [
            asked("greedy", 40, sampling={"temperature": 0}),
            asked("seeded", 40, sampling={"temperature": 1.0, "seed": 5, "n": 2}),
            asked("fast", 40, CHAT, mode="fast", sampling={"temperature": 0.8, "seed": 7}),
            asked("whole", 40, CHAT, streamed=False, sampling={"temperature": 0, "logprobs": 2}),
        ]
        right = [_told(await answer_of(both.local, ask)) for ask in asks]
        for _ in range(3):  # on either replica, and both at the same time
            found = await asyncio.gather(*(answer_of(both.ray, ask) for ask in asks))
            assert [_told(output) for output in found] == right
        pieces = await pieces_of(both.ray, asks[0])
        assert len(pieces) > 2 and pieces[-1].output is not None
        assert "".join(piece.text for piece in pieces) == pieces[-1].output.text

    both.runner.run(main())


def test_errors_keep_their_kinds(both: Both, logged: list[str]) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="^max_tokens"):
            await answer_of(both.ray, asked(tokens=0))
        with pytest.raises(ValueError, match="^mode"):
            await answer_of(both.ray, asked(mode="dep"))
        with pytest.raises(ValueError, match="outside of 64 bits"):
            await answer_of(both.ray, asked(sampling={"seed": 2**70}))
        with pytest.raises(ValueError, match="32 answers that may wait and run"):
            await answer_of(both.ray, asked(sampling={"n": 33}))
        with pytest.raises(ValueError, match="not an id in 0..319"):
            await both.ray.detokenize([10**6])

    both.runner.run(main())
    assert not logged, "they are no news"


def test_calls(both: Both) -> None:
    async def main() -> None:
        tokens = await both.local.tokenize(asked())
        assert await both.ray.tokenize(asked()) == tokens
        assert await both.ray.detokenize(tokens) == await both.local.detokenize(tokens)
        assert await both.ray.token_bytes(tokens) == await both.local.token_bytes(tokens)
        assert not await both.ray.cancel("nobody") and not await both.ray.stop_thinking("nobody")
        assert await both.ray.trace("nobody") is None
        await answer_of(both.ray, asked("traced", trace=True))
        trace = await both.ray.trace("traced")
        assert trace is not None and trace == await both.ray.trace("traced")
        stats = await both.ray.stats()
        each = stats["replicas"]
        assert len(each) == 2 and stats["steps"] == sum(one["steps"] for one in each.values()) > 0
        assert stats["pages"] == 2 * (await both.local.stats())["pages"]

    both.runner.run(main())


def test_who_leaves_cancels(both: Both) -> None:
    async def main() -> None:
        assert (await first_of(both.ray, asked("left", LONG))).token_ids
        await until(lambda: idle(both.ray))
        task = asyncio.create_task(answer_of(both.ray, asked("cancelled", LONG)))
        await until(lambda: both.ray.cancel("cancelled"))
        assert (await task).finish_reason == "cancelled"
        task = asyncio.create_task(answer_of(both.ray, asked("task", LONG)))
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await until(lambda: idle(both.ray))

    both.runner.run(main())


def test_a_killed_replica_is_told_of_continued_and_replaced(both: Both) -> None:
    async def main() -> None:
        continued = ContinuedEngine(both.ray)
        asks = [asked(f"seeded {n}", LONG // 4, sampling={"seed": n}) for n in range(4)]
        right = [_told(await answer_of(both.local, ask)) for ask in asks]
        before = replica_pids()
        assert len(before) == 2
        counted = (await both.ray.stats())["tokens"]
        plain = [
            asyncio.create_task(answer_of(both.ray, asked(f"long {n}", LONG))) for n in range(4)
        ]
        going_on = [asyncio.create_task(answer_of(continued, ask)) for ask in asks]
        await until(lambda: len(both.ray._running) == 8)
        await asyncio.sleep(0.1)
        kill(before[0])
        ended = await asyncio.gather(*plain, return_exceptions=True)
        lost = [one for one in ended if isinstance(one, NotReady)]
        assert lost and all(one.replica == lost[0].replica != "" for one in lost)
        assert all(isinstance(one, NotReady | Output) for one in ended)
        assert [_told(output) for output in await asyncio.gather(*going_on)] == right
        assert continued.continued + continued.retried > 0 == continued.given_up
        await until(lambda: both.ray.replicas.running == 2 and replica_pids() != before)
        assert (await both.ray.stats())["tokens"] >= counted, "counts of the old one stay"
        found = await asyncio.gather(*(answer_of(both.ray, ask) for ask in asks))
        assert [_told(output) for output in found] == right

    both.runner.run(main())


def _told(output: Output) -> dict[str, Any]:
    """What does not depend on time."""
    whole = output.to_dict()
    choices = [
        {name: choice[name] for name in ("text", "reasoning", "token_ids", "logprobs")}
        for choice in whole["choices"]
    ]
    return {"choices": choices, "token_ids": output.token_ids}
