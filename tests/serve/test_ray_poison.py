"""A request that ends each replica which takes it, before one can say its name; no cluster is needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import TINY
from ray import ActorID
from ray.exceptions import ActorUnavailableError
from serve_engines import answer_of, asked

from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries
from fastslow.serve.ray.deployed import Replicas
from fastslow.serve.ray.engine import RayEngine


class Items:
    """The stream of an answer."""

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> bytes:
        raise ActorUnavailableError("it ended", ActorID.nil().binary())

    def cancel(self) -> None:
        pass


class Ending:
    """A handle of replicas that all end at once."""

    asked = 0

    def remote(self, *arguments: Any) -> Any:
        self.asked += 1
        return Items()


def test_it_is_given_up() -> None:
    async def main() -> None:
        engine = RayEngine(None)  # type: ignore[arg-type]
        engine._card, engine.replicas, engine._stream = TINY, Replicas(running=2), Ending()
        continued = ContinuedEngine(engine, Retries(deaths=3, first=0.0, longest=0.0))
        with pytest.raises(NotReady, match="it was under way on 3 engines when they ended"):
            await answer_of(continued, asked("poison"))
        assert engine._stream.asked == 3 and not engine._running

    asyncio.run(asyncio.wait_for(main(), 20))
