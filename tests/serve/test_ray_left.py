"""Clients that leave while their request is on its way to a replica; no cluster is needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import TINY
from serve_engines import asked, pieces_of

from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.ray import engine
from fastslow.serve.ray.deployed import Replicas
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.left_calls import AbandonedCalls
from fastslow.serve.ray.messages import Accepted


class Response:
    """A call that its replica takes late. As with Ray's, who cancels it before it is taken cancels nothing."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()
        self.ended = False

    async def __anext__(self) -> bytes:
        await self.taken.wait()
        return packed(Accepted("a"))

    def cancel(self) -> None:
        self.ended = self.taken.is_set()


class Handle:
    """Of such replicas."""

    def __init__(self) -> None:
        self.responses: list[Response] = []

    def remote(self, *arguments: Any) -> Response:
        self.responses.append(Response())
        return self.responses[-1]


def engine_of(handle: Handle) -> RayEngine:
    own = RayEngine(None)  # type: ignore[arg-type]
    own._card, own.replicas, own._stream = TINY, Replicas(running=1), handle
    return own


def test_a_call_that_is_left_ends_once_it_is_taken() -> None:
    async def main() -> None:
        handle = Handle()
        own = engine_of(handle)
        asking = asyncio.create_task(pieces_of(own, asked()))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (response,) = handle.responses
        assert not response.ended and not own._running
        response.taken.set()
        await own._left.close(5.0)
        assert response.ended and not own._left._tasks

    asyncio.run(main())


def test_a_call_that_nobody_takes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.05)

    async def main() -> None:
        handle = Handle()
        own = engine_of(handle)
        with pytest.raises(NotReady, match=r"no replica took the request within 0\.05 s"):
            await pieces_of(own, asked())
        await own._left.close(5.0)
        left, response = AbandonedCalls(0.05), Response()
        first = asyncio.ensure_future(response.__anext__())
        left.leave(response, first)
        await left.close(5.0)
        assert first.cancelled() and not left._tasks

    asyncio.run(main())
