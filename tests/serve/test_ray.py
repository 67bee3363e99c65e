"""Replicas on Ray, from what Ray and a replica give; no cluster is needed. With a cluster: test_replicas.py."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import TINY
from loops import within
from msgspec import to_builtins
from ray import ActorID
from ray.exceptions import ActorUnavailableError
from routing_tools import report
from serve_engines import asked

from fastslow import LLM, Piece
from fastslow.async_llm import MAX_WAITING
from fastslow.serve.api.engine import NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import packed, plain
from fastslow.serve.engines.replica_settings import ReplicaSettings
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.ray import replica as replica_module
from fastslow.serve.ray import replicas as replicas_module
from fastslow.serve.ray.cluster import first_line
from fastslow.serve.ray.deployments import SPARE, DeploymentState, FoundDeployment, engines, lacking
from fastslow.serve.ray.messages import Reply, failure_in, load_failure, reply_of
from fastslow.serve.ray.replica import EngineReplica
from fastslow.serve.ray.replicas import RayReplicas
from fastslow.serve.ray.router import RUNNING, NamedReplicaRouter
from fastslow.serve.ray.scaling import QueueScaling, autoscaling_stats

APP = "an application"
PIECES = [Piece("one", token_ids=[1]), Piece(" two", token_ids=[2])]
GONE = ActorUnavailableError("it ended", ActorID.nil().binary())
OF_B = packed(Reply("b", value=True))
CARD = packed(Reply("a", value=to_builtins(TINY)))


class Response:
    """The items of an answer as a replica sends them. As with Ray's, a cancel before it is taken cancels nothing.

    Args:
        taken: whether a replica has taken the request; else a test says so later.
        silent: nothing more comes after the items.
    """

    def __init__(self, items: Iterable[bytes], taken: bool = True, silent: bool = False) -> None:
        self._items = iter(items)
        self._silent = silent
        self.taken = asyncio.Event()
        self.cancelled = 0
        if taken:
            self.taken.set()

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        await self.taken.wait()
        for item in self._items:
            return item
        if self._silent:
            await asyncio.Future()
        raise StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled += self.taken.is_set()


def next_of(things: list[Any]) -> Any:
    """The next, and the last again and again. Errors are raised."""
    found = things.pop(0) if len(things) > 1 else things[0]
    if isinstance(found, Exception):
        raise found
    return found


class Handle:
    """Of replicas that all do the same. It needs no start.

    Args:
        items: of each answer after the first one.
        accepts: who takes it.
        replies: what calls give, one after the other.
        kept: for each `Response`.
    """

    is_initialized = True

    def __init__(
        self, *items: Reply, accepts: str = "a", replies: Sequence[bytes | Exception] | None = None, **kept: bool
    ) -> None:
        self._items = [packed(item) for item in (Reply(accepts), *items)]
        self._replies = None if replies is None else list(replies)
        self._kept = kept
        self.responses: list[Response] = []

    def options(self, **options: Any) -> Handle:
        return self

    def remote(self, name: str, *arguments: Any) -> Any:
        if self._replies is not None:
            return self._reply(self._replies)
        self.responses.append(Response(self._items, **self._kept))
        return self.responses[-1]

    async def _reply(self, replies: list[Any]) -> Any:
        return next_of(replies) if replies else await asyncio.Future()

    async def shutdown_async(self) -> None:
        pass


class Deployment(FoundDeployment):
    """Looks at it give these, and the last one again and again."""

    def __init__(self, handle: Handle, *looks: Exception | DeploymentState) -> None:
        super().__init__(handle, APP)
        self.looks = list(looks or [DeploymentState(running=2)])

    async def look(self) -> Any:
        return next_of(self.looks)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOADING": 0.001, "LOOK": 0.001, "PATIENCE": 0.1, "SILENT": 0.1}.items():
        monkeypatch.setattr(replicas_module, name, seconds)
    monkeypatch.setitem(RUNNING, APP, {"a": {}})


def replicas_of(handle: Handle) -> RayReplicas:
    own = RayReplicas(Deployment(handle))
    own._handle = own._stream = handle
    return own


async def all_of(own: RayReplicas) -> list[Piece]:
    return [piece async for piece in own.stream("a", asked())]


@within()
async def test_a_whole_answer_is_not_cancelled_and_one_that_is_left_is() -> None:
    handle = Handle(Reply("a", PIECES[:1]), Reply("a"), Reply("a", PIECES[1:]))
    own = replicas_of(handle)
    assert await all_of(own) == PIECES
    left = own.stream("a", asked())
    assert await anext(left) == PIECES[0]
    await left.aclose()
    assert [response.cancelled for response in handle.responses] == [0, 1]


@within()
async def test_where_its_replica_is_gone_another_one_is_not_used_unseen() -> None:
    """Else a cancel would be sent to the replica that is gone."""
    handle = Handle(Reply("b", PIECES), accepts="b")
    with pytest.raises(NotReady, match="the replica is gone") as raised:
        await all_of(replicas_of(handle))
    assert raised.value.refused and handle.responses[0].cancelled == 1
    with pytest.raises(NotReady, match="the replica is gone"):
        await replicas_of(Handle(replies=[OF_B])).call("a", "cancel", "one")


@within()
async def test_a_call_that_is_left_ends_once_it_is_taken() -> None:
    handle = Handle(taken=False)
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


@within()
async def test_a_replica_that_says_nothing_is_left() -> None:
    own = replicas_of(Handle(taken=False))
    with pytest.raises(NotReady, match=r"no replica took the request within 0\.1 s"):
        await all_of(own)
    await own.close()
    with pytest.raises(NotReady, match="the replica fell silent") as raised:
        await all_of(replicas_of(Handle(silent=True)))
    assert not raised.value.refused, "it may have ended because of the request"


@within()
async def test_replicas_that_end_before_they_give_their_card_are_waited_for(logged: list[str]) -> None:
    own = RayReplicas(Deployment(Handle(replies=[GONE, GONE, CARD]), GONE, GONE, DeploymentState(running=2)))
    assert await own.start() == TINY and own.running == {"a": None}
    await own.close()
    assert sum("no replica answers yet" in line for line in logged) == 4


@within()
async def test_where_none_ever_answers_the_start_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_module, "CALL", 0.05)
    for look in (DeploymentState(running=2), GONE):
        with pytest.raises(RuntimeError, match="^no replica answers: ") as raised:
            await RayReplicas(Deployment(Handle(replies=[]), look)).start()
        assert "\n" not in str(raised.value)


@within()
async def test_a_look_that_fails_is_not_the_last(logged: list[str]) -> None:
    there = DeploymentState(running=1)
    none = DeploymentState(failed=RuntimeError("no node has it"))
    looks: list[Any] = [there, KeyError("not what Ray raises"), there, there, none]
    own = RayReplicas(Deployment(Handle(replies=[CARD]), *looks))
    await own.start()
    assert await own.gave_up == "no replica can be started: no node has it"
    await own.close()
    assert sum("controller of Ray Serve does not answer" in line for line in logged) == 1


class Engine:
    """Its answer comes once it may, and ends by its own limit of time."""

    def __init__(self) -> None:
        self.may = asyncio.Event()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        await self.may.wait()
        yield Piece(text="at last", token_ids=[1])
        raise TimeoutError("the engine has a limit of time")


@within()
async def test_a_replica_says_that_it_is_there_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "ALIVE", 0.05)
    own: Any = SimpleNamespace(_id="this", _engine=(engine := Engine()))
    own._fill = partial(EngineReplica._fill, own)
    stream = EngineReplica.stream(own, "this", packed(plain([asked()])))
    silent = [reply_of(await anext(stream)) for _ in range(4)]
    engine.may.set()
    *more, answer, last = [reply_of(data) async for data in stream]
    assert all(item == Reply("this") for item in (*silent, *more))
    assert answer.pieces[0].text == "at last" and answer.failure is None
    assert last.failure is not None, "no pause, but an error"


def replica(name: str, at: int = 0) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name), routing_stats={"at": at})


class Router(NamedReplicaRouter):
    """Without Ray's own part."""

    app_name = APP

    def __init__(self) -> None:
        self.lengths: dict[Any, int] = {}

    @property
    def replica_queue_len_cache(self) -> Any:
        def update(id: Any, length: int) -> None:
            self.lengths[id.unique_id] = length

        return SimpleNamespace(get=lambda id: self.lengths.get(id.unique_id), update=update)


