"""Replicas on Ray, from what Ray and a replica give; no cluster is needed. With a cluster: test_replicas.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from fake_engine import TINY
from msgspec import to_builtins
from ray import ActorID
from ray.exceptions import ActorUnavailableError
from routing_tools import report
from serve_engines import asked

from fastslow.output import Piece
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import failure_of, packed
from fastslow.serve.ray import replica as replica_module
from fastslow.serve.ray import replicas as replicas_module
from fastslow.serve.ray.cluster import first_line
from fastslow.serve.ray.deployments import DeploymentState
from fastslow.serve.ray.messages import (
    Accepted,
    Bunch,
    Returned,
    failure_in,
    item_of,
    load_failure,
    packed_arguments,
)
from fastslow.serve.ray.replica import EngineReplica
from fastslow.serve.ray.replicas import RayReplicas
from fastslow.serve.ray.router import RUNNING, NamedReplicaRouter
from fastslow.serve.ray.scaling import QueueScaling, autoscaling_stats

APP = "an application"
PIECES = [Piece("one", token_ids=[1]), Piece(" two", token_ids=[2])]
GONE = ActorUnavailableError("it ended", ActorID.nil().binary())
CARD = packed(Returned("a", to_builtins(TINY)))


class Response:
    """What a replica sends of an answer. As with Ray's, a cancel before it is taken cancels nothing.

    Args:
        late: it is taken once a test says so.
    """

    def __init__(self, items: Iterable[bytes], late: bool = False) -> None:
        self._items = iter(items)
        self.taken = asyncio.Event()
        self.cancelled = 0
        if not late:
            self.taken.set()

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        await self.taken.wait()
        for item in self._items:
            return item
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled += self.taken.is_set()


class Handle:
    """Of replicas that all do the same. It needs no start.

    Args:
        bunches: the items of each answer after the first one.
        accepts: who takes it.
        late: see `Response`.
        calls: what a call does.
    """

    is_initialized = True

    def __init__(
        self,
        *bunches: Bunch,
        accepts: str = "a",
        late: bool = False,
        calls: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._items = [packed(item) for item in (Accepted(accepts), *bunches)]
        self._late, self._calls = late, calls
        self.responses: list[Response] = []

    def options(self, **options: Any) -> Handle:
        return self

    def remote(self, name: str, *arguments: Any) -> Any:
        if self._calls is not None:
            return self._calls()
        self.responses.append(Response(self._items, self._late))
        return self.responses[-1]

    async def shutdown_async(self) -> None:
        pass


class Deployment:
    """Looks that fail at first."""

    name = APP

    def __init__(self, handle: Handle, failures: int = 0) -> None:
        self.handle, self.failures, self.looks, self.closed = handle, failures, 0, 0

    async def open(self) -> Handle:
        return self.handle

    async def look(self) -> DeploymentState:
        self.looks += 1
        if self.looks <= self.failures:
            raise GONE
        return DeploymentState(running=2)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "LOADING", 0.001)
    monkeypatch.setitem(RUNNING, APP, {"a": {}})


def replicas_of(handle: Handle) -> RayReplicas:
    own = RayReplicas(Deployment(handle))
    own._handle = own._stream = handle
    return own


async def all_of(own: RayReplicas) -> list[Piece]:
    return [piece async for piece in own.stream("a", asked())]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_whole_answer_is_not_cancelled_and_one_that_is_left_is() -> None:
    async def test() -> None:
        handle = Handle(Bunch(PIECES[:1]), Bunch([]), Bunch(PIECES[1:]))
        own = replicas_of(handle)
        assert await all_of(own) == PIECES
        left = own.stream("a", asked())
        assert await anext(left) == PIECES[0]
        await left.aclose()
        assert [response.cancelled for response in handle.responses] == [0, 1]

    run(test)


def test_errors_of_an_engine_come_through() -> None:
    async def test() -> None:
        refused = failure_of(NotReady("the server is closing", refused=True))
        with pytest.raises(NotReady, match="the server is closing") as raised:
            await all_of(replicas_of(Handle(Bunch([], refused))))
        assert raised.value.refused
        returned = packed(Returned("a", None, failure_of(ValueError("not an id"))))

        async def call() -> bytes:
            return returned

        with pytest.raises(ValueError, match="^not an id$"):
            await replicas_of(Handle(calls=call)).call("a", "detokenize", [1])

    run(test)


def test_where_its_replica_is_gone_another_one_is_not_used_unseen() -> None:
    """Else a cancel would be sent to the replica that is gone."""

    async def test() -> None:
        handle = Handle(Bunch(PIECES), accepts="b")
        with pytest.raises(NotReady, match="the replica is gone") as raised:
            await all_of(replicas_of(handle))
        assert raised.value.refused and handle.responses[0].cancelled == 1

        async def call() -> bytes:
            return packed(Returned("b", True))

        with pytest.raises(NotReady, match="the replica is gone"):
            await replicas_of(Handle(calls=call)).call("a", "cancel", "one")

    run(test)


def test_a_call_that_is_left_ends_once_it_is_taken() -> None:
    async def test() -> None:
        handle = Handle(late=True)
        own = replicas_of(handle)
        asking = asyncio.create_task(all_of(own))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        [response] = handle.responses
        assert not response.cancelled and own._abandoned
        response.taken.set()
        await own.close()
        assert response.cancelled and not own._abandoned

    run(test)


def test_a_call_that_nobody_takes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "PATIENCE", 0.05)

    async def test() -> None:
        own = replicas_of(Handle(late=True))
        with pytest.raises(NotReady, match=r"no replica took the request within 0\.05 s"):
            await all_of(own)
        await own.close()

    run(test)


def test_a_replica_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "SILENT", 0.05)

    class Silent(Response):
        async def __anext__(self) -> bytes:
            for item in self._items:
                return item
            return await asyncio.Future()

    async def test() -> None:
        own = replicas_of(Handle())
        own._stream = SimpleNamespace(remote=lambda *_: Silent([packed(Accepted("a"))]))
        with pytest.raises(NotReady, match="the replica fell silent") as raised:
            await all_of(own)
        assert not raised.value.refused, "it may have ended because of the request"

    run(test)


def test_replicas_that_end_before_they_give_their_card_are_waited_for(logged: list[str]) -> None:
    calls = 0

    async def card() -> bytes:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise GONE
        return CARD

    async def test() -> None:
        deployment = Deployment(Handle(calls=card), failures=2)
        own = RayReplicas(deployment)
        assert await own.start() == TINY and own.running == {"a": None} and calls == 3
        await own.close()
        assert deployment.closed == 1

    run(test)
    assert sum("no replica answers yet" in line for line in logged) == 4


def test_where_none_ever_answers_the_start_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas_module, "CALL", 0.05)

    async def card() -> bytes:
        await asyncio.sleep(10)
        return CARD

    async def test() -> None:
        for failures in (0, 10**9):
            with pytest.raises(RuntimeError, match="^no replica answers: ") as raised:
                await RayReplicas(Deployment(Handle(calls=card), failures)).start()
            assert "\n" not in str(raised.value)

    run(test)


def test_a_server_that_closes_meanwhile_waits_no_longer() -> None:
    async def card() -> bytes:
        raise GONE

    async def test() -> None:
        own = RayReplicas(Deployment(Handle(calls=card)))
        starting: asyncio.Future[ModelCard] = asyncio.ensure_future(own.start())
        await asyncio.sleep(0.01)
        await own.close()
        with pytest.raises(NotReady, match="the server is closing"):
            await starting

    run(test)


def test_a_look_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(replicas_module, "LOOK", 0.001)

    class Odd(Deployment):
        async def look(self) -> DeploymentState:
            self.looks += 1
            if self.looks == 2:
                raise KeyError("not what Ray raises")
            failed = RuntimeError("no node has it") if self.looks > 5 else None
            return DeploymentState(running=1, failed=failed)

    async def card() -> bytes:
        return CARD

    async def test() -> None:
        own = RayReplicas(Odd(Handle(calls=card)))
        await own.start()
        assert await own.gave_up == "no replica can be started: no node has it"
        await own.close()

    run(test)
    assert sum("controller of Ray Serve does not answer" in line for line in logged) == 1


class Engine:
    """One whose answer takes a while, and ends by its own limit of time."""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0.3)
        yield Piece(text="at last", token_ids=[1])
        raise TimeoutError("the engine has a limit of time")


def test_a_replica_says_that_it_is_there_while_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "ALIVE", 0.05)
    own: Any = SimpleNamespace(_id="this", _engine=Engine())
    own._fill = partial(EngineReplica._fill, own)

    async def test() -> None:
        stream = EngineReplica.stream(own, "this", packed_arguments([asked()]))
        items = [item_of(data) async for data in stream]
        accepted, *silent, answer, last = items
        assert isinstance(accepted, Accepted) and accepted.replica == "this"
        assert len(silent) > 2 and all(item == Bunch([]) for item in silent)
        assert isinstance(answer, Bunch) and answer.pieces[0].text == "at last"
        assert isinstance(last, Bunch) and last.failure is not None, "no pause, but an error"

    run(test)


class Id(NamedTuple):
    """Of a replica."""

    unique_id: str


def running(name: str, stats: dict[str, Any]) -> Any:
    return SimpleNamespace(replica_id=Id(name), routing_stats=stats)


class Router(NamedReplicaRouter):
    """Without Ray's own part."""

    app_name = APP

    def __init__(self) -> None:
        self.initialize_state()
        self.lengths: dict[Any, int] = {}

    @property
    def replica_queue_len_cache(self) -> Any:
        return SimpleNamespace(get=self.lengths.get, update=self.lengths.__setitem__)


