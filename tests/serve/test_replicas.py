"""Two tiny replicas as one engine: in processes of this one, and on a Ray cluster. What holds for one kind holds for
the other; the cluster is slow to start."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, ParamSpec

import pytest
from ray_engines import started_cluster
from serve_engines import LONG, answer_of, asked, first_of, idle, pieces_of, settings_of, until

from fastslow.output import Output
from fastslow.serve.api.engine import Engine, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.engines.process_replicas import ProcessReplicas
from fastslow.serve.engines.replica_settings import ReplicaSettings
from fastslow.serve.engines.routed_engine import RoutedEngine

CHAT = [{"role": "user", "content": "one two"}]
TWO = ReplicaSettings(least=2, most=2, health_seconds=0.5, hung_seconds=3.0)
MOST = LONG // 2  # tokens: a second of work
SOON = 120.0  # seconds: other tests may run beside it
P = ParamSpec("P")


class Opened(NamedTuple):
    """Replicas, and one engine in this process beside them."""

    runner: asyncio.Runner
    several: RoutedEngine
    local: Engine
    pids: Callable[[], list[int]]

    async def both_run(self) -> bool:
        return len(self.several._replicas.running) == 2


@pytest.fixture(scope="module", params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest, folder: Path) -> Iterator[Opened]:
    settings = settings_of(folder, max_waiting=100)
    with asyncio.Runner() as runner, ExitStack() as stack:
        if request.param == "ray":
            from fastslow.serve.ray.deployments import OwnDeployment
            from fastslow.serve.ray.replicas import RayReplicas

            cluster = stack.enter_context(started_cluster())
            replicas: Any = runner.run(_made(RayReplicas, OwnDeployment(cluster.address, settings, TWO)))
            pids: Callable[[], list[int]] = cluster.engines
        else:
            replicas = runner.run(_made(ProcessReplicas, settings, TWO))
            pids = partial(getattr, replicas, "pids")
        several = runner.run(_made(RoutedEngine, replicas))
        with pytest.raises(NotReady, match="^the model is loading$"):
            print(several.card)
        runner.run(several.start())
        local = runner.run(settings.open())
        one = Opened(runner, several, local, pids)
        try:
            runner.run(until(one.both_run, SOON))
            yield one
        finally:
            runner.run(local.close())
            runner.run(several.close())


def in_its_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test where the replicas of `opened` run."""

    @wraps(test)
    def run(*arguments: P.args, **fixtures: P.kwargs) -> None:
        opened: Any = fixtures["opened"]
        opened.runner.run(test(*arguments, **fixtures))

    return run


async def _made(kind: Callable[..., Any], *arguments: Any) -> Any:
    """Made in a loop."""
    return kind(*arguments)


@in_its_loop
async def test_answers_are_those_of_one_engine(opened: Opened) -> None:
    assert opened.several.ready and opened.several.card.modes == opened.local.card.modes
    asks = [
        asked("greedy", 40, sampling={"temperature": 0}),
        asked("seeded", 40, sampling={"temperature": 1.0, "seed": 5, "n": 2}),
        asked("fast", 40, CHAT, mode="fast", sampling={"temperature": 0.8, "seed": 7}),
        asked("whole", 40, CHAT, streamed=False, sampling={"temperature": 0, "logprobs": 2}),
    ]
    right = [_plain(await answer_of(opened.local, ask)) for ask in asks]
    for _ in range(3):  # on either replica, and both at the same time
        found = await asyncio.gather(*(answer_of(opened.several, ask) for ask in asks))
        assert [_plain(output) for output in found] == right
    pieces = await pieces_of(opened.several, asks[0])
    # what was answered before is drafted, so few steps may make all of it
    assert len(pieces) > 1 and pieces[-1].output is not None
    assert "".join(piece.text for piece in pieces) == pieces[-1].output.text


@in_its_loop
async def test_errors_keep_their_kinds(opened: Opened, logged: list[str]) -> None:
    for ask, said in (
        (asked(tokens=0), "^max_tokens"),
        (asked(mode="dep"), "^mode"),
        (asked(sampling={"seed": 2**70}), "outside of 64 bits"),
        (asked(sampling={"n": 117}), "116 answers that may wait and run"),
    ):
        with pytest.raises(ValueError, match=said):
            await answer_of(opened.several, ask)
    with pytest.raises(ValueError, match="not an id in 0..319"):
        await opened.several.detokenize([10**6])
    # the second replica may begin meanwhile
    assert not [line for line in logged if "replicas run" not in line], "they are no news"


