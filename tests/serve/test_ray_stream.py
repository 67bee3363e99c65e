"""The stream of an answer of several engines, from the items that a replica sends; no cluster is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fake_engine import TINY
from serve_engines import asked

from fastslow.output import Piece
from fastslow.serve.api.engine import NotReady
from fastslow.serve.engines.process.failures import failure_of
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.ray import engine as engine_module
from fastslow.serve.ray.deployed import Replicas
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.messages import Accepted, Bunch

PIECES = [Piece("one", token_ids=[1]), Piece(" two", token_ids=[2])]


class Items:
    """What a replica sends of an answer."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self._items = iter(items)
        self.cancelled = 0

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> bytes:
        for item in self._items:
            return item
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled += 1


class Stream:
    """A handle; each answer has the same items."""

    def __init__(self, *bunches: Bunch) -> None:
        self._items = [packed(item) for item in (Accepted("a"), *bunches)]
        self.sent: list[Items] = []

    def remote(self, *arguments: Any) -> Items:
        self.sent.append(Items(self._items))
        return self.sent[-1]


def several(stream: Stream) -> RayEngine:
    engine = RayEngine(None)  # type: ignore[arg-type]
    engine._card, engine.replicas, engine._stream = TINY, Replicas(running=2), stream
    return engine


def test_a_whole_answer_is_not_cancelled_and_one_that_is_left_is() -> None:
    async def main() -> None:
        stream = Stream(Bunch(PIECES[:1]), Bunch([]), Bunch(PIECES[1:]))
        engine = several(stream)
        assert [piece async for piece in engine.stream(asked("whole"))] == PIECES
        left = engine.stream(asked("left"))
        assert await anext(left) == PIECES[0]
        assert engine._running == {"left": "a"}
        await left.aclose()
        assert [items.cancelled for items in stream.sent] == [0, 1]
        assert not engine._running and engine._recent == {"whole": "a", "left": "a"}

    asyncio.run(main())


def test_an_engine_that_refuses_is_named() -> None:
    """So the answer is asked for again, and not of this one."""

    async def main() -> None:
        engine = several(
            Stream(Bunch([], failure_of(NotReady("the server is closing", refused=True))))
        )
        with pytest.raises(NotReady, match="the server is closing") as raised:
            [piece async for piece in engine.stream(asked("one"))]
        assert raised.value.replica == "a" and raised.value.refused

    asyncio.run(main())


def test_replicas_of_few_answers_that_are_over_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "RECENT", 3)

    async def main() -> None:
        engine = several(Stream(Bunch(PIECES)))
        for n in range(5):
            assert [piece async for piece in engine.stream(asked(str(n)))] == PIECES
        assert list(engine._recent) == ["2", "3", "4"]

    asyncio.run(main())