def named(name: str) -> Any:
    return SimpleNamespace(args=(name, "call"))


def test_a_call_goes_to_the_replica_that_it_names() -> None:
    async def test() -> None:
        router, a, b = Router(), running("a", {}), running("b", {})
        assert await router.choose_replicas([a, b], named("b")) == [[b]]
        assert list(router.lengths) == [b.replica_id], "Ray does not ask it first"
        assert await router.choose_replicas([a, b], named("")) == [[a, b]]
        assert await router.choose_replicas([a], named("b")) == [[a]], "its answer says who it is"

    run(test)


def test_a_replica_that_is_not_reached_is_left_out_until_it_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for method in ("update_replicas", "on_replica_actor_died", "on_replica_actor_unavailable"):
        monkeypatch.setattr(NamedReplicaRouter.__base__, method, lambda *_: None)
    router = Router()
    router.update_replicas([running("a", {"at": 1}), running("b", {"at": 1})])
    assert set(RUNNING[APP]) == {"a", "b"}
    router.on_replica_actor_unavailable(running("b", {}).replica_id)
    assert set(RUNNING[APP]) == {"a"}
    router.update_replicas([running("a", {"at": 2}), running("b", {"at": 1})])
    assert RUNNING[APP] == {"a": {"at": 2}}
    router.update_replicas([running("a", {"at": 2}), running("b", {"at": 3})])
    assert set(RUNNING[APP]) == {"a", "b"}
    router.on_replica_actor_died(running("a", {}).replica_id)
    assert set(RUNNING[APP]) == {"b"}


