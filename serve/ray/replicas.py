"""`RayReplicas`: the replicas of a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from typing import Any

from grpc import RpcError
from loguru import logger
from msgspec import convert
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from fastslow.output import Piece
from fastslow.serve.api.engine import Busy, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.messages import error_of, packed, plain
from fastslow.serve.engines.routing.report import ReplicaReport, read_report
from fastslow.serve.ray.cluster import first_line
from fastslow.serve.ray.deployments import DeploymentState, FoundDeployment
from fastslow.serve.ray.messages import Reply, reply_of
from fastslow.serve.ray.router import RUNNING

LOST = (RayError, RayServeException, RpcError)  # what Ray raises where a replica is not there
LOOK = 1.0  # seconds between two looks at how many replicas there are
LOADING = 0.2  # the same while there is none
PATIENCE = 15.0  # seconds in which a replica must take a request; that needs no step of its engine
SILENT = 10.0  # seconds without an item of an answer, after which its replica is lost: one comes each 2 s
CALL = 15.0  # seconds until the first replica must answer
LAST = 5.0  # seconds for what ends


class RayReplicas:
    """`Replicas` of a deployment, which Ray Serve starts, watches and scales."""

    def __init__(self, deployment: FoundDeployment) -> None:
        self._deployment = deployment
        self._handle: Any = None
        self._stream: Any = None
        self._abandoned: set[asyncio.Task[None]] = set()
        self._latest: Mapping[str, Mapping[str, Any]] = {}  # as the router has it
        self._known: dict[str, ReplicaReport | None] = {}  # the same, read
        self._looking: asyncio.Task[None] | None = None
        self.state = DeploymentState()
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> Mapping[str, ReplicaReport | None]:
        latest = RUNNING.get(self._deployment.name, {})
        if latest is not self._latest:
            before, self._latest = self._latest, latest
            self._known = {
                id: self._known.get(id) if before.get(id) == values else read_report(values)
                for id, values in latest.items()
            }
        return self._known

    @property
    def silent(self) -> Collection[str]:
        return ()  # Ray replaces them

    @property
    def starting(self) -> int:
        return self.state.starting

    async def start(self) -> ModelCard:
        self._handle = await self._deployment.open()
        self._stream = self._handle.options(method_name="stream", stream=True)
        card = await self._first_card()
        self._looking = asyncio.create_task(self._look())
        return card

    async def stream(self, name: str, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        response = self._stream.remote(name, packed(plain([request])))
        taken, over, accepted = asyncio.ensure_future(anext(response)), False, False
        try:
            async with asyncio.timeout(PATIENCE):
                _check(name, reply_of(await asyncio.shield(taken)))
            accepted = True
            while True:
                # where a machine is cut off, its connection just stands still, and Ray needs a minute
                async with asyncio.timeout(SILENT):
                    data = await anext(response, None)
                if data is None:
                    break
                item = reply_of(data)
                for piece in item.pieces:
                    yield piece
                _check(name, item)
            over = True
        except TimeoutError:
            response.cancel()
            taken.cancel()
            raise _silent(name, accepted) from None
        except LOST as error:
            raise _lost(error, accepted) from None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise NotReady("the replica ended in the middle of the request") from None
        finally:
            if not over:
                self._abandon(response, taken)

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        handle = self._handle.options(method_name="call")
        try:
            data = await handle.remote(name, method, packed(plain(arguments)))
        except LOST as error:
            raise _lost(error, False) from None
        reply = reply_of(data)
        _check(name or reply.replica, reply)
        return reply.value

    async def close(self) -> None:
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=LAST)
        ending = [*self._abandoned, *filter(None, [self._looking])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        if self._handle is not None and self._handle.is_initialized:
            # else it reports requests to the autoscaler, and joins any cluster for that once its own one is left
            try:
                await asyncio.wait_for(self._handle.shutdown_async(), LAST)
            except (TimeoutError, *LOST) as error:
                logger.debug("the router did not end: {}", error)
        await self._deployment.close()
        RUNNING.pop(self._deployment.name, None)

    async def _first_card(self) -> ModelCard:
        """The card of the first replica that runs; where one ends before it answers, Ray starts another one."""
        silent_since: float | None = None
        while True:
            try:
                self.state = await self._deployment.look()
                if self.state.failed is not None:
                    raise self.state.failed
                if self.state.running:
                    async with asyncio.timeout(CALL):
                        card = convert(await self.call("", "card"), ModelCard)
                    await self._wait_for_router()
                    return card
                silent_since = None
            except (TimeoutError, NotReady, *LOST) as error:
                now = asyncio.get_running_loop().time()
                silent_since = now if silent_since is None else silent_since
                if now - silent_since >= CALL:
                    raise RuntimeError(f"no replica answers: {first_line(error)}") from None
                logger.warning("no replica answers yet: {}", first_line(error))
            await asyncio.sleep(LOADING)

    async def _wait_for_router(self) -> None:
        async with asyncio.timeout(CALL):
            while not self.running:
                await asyncio.sleep(LOADING)

    def _abandon(self, response: Any, first: asyncio.Future[bytes]) -> None:
        """End a call whose answer nobody wants. Ray loses sight of a call that is cancelled in the moment at which
        a replica takes it: its answer would be made to the end, and count as running for ever. So it is
        cancelled once it is taken, which its first item says."""
        if first.done():
            response.cancel()
            return
        task = asyncio.create_task(_cancel_once_taken(response, first))
        self._abandoned.add(task)
        task.add_done_callback(self._abandoned.discard)

    async def _look(self) -> None:
        """Know how many replicas start, and whether none can."""
        while True:
            await asyncio.sleep(LOOK if self.state.running else LOADING)
            try:
                self.state = await self._deployment.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may see more
                logger.warning("the controller of Ray Serve does not answer: {}", first_line(error))
                continue
            if self.state.failed is not None and not self.gave_up.done():
                self.gave_up.set_result(f"no replica can be started: {self.state.failed}")


def _check(name: str, reply: Reply) -> None:
    """Raises what went wrong there, or NotReady where another replica answers than the named one."""
    if reply.replica != name:
        raise NotReady("the replica is gone", refused=True)
    if reply.failure is not None:
        raise error_of(reply.failure)


async def _cancel_once_taken(response: Any, first: asyncio.Future[bytes]) -> None:
    try:
        await asyncio.wait([first], timeout=PATIENCE)
    finally:
        response.cancel()
        first.cancel()
    with suppress(Exception, asyncio.CancelledError):
        await first


def _silent(name: str, accepted: bool) -> NotReady:
    if not accepted:
        return NotReady(f"no replica took the request within {PATIENCE:g} s", refused=True)
    logger.warning("replica {} said nothing for {:g} s", name, SILENT)
    return NotReady("the replica fell silent in the middle of the request")


def _lost(error: Exception, accepted: bool) -> Exception:
    """Convert an error of Ray's to an error of an engine. accepted: the replica had the request."""
    if isinstance(error, BackPressureError):
        return Busy("too many requests wait for a replica; try again soon")
    if isinstance(error, RayTaskError):
        logger.error("a replica failed on a request: {}", error)
        return RuntimeError("the replica failed on the request")
    # a replica may have taken a request and ended before it said so; any other error of Ray's says that it did not
    began = accepted or isinstance(error, RayActorError)
    logger.debug("a replica is gone: {}", first_line(error))
    said = "the replica ended in the middle of the request; try again soon"
    return NotReady(said, refused=not began)
