"""The engine's process sends all to the end, and where a part cannot be sent, all else."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_engine import FakeEngine, output
from loops import within
from msgspec import to_builtins
from serve_engines import asked

from fastslow.output import Output, Piece
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process import child, messages
from fastslow.serve.engines.process.connection import AnswerStream, EngineConnection
from fastslow.serve.engines.process.messages import Drain, Start
from fastslow.serve.engines.settings import EngineSettings

MOST = 20_000  # bytes of a message in these tests
LARGE = "x" * 30_000
MANY = 3000  # pieces


@asynccontextmanager
async def linked(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> AsyncIterator[EngineConnection]:
    """The server's end of a connection to an engine; the other end is in this process, too."""

    async def opened(settings: EngineSettings) -> FakeEngine:
        return engine

    monkeypatch.setattr(EngineSettings, "open", opened)
    ours, its = socket.socketpair()
    for end in (ours, its):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(child.serve(its))
    _, link = await loop.create_unix_connection(EngineConnection, sock=ours)
    link.send(Start(to_builtins(EngineSettings("tiny", "tiny"))))
    await link.loaded
    try:
        yield link
    finally:
        link.close()
        await serving


async def pieces_of(answer: AnswerStream) -> list[Piece]:
    found: list[Piece] = []
    while pieces := await answer.take():
        found += pieces
    return found


@within()
async def test_a_drain_loses_nothing_where_the_server_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    made = asyncio.Event()

    async def many(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        for n in range(MANY):
            yield Piece(f"{n} ".ljust(300), token_ids=[n])
            if n % 50 == 0:
                await asyncio.sleep(0)
        yield Piece(output=output("the end"))
        made.set()

    async with linked(monkeypatch, FakeEngine(many)) as link:
        assert link._transport is not None
        link._transport.pause_reading()
        _, answer = link.ask(asked())
        await made.wait()
        link.send(Drain(15.0))
        await asyncio.sleep(0.1)
        link._transport.resume_reading()
        await link.lost
        link.end("it is gone")
        *parts, last = await pieces_of(answer)
        assert [token for piece in parts for token in piece.token_ids] == [*range(MANY)]
        assert last.output is not None and last.output.text == "the end"


class Large(FakeEngine):
    """Some of its answers and values cannot be sent."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.left: list[str] = []

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        try:
            if request.id == "large":
                yield Piece(LARGE, token_ids=[1])
                await asyncio.Future()
            if request.id == "number":
                yield Piece("x", token_ids=[2**64])
            yield Piece("a", token_ids=[1])
            yield Piece(output=output(LARGE if request.id == "end" else request.id))
        finally:
            self.left.append(request.id)

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return {"steps": [LARGE if id == "large" else object()]}


@within()
async def test_what_cannot_be_sent_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "LONGEST", MOST)
    ids = ("small", "large", "end", "number", "other")
    engine = Large()
    async with linked(monkeypatch, engine) as link:
        answers = {id: link.ask(asked(id))[1] for id in ids}
        ends = (pieces_of(answer) for answer in answers.values())
        found = dict(zip(ids, await asyncio.gather(*ends, return_exceptions=True)))
        for id in ("small", "other"):
            *_, last = found[id]  # type: ignore[misc]
            assert isinstance(last.output, Output) and last.output.text == id
        for id, why in (("large", "20000"), ("end", "20000"), ("number", "64 bits")):
            error = found[id]
            assert isinstance(error, ValueError) and why in str(error), id
            assert "the answer cannot be sent between two processes" in str(error)
        while len(engine.left) < len(ids):
            await asyncio.sleep(0.001)
        with pytest.raises(ValueError, match="it has 300.. bytes; a message has at most 20000"):
            await link.call("trace", "large")
        with pytest.raises(RuntimeError, match="TypeError"):
            await link.call("trace", "no message")
        assert await link.call("detokenize", [1]) == "text"
        with pytest.raises(ValueError, match="a message has at most 20000"):
            link.ask(asked(prompt=LARGE))
        assert not link.answering