@in_its_loop
async def test_calls(opened: Opened) -> None:
    several, local = opened.several, opened.local
    tokens = await local.tokenize(asked())
    assert await several.tokenize(asked()) == tokens
    assert await several.detokenize(tokens) == await local.detokenize(tokens)
    assert await several.token_bytes(tokens) == await local.token_bytes(tokens)
    assert not await several.cancel("nobody") and not await several.stop_thinking("nobody")
    assert await several.trace("nobody") is None
    await answer_of(several, asked("traced", trace=True))
    trace = await several.trace("traced")
    assert trace is not None and trace == await several.trace("traced")
    stats = await several.stats()
    each = stats["replicas"]
    assert len(each) == 2 and stats["steps"] == sum(one["steps"] for one in each.values()) > 0
    assert stats["pages"] == 2 * (await local.stats())["pages"]


@in_its_loop
async def test_who_leaves_cancels(opened: Opened) -> None:
    several = opened.several
    assert (await first_of(several, asked("left", LONG))).token_ids
    await until(lambda: idle(several))
    task = asyncio.create_task(answer_of(several, asked("cancelled", LONG)))
    await until(lambda: several.cancel("cancelled"))
    assert (await task).finish_reason == "cancelled"
    task = asyncio.create_task(answer_of(several, asked("task", LONG)))
    await asyncio.sleep(0.1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await until(lambda: idle(several))


@in_its_loop
async def test_nothing_is_left_of_a_flood_whose_clients_leave(opened: Opened) -> None:
    random = Random(5)
    several = opened.several
    continued = ContinuedEngine(several)

    async def leaves(id: str, seconds: float, cancels: bool) -> None:
        asking = asyncio.create_task(pieces_of(continued, asked(id, 3000, mode="fast")))
        await asyncio.sleep(seconds)
        if cancels:
            await continued.cancel(id)
        else:
            asking.cancel()
        await asyncio.wait([asking])

    for flood in range(2):
        await asyncio.gather(*(leaves(f"{flood}-{n}", random.uniform(0, 0.5), n % 3 == 0) for n in range(60)))
    await until(lambda: idle(several))
    chooser = several._chooser
    assert len(chooser._loads) == 2 and not any(one._mine for one in chooser._loads.values())
    assert not chooser._sent and not several._running and not continued._running


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
@in_its_loop
async def test_a_replica_that_ends_or_hangs_is_continued_and_replaced(opened: Opened, end: signal.Signals) -> None:
    several = opened.several
    continued = ContinuedEngine(several)
    await until(opened.both_run, SOON)
    names = list(several._replicas.running)

    def on_both(ask: GenerateRequest, n: int) -> GenerateRequest:
        return replace(ask, avoid=(names[n % 2],))

    asks = [asked(f"seeded {n}", LONG // 4, sampling={"seed": n}) for n in range(2)]
    asks = [on_both(ask, n) for n, ask in enumerate(asks)]
    longs = [on_both(asked(f"{n}", MOST), n) for n in range(2)]
    right = [_plain(await answer_of(opened.local, ask)) for ask in asks]
    before, stats = opened.pids(), await several.stats()
    plain = [asyncio.create_task(answer_of(several, ask)) for ask in longs]
    others = [asyncio.create_task(answer_of(continued, ask)) for ask in asks]
    await until(lambda: len(several._running) == 4)
    await asyncio.sleep(0.1)
    os.kill(before[0], end)
    ended = await asyncio.gather(*plain, return_exceptions=True)
    lost = [error for error in ended if isinstance(error, BaseException)]
    whole = [output for output in ended if isinstance(output, Output)]
    assert lost and whole and all(isinstance(e, NotReady) and e.replica for e in lost)
    assert all(len(output.token_ids) == MOST for output in whole)
    assert [_plain(output) for output in await asyncio.gather(*others)] == right
    assert continued.retried + continued.continued > 0 and not continued.given_up

    async def replaced() -> bool:
        there = set(several._replicas.running)  # the name of one that ended may stay for a moment
        return len(there) == 2 and there != set(names) and before[0] not in opened.pids()

    await until(replaced, SOON)
    after = await several.stats()
    assert after["tokens"] >= stats["tokens"] and after["replicas_gone"] == stats["replicas_gone"] + 1
    again = [await answer_of(several, asked(f"again {n}")) for n in range(4)]
    assert all(len(output.token_ids) == 8 for output in again)


def _plain(output: Output) -> list[tuple[str, str, list[int], str | None]]:
    return [(c.text, c.reasoning, list(c.token_ids), c.finish_reason) for c in output.choices]