@within()
async def test_a_call_goes_to_the_replica_that_it_names() -> None:
    def named(name: str) -> Any:
        return SimpleNamespace(args=(name, "call"))

    router, a, b = Router(), replica("a"), replica("b")
    assert await router.choose_replicas([a, b], named("b")) == [[b]]
    assert list(router.lengths) == ["b"], "Ray does not ask it first"
    assert await router.choose_replicas([a, b], named("")) == [[a, b]]
    assert await router.choose_replicas([a], named("b")) == [[a]], "its answer says who it is"


def test_reports_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NamedReplicaRouter.__base__, "update_replicas", lambda *_: None)
    Router().update_replicas([replica("a", 1), replica("b", 2)])
    assert RUNNING[APP] == {"a": {"at": 1}, "b": {"at": 2}}


def look(now: float, state: dict[str, Any], *stats: dict[str, float]) -> tuple[int, dict[str, Any]]:
    """At what Ray gives its policy: each figure by replica. A new replica has sent some of them only."""
    names = {name for one in stats for name in one}
    context: Any = SimpleNamespace(
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        aggregated_metrics={name: {f"r{n}": one[name] for n, one in enumerate(stats) if name in one} for name in names},
        target_num_replicas=2,
        policy_state=state,
        current_time=now,
    )
    return QueueScaling()(context)


