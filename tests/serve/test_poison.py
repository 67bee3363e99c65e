"""A request that crashes its engine ends with one sentence; those beside it are made elsewhere."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from typing import Any, cast
from unittest.mock import Mock

import pytest
from breaking_engines import Break, ScriptedReplicas, Token
from fake_engine import FakeEngine, output
from loops import within
from serve_engines import answer_of, asked

from fastslow.output import Output, Piece
from fastslow.serve.api.engine import NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries
from fastslow.serve.engines.process import connection
from fastslow.serve.engines.process.child_process import ChildProcess
from fastslow.serve.engines.process.connection import AnswerStream, EngineConnection, EngineCrashed

QUICK = Retries(first=0.0, longest=0.0)


async def _error(answer: AnswerStream) -> Exception:
    with pytest.raises(NotReady) as raised:
        while await answer.take():
            pass
    return raised.value


@within()
async def test_which_answers_may_be_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended(*new: bool, crashed: bool = True, streamed: bool = True) -> list[int | None]:
        """Of each answer: `suspects`; None = no crash is spoken of."""
        link = EngineConnection()
        link._transport = Mock(asyncio.Transport, **{"is_closing.return_value": False})
        answers = [link.ask(asked(streamed=streamed))[1] for _ in new]
        for answer, one in zip(answers, new):
            if not one:
                answer.put(Piece("x", token_ids=[1]))
        link.end("it ended", crashed)
        errors = [await _error(answer) for answer in answers]
        return [one.suspects if isinstance(one, EngineCrashed) else None for one in errors]

    assert await ended(False, True, False) == [0, 1, 0] and await ended(True, True, False) == [2, 2, 0]
    assert await ended(True, crashed=False) == [None] and await ended(False, False) == [None, None]
    assert await ended(True, streamed=False) == [1]
    monkeypatch.setattr(connection, "NEW", 0.0)
    assert await ended(True, streamed=False) == [None], "it has run for long"
    assert await ended(True) == [1], "nothing came of it"


@pytest.mark.parametrize(
    ("code", "crashed"),
    [(-signal.SIGSEGV, True), (-signal.SIGABRT, True), (-signal.SIGKILL, False), (1, False),
     (0, False), (None, False)],
)  # fmt: skip
def test_which_ends_are_crashes(code: int | None, crashed: bool) -> None:
    class Process:
        returncode = code

    assert ChildProcess(cast(Any, Process()), cast(EngineConnection, None)).crashed is crashed


def test_the_only_new_one_is_not_tried_again(logged: list[str]) -> None:
    error = EngineCrashed(connection.ALONE, 1)
    inner = ScriptedReplicas([[Token(5)]], [Break(after=0, error=error)] * 9)
    engine = ContinuedEngine(inner, QUICK)
    with pytest.raises(NotReady, match="no other one was new there: no other engine is asked"):
        asyncio.run(answer_of(engine, asked("poison")))
    assert len(inner.asked) == 1 and engine.given_up == 1 and "poison is given up" in "".join(logged)


def test_one_that_is_suspected_twice_is_not_tried_again_and_others_are_not_to_blame() -> None:
    crashes = [Break(after=0, error=EngineCrashed("it ended", n)) for n in (3, 2)]
    engine = ContinuedEngine(inner := ScriptedReplicas([[Token(5)]], crashes), QUICK)
    with pytest.raises(NotReady, match="two engines crashed as they began it"):
        asyncio.run(answer_of(engine, asked("poison")))
    assert len(inner.asked) == 2
    others = [Break(after=1, error=EngineCrashed("it ended", 0)) for _ in range(9)]
    inner = ScriptedReplicas([[Token(n) for n in range(5, 20)]], others)
    output = asyncio.run(answer_of(ContinuedEngine(inner, QUICK), asked("innocent")))
    assert output.token_ids == [*range(5, 20)] and len(inner.asked) == 10


class Fragile(FakeEngine):
    """Crashes under "poison", with all that run there. The next engine is there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.new: dict[str, asyncio.Future[None]] = {}
        self.crashes = self.most = 0  # of new ones at the same time, after the first crash
        self.streamed: dict[str, list[bool]] = {}

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.streamed.setdefault(request.id, []).append(request.streamed)
        own = self.new[request.id] = asyncio.get_running_loop().create_future()
        if self.crashes:
            self.most = max(self.most, len(self.new))
        try:
            await asyncio.sleep(0.005)  # others come
            if request.id == "poison" and not own.done():
                self._crash()
            await asyncio.wait([own], timeout=0.01)
            if own.done():
                own.result()
        finally:
            del self.new[request.id]
        if request.streamed:
            yield Piece("an ", token_ids=[1], sources=["target"])
        yield Piece(output=output("an answer"))

    def _crash(self) -> None:
        self.crashes += 1
        for one in self.new.values():
            error = EngineCrashed("it ended", len(self.new))
            error.replica = f"engine {self.crashes}"
            one.set_exception(error)


@within()
async def test_those_that_were_new_beside_it_are_tried_one_by_one() -> None:
    inner = Fragile()
    engine = ContinuedEngine(inner, QUICK)
    asks = [asked(str(n), streamed=n % 2 == 0) for n in range(6)]
    asks.insert(3, asked("poison"))
    found = await asyncio.gather(*(answer_of(engine, ask) for ask in asks), return_exceptions=True)
    poison = found.pop(3)
    assert isinstance(poison, NotReady) and "no other engine is asked" in str(poison)
    assert all(isinstance(one, Output) and one.text == "an answer" for one in found)
    assert inner.crashes == 2 and inner.most == 1
    assert inner.streamed["1"] == [False, True], "so that its first piece clears it"
    assert engine._suspect is None and not engine._running and engine.given_up == 1


@within()
async def test_a_suspected_one_that_is_left_or_cancelled_holds_up_nobody() -> None:
    inner = Fragile()
    engine = ContinuedEngine(inner, QUICK)
    asks = [asked(id) for id in ("poison", "left", "cancelled", "last")]
    tasks = [asyncio.ensure_future(answer_of(engine, ask)) for ask in asks]
    while not inner.crashes:
        await asyncio.sleep(0.001)
    tasks[1].cancel()
    assert await engine.cancel("cancelled")
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[1], asyncio.CancelledError)
    assert isinstance(found[2], NotReady | Output) and isinstance(found[3], Output)
    assert engine._suspect is None and not engine._running