def context(now: float, state: dict[str, Any], *stats: dict[str, float]) -> Any:
    """What Ray gives its policy: each figure by replica. A new replica has sent some of them only."""
    names = {name for one in stats for name in one}
    metrics = {
        name: {f"r{n}": one[name] for n, one in enumerate(stats) if name in one} for name in names
    }
    return SimpleNamespace(
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        aggregated_metrics=metrics,
        target_num_replicas=2,
        policy_state=state,
        current_time=now,
    )


def test_the_policy_waits_and_then_asks_for_more() -> None:
    busy = autoscaling_stats(report(1.0, quick_queue_seconds=9.0, deep=1, deep_queue_seconds=1.0))
    policy = QueueScaling(up_seconds=5.0)
    state: dict[str, Any] = {}
    wanted = []
    for now in (100.0, 103.0, 106.0):
        count, state = policy(context(now, state, busy, busy))
        wanted.append(count)
    assert wanted == [2, 2, 4]


def test_replicas_that_sent_a_part_of_their_figures_are_left_out() -> None:
    calm = autoscaling_stats(report(1.0))
    for name in calm:
        part = {key: 99.0 for key in calm if key != name}
        for order in ((calm, part), (part, calm), (part,)):
            count, state = QueueScaling(up_seconds=0.0)(context(100.0, {}, *order))
            assert count == 2 and state["queues"]["busy_since"] is None
    assert QueueScaling()(context(100.0, {}))[0] == 2


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_the_latest_reason_comes_through_the_status_of_a_deployment(kind: type[Exception]) -> None:
    first, last = (load_failure(e) for e in (ValueError("an older one"), kind("groups=9 is much")))
    text = f"Traceback (most recent call last)\n  {first}\nRetrying.\nTraceback\n  {last}\n"
    error = failure_in(text)
    assert type(error) is kind and str(error) == "groups=9 is much"
    assert str(failure_in("much\n\n  no node has 9 CPUs \n")).endswith("no node has 9 CPUs")
    assert "no reason" in str(failure_in(""))


def test_an_error_of_ray_is_one_sentence() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError("why:\nmuch\n  because")) == "why: because"
    assert first_line(ConnectionError()) == "ConnectionError"
    try:
        raise ConnectionError("Failed to connect") from RuntimeError("RPC error: InvalidAuthToken")
    except ConnectionError as error:
        told = first_line(error)
    assert "token" in told and "RAY_AUTH_MODE=token" in told and "\n" not in told
