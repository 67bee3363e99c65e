"""How several engines come up and go down when replicas or the controller fail meanwhile; no cluster is needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_engine import TINY
from msgspec import to_builtins
from ray import ActorID
from ray.exceptions import ActorUnavailableError

from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.ray import engine as engine_module
from fastslow.serve.ray.deployed import Replicas
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.messages import Returned

GONE = ActorUnavailableError("it ended", ActorID.nil().binary())
CARD = packed(Returned("a", to_builtins(TINY)))


class Handle:
    """Calls of a replica, each of which does what `does` says. It needs no start."""

    is_initialized = True

    def __init__(self, does: Callable[[str], Awaitable[bytes]]) -> None:
        self._does = does
        self._method = ""

    def options(self, method_name: str, **more: Any) -> Handle:
        made = Handle(self._does)
        made._method = method_name
        return made

    async def remote(self, *arguments: Any) -> bytes:
        return await self._does(self._method)

    async def shutdown_async(self) -> None:
        pass


class Deployment:
    """Looks that fail at first."""

    def __init__(self, handle: Handle, failures: int = 0) -> None:
        self.handle, self.failures, self.closed = handle, failures, 0

    async def open(self) -> Handle:
        return self.handle

    async def look(self) -> Replicas:
        self.failures -= 1
        if self.failures >= 0:
            raise GONE
        return Replicas(running=2)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "LOADING", 0.001)
    monkeypatch.setattr(engine_module, "LAST", 0.2)


def test_replicas_that_end_before_they_say_their_model_are_waited_for(logged: list[str]) -> None:
    calls = []

    async def card(method: str) -> bytes:
        calls.append(method)
        if len(calls) < 3:
            raise GONE
        return CARD

    async def main() -> None:
        engine = RayEngine(Deployment(Handle(card), failures=2))
        await engine.start()
        assert engine.ready and engine.card == TINY and calls == ["card"] * 3
        await engine.close()

    asyncio.run(asyncio.wait_for(main(), 10))
    assert sum("no replica answers yet" in line for line in logged) == 4


def test_where_none_ever_answers_the_start_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "CALL", 0.05)

    async def card(method: str) -> bytes:
        await asyncio.sleep(10)
        return CARD

    async def main(deployment: Deployment) -> None:
        with pytest.raises(RuntimeError, match="^no replica answers: ") as raised:
            await RayEngine(deployment).start()
        assert "\n" not in str(raised.value)

    for deployment in (Deployment(Handle(card)), Deployment(Handle(card), failures=10**9)):
        asyncio.run(asyncio.wait_for(main(deployment), 10))


def test_a_server_that_closes_meanwhile_stops_to_wait() -> None:
    async def main() -> None:
        async def card(method: str) -> bytes:
            raise GONE

        engine = RayEngine(Deployment(Handle(card)))
        starting = asyncio.ensure_future(engine.start())
        await asyncio.sleep(0.01)
        await engine.close()
        with pytest.raises(NotReady, match="the server is closing"):
            await starting

    asyncio.run(asyncio.wait_for(main(), 10))


@pytest.mark.parametrize("hangs", [True, False])
def test_the_end_does_not_wait_for_replicas_that_hang_or_fail(hangs: bool) -> None:
    async def cancel(method: str) -> bytes:
        if hangs:
            await asyncio.sleep(30)
        raise RuntimeError("not what an engine raises")

    async def main() -> None:
        deployment = Deployment(Handle(cancel))
        engine = RayEngine(deployment)
        engine._handle, engine.replicas = deployment.handle, Replicas(running=2)
        engine._running = {str(n): "a" for n in range(50)}
        began = time.monotonic()
        await engine.close()
        assert deployment.closed == 1 and time.monotonic() - began < 5

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_look_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(engine_module, "LOOK", 0.001)

    async def card(method: str) -> bytes:
        return CARD

    class Odd(Deployment):
        looks = 0

        async def look(self) -> Replicas:
            self.looks += 1
            if self.looks == 2:
                raise KeyError("not what Ray raises")
            return Replicas(running=self.looks)

    async def main() -> None:
        deployment = Odd(Handle(card))
        engine = RayEngine(deployment)
        await engine.start()
        while engine.replicas.running < 5:
            await asyncio.sleep(0.001)
        await engine.close()

    asyncio.run(asyncio.wait_for(main(), 10))
    assert sum("controller of Ray Serve does not answer" in line for line in logged) == 1
