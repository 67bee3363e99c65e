"""Several replicas as one engine: which of them is asked, what is said of requests, and how it ends."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest
from fake_engine import TINY
from loops import within
from routing_tools import figures_of, report
from serve_engines import answer_of, asked, pieces_of

from fastslow.output import Piece
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines import routed_engine
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries
from fastslow.serve.engines.routed_engine import STATS, RoutedEngine
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.observe import metrics
from fastslow.serve.page import route

PIECES = [Piece("one", token_ids=[1]), Piece(" two", token_ids=[2])]


class FakeReplicas:
    """Replicas that do what a test says.

    Attributes:
        silent: names of those that have said nothing for long.
        hangs: names of those that answer no call.
        does: what a call gives, by replica, method and arguments.
        error: that each answer ends with.
    """

    def __init__(self, *names: str) -> None:
        self.running: dict[str, ReplicaReport | None] = dict.fromkeys(names)
        self.silent: set[str] = set()
        self.starting = 1
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.hangs = ""
        self.does: Callable[..., Any] = lambda name, method, *arguments: None
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.calls: list[tuple[str, str]] = []
        self.closed = 0

    async def start(self) -> ModelCard:
        return TINY

    async def stream(self, name: str, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.asked.append(name)
        for piece in PIECES:
            if self.error is not None:
                raise self.error
            yield piece

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        self.calls.append((name, method))
        if name in self.hangs:
            await asyncio.Future()
        return self.does(name, method, *arguments)

    async def close(self) -> None:
        self.closed += 1


Test = Callable[[RoutedEngine, FakeReplicas], Coroutine[Any, Any, None]]


def with_replicas(*names: str) -> Callable[[Test], Callable[[], None]]:
    """Give a test these, and an engine that has started."""

    def plain(test: Test) -> Callable[[], None]:
        @within()
        async def run() -> None:
            replicas = FakeReplicas(*names)
            engine = RoutedEngine(replicas)
            await engine.start()
            try:
                await test(engine, replicas)
            finally:
                await engine.close()

        return run

    return plain


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK": 0.01, "STATS": 0.05, "ABOUT": 0.05, "LAST": 0.1}.items():
        monkeypatch.setattr(routed_engine, name, seconds)


@with_replicas("a", "b", "c")
async def test_requests_spread(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    streams = [engine.stream(asked(str(n))) for n in range(6)]
    assert [await anext(stream) for stream in streams] == PIECES[:1] * 6
    assert sorted(replicas.asked) == ["a", "a", "b", "b", "c", "c"]
    assert list(engine._running.values()) == replicas.asked
    for stream in streams:
        await stream.aclose()
    assert not engine._running and not engine._chooser._sent
    assert await pieces_of(engine, asked("whole")) == PIECES


@with_replicas("a", "b")
async def test_a_busy_replica_is_asked_later(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    busy = report(time.time(), running={"fast": 16}, waiting={"fast": 9}, queue_seconds=3.0)
    replicas.running = {"a": busy, "b": report(time.time())}
    await asyncio.sleep(0.05)
    for n in range(5):
        await pieces_of(engine, asked(str(n)))
    assert replicas.asked == ["b"] * 5


@with_replicas("a", "b")
async def test_a_replica_that_failed_is_left_out_until_it_reports(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    replicas.error = NotReady("not reached", refused=True)
    with pytest.raises(NotReady):
        await pieces_of(engine, asked("one"))
    replicas.error, [failed] = None, replicas.asked
    for n in range(9):
        await pieces_of(engine, asked(str(n)))
    assert failed not in replicas.asked[1:]
    replicas.running = {name: report(time.time()) for name in "ab"}
    await asyncio.sleep(0.05)
    for stream in [engine.stream(asked(str(n))) for n in range(4)]:
        await anext(stream)
    assert failed in replicas.asked[10:]


@with_replicas("a", "b")
async def test_a_silent_replica_gets_no_requests_and_where_all_are_it_is_not_ready(
    engine: RoutedEngine, replicas: FakeReplicas
) -> None:
    replicas.silent, replicas.does = {"a"}, lambda name, method, tokens: name
    for n in range(6):
        await pieces_of(engine, asked(str(n)))
        assert await engine.detokenize([1]) == "b"
    assert engine.ready and set(replicas.asked) == {"b"}
    replicas.silent = {"a", "b"}
    assert not engine.ready
    for call in (pieces_of(engine, asked()), engine.detokenize([1])):
        with pytest.raises(NotReady, match="^no replica answers now, 2 run$"):
            await call


@with_replicas("a", "b")
async def test_what_is_said_of_a_request_is_asked_of_its_replica(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    replicas.does = lambda name, method, id: name == "b"
    stream = engine.stream(asked("one"))
    await anext(stream)
    [name] = replicas.asked
    assert await engine.cancel("one") is (name == "b") and await engine.stop_thinking("one") is (name == "b")
    assert {one for one, _ in replicas.calls} == {name}
    await stream.aclose()
    assert await engine.cancel("one"), "it is over, or of another server: all are asked"
    assert replicas.calls[-2:] == [("a", "cancel"), ("b", "cancel")]


@with_replicas("a", "b")
async def test_a_request_that_none_knows_where_one_hangs(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    replicas.does, replicas.hangs = lambda name, method, id: True, "b"
    assert await engine.cancel("x"), "the other one has it"
    replicas.does = lambda name, method, id: False
    with pytest.raises(NotReady, match=r"a replica did not answer within 0\.05 s"):
        await engine.cancel("x")


@with_replicas("a", "b")
async def test_an_error_names_its_replica_and_one_that_ends_each_replica_is_given_up(
    engine: RoutedEngine, replicas: FakeReplicas
) -> None:
    replicas.error = NotReady("it ended")
    with pytest.raises(NotReady) as raised:
        await pieces_of(engine, asked("one"))
    assert raised.value.replica in "ab"
    continued = ContinuedEngine(engine, Retries(deaths=3, first=0.0, longest=0.0))
    with pytest.raises(NotReady, match="it was under way on 3 engines when they ended"):
        await answer_of(continued, asked("poison"))
    assert len(replicas.asked) == 4 and len(set(replicas.asked[1:3])) == 2 and not engine._running


@with_replicas()
async def test_where_none_runs_it_says_how_many_start(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    with pytest.raises(NotReady, match="^no replica runs, 1 are starting$"):
        await pieces_of(engine, asked())
    for call in (engine.stats, lambda: engine.detokenize([1])):
        with pytest.raises(NotReady, match="^no replica runs, 1 are starting$"):
            await call()
    replicas.running = {"new": None}
    assert engine.ready and await pieces_of(engine, asked()) == PIECES


@with_replicas("a", "b")
async def test_a_replica_that_hangs_counts_with_its_last_figures(engine: RoutedEngine, replicas: FakeReplicas) -> None:
    replicas.does = lambda name, method: figures_of("ab".index(name) + 1 + more)
    replicas.hangs, more = "ab", 0
    with pytest.raises(NotReady, match=r"no replica sent its figures within 0\.05 s"):
        await engine.stats()
    steps = [("b", 0, 10), ("", 0, 30), *[("b", 1, 40)] * 3, ("ab", 1, 40)]
    for hangs, more, tokens in steps:  # noqa: B007 - `does` reads it
        replicas.hangs = hangs
        found = await engine.stats()
        assert found["tokens"] == tokens and found["replicas_gone"] == 0 and found["replicas_running"] == 2


def test_figures_come_before_those_who_ask_leave() -> None:
    assert STATS < metrics.PATIENCE and STATS < route.PATIENCE


@pytest.mark.parametrize("hangs", [True, False])
@within()
async def test_the_end_does_not_wait_for_replicas_that_hang_or_fail(hangs: bool) -> None:
    replicas = FakeReplicas("a", "b")
    engine = RoutedEngine(replicas)
    await engine.start()
    replicas.hangs = "ab" if hangs else ""
    replicas.does = lambda name, method, id: 1 / 0
    engine._running = {str(n): "a" for n in range(50)}
    began = time.monotonic()
    await engine.close(0.05)
    assert replicas.closed == 1 and time.monotonic() - began > 0.05
    assert engine.why_not_ready == "the server is closing"