def test_the_policy_waits_and_then_asks_for_more_by_what_is_whole() -> None:
    busy = autoscaling_stats(report(1.0, quick_queue_seconds=9.0, deep=1, deep_queue_seconds=1.0))
    state: dict[str, Any] = {}
    for now, wanted in ((100.0, 2), (103.0, 2), (106.0, 4)):
        count, state = look(now, state, busy, busy)
        assert count == wanted
    for name in busy:
        count, state = look(100.0, {}, {key: 99.0 for key in busy if key != name}, autoscaling_stats(report(1.0)))
        assert count == 2 and state["queues"]["busy_since"] is None


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_the_latest_reason_comes_through_the_status_of_a_deployment(kind: type[Exception]) -> None:
    first, last = (load_failure(e) for e in (ValueError("an older one"), kind("groups=9 is much")))
    error = failure_in(f"Traceback (most recent call last)\n  {first}\nRetrying.\nTraceback\n  {last}\n")
    assert type(error) is kind and str(error) == "groups=9 is much"
    assert str(failure_in("much\n\n  no node has 9 CPUs \n")).endswith("no node has 9 CPUs")
    assert "no reason" in str(failure_in(""))


def test_an_error_of_ray_is_one_sentence() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError("why:\nmuch\n  because")) == "why: because"
    assert first_line(ConnectionError()) == "ConnectionError"
    error = ConnectionError("Failed to connect")
    error.__cause__ = RuntimeError("RPC error: InvalidAuthToken")
    assert "token" in (found := first_line(error)) and "RAY_AUTH_MODE=token" in found and "\n" not in found


def deployed(settings: ReplicaSettings, **options: Any) -> Any:
    return engines(EngineSettings("a-model", "a-model", options), settings, {})._bound_deployment


def test_what_ray_serve_is_asked_for() -> None:
    scaling = deployed(ReplicaSettings(1, 4))._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    assert scaling.policy.policy_function == "fastslow.serve.ray.scaling:QueueScaling"
    # Ray holds its own delays against policies too, and this one asks only once
    assert scaling.upscale_delay_s == scaling.downscale_delay_s == 0
    assert deployed(ReplicaSettings(2, 2)).num_replicas == 2
    # ranks are on one node and share its cores
    made = deployed(ReplicaSettings(cpus=4), parallel="ep=2")
    assert made._replica_config.placement_group_bundles == [{"CPU": 4}]
    assert made._replica_config.placement_group_strategy == "STRICT_PACK" and made.init_args[0]["threads"] == 2
    # the engine itself says that it is busy, and Ray holds nothing back
    usual = deployed(ReplicaSettings())._deployment_config.max_ongoing_requests
    more = deployed(ReplicaSettings(), max_running=164)._deployment_config.max_ongoing_requests
    default = inspect.signature(LLM).parameters["max_running"].default
    assert usual == default + MAX_WAITING + SPARE and more == usual + 164 - default


def test_what_a_cluster_has_too_little_of_is_named() -> None:
    there = {"CPU": 4.0, "GPU": 1.0}
    assert lacking(ReplicaSettings(2, 8, cpus=2, resources={"GPU": 0.5}), there) is None
    assert lacking(ReplicaSettings(2, 2, cpus=3), there) == (
        "replicas=2 with CPU=3 for each is more than the cluster has: CPU=4"
    )
    assert lacking(ReplicaSettings(resources={"NPU": 1.5}), there) == (
        "replicas=1 with NPU=1.5 for each is more than the cluster has: NPU=0"
    )
