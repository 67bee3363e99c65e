"""`RayEngine`: the replicas of a deployment as one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from grpc import RpcError
from loguru import logger
from msgspec import convert
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import Busy, ModelCard, NotReady
from fastslow.serve.engines.process.failures import error_of
from fastslow.serve.ray.broadcast import answers_within
from fastslow.serve.ray.cluster import first_line
from fastslow.serve.ray.deployed import Deployed, Replicas
from fastslow.serve.ray.left_calls import AbandonedCalls
from fastslow.serve.ray.messages import Accepted, Bunch, item_of, packed_ask, returned_of
from fastslow.serve.ray.routed import control, routed_of
from fastslow.serve.ray.stats import StatsSum

LOST = (RayError, RayServeException, RpcError)  # what Ray says where a replica is not there
LOOK = 1.0  # seconds between two looks at how many replicas there are
LOADING = 0.2  # the same while there is none
PATIENCE = (
    15.0  # seconds until a replica must have taken a request; that waits for nothing of its engine
)
SILENT = (
    10.0  # seconds without any item of an answer until its replica is lost: it sends one every two
)
CALL = 15.0  # seconds that a call may take
ABOUT = 5.0  # the same where it waits for no step of the engine
STATS = 1.5  # seconds for figures: /metrics waits for 2
RECENT = 1000  # requests that are over whose replica is known, for their traces
LAST = 5.0  # seconds that answers have to end once they are cancelled
DRAIN_LOOK = 0.05  # seconds between two looks at whether answers are over


class RayEngine:
    """`Engine` over all replicas of a deployment.

    Where a replica ends by itself, answers that it was making raise `NotReady`, which names it; Ray starts
    another one.

    Args:
        deployed: the engines.

    Attributes:
        gave_up: done with one sentence when no replica will run any more.
        replicas: how many there are.
    """

    def __init__(self, deployed: Deployed) -> None:
        self._deployed = deployed
        self._handle: Any = None
        self._stream: Any = None
        self._card: ModelCard | None = None
        self._closing = self._closed = False
        self._running: dict[str, str] = {}  # ids of requests, and who answers them
        self._recent: dict[str, str] = {}  # the same of those that are over
        self._left = AbandonedCalls(PATIENCE)
        self._sum = StatsSum()
        self._missing = 0  # replicas that did not tell their figures
        self._looking: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[None] = loop.create_future()
        self.replicas = Replicas()
        self.gave_up: asyncio.Future[str] = loop.create_future()

    async def start(self) -> None:
        """Deploy, and wait until a replica has its model.

        Raises:
            ValueError: one sentence about what does not fit.
            RuntimeError: Ray or the engine failed.
        """
        opening = asyncio.ensure_future(self._deployed.open())
        either: list[asyncio.Future[Any]] = [opening, self._ending]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():  # Ray may try for minutes
            opening.cancel()
            raise NotReady(self._why)
        self._handle = opening.result()
        self._stream = streaming(self._handle)
        self._card = await self._first_card()
        self._looking = asyncio.create_task(self._look())

    async def _first_card(self) -> ModelCard:
        """What the first replica that runs says of its model. One that ends before it says so is no failure:
        Ray starts another one."""
        silent_since: float | None = None
        while True:
            if self._closing:
                raise NotReady(self._why)
            try:
                self.replicas = await self._deployed.look()
                if self.replicas.failed is not None:
                    raise self.replicas.failed
                if self.replicas.running:
                    async with asyncio.timeout(CALL):
                        data = await self._handle.options(method_name="card").remote()
                    return convert(returned_of(data).value, ModelCard)
                silent_since = None
            except (TimeoutError, *LOST) as error:
                now = asyncio.get_running_loop().time()
                silent_since = now if silent_since is None else silent_since
                if now - silent_since >= CALL:
                    raise RuntimeError(f"no replica answers: {first_line(error)}") from None
                logger.warning("no replica answers yet: {}", first_line(error))
            await asyncio.sleep(LOADING)

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise NotReady(self._why)
        return self._card

    @property
    def ready(self) -> bool:
        return self._card is not None and self.replicas.running > 0 and not self._closing

    @property
    def why_not_ready(self) -> str:
        return "" if self.ready else self._why

    @property
    def _why(self) -> str:
        if self._closing:
            return "the server is closing"
        if self._card is None:
            return "the model is loading"
        return f"no replica runs, {self.replicas.starting} are starting"

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        if not self.ready:
            raise NotReady(self._why)
        response = self._stream.remote(routed_of(ask, self.card), packed_ask(ask))
        replica, over = "", False
        taken = asyncio.ensure_future(anext(response))
        try:
            async with asyncio.timeout(PATIENCE):
                first = item_of(await asyncio.shield(taken))
            assert isinstance(first, Accepted)
            replica = self._running[ask.id] = first.replica
            while True:
                # where a machine is cut off, its connection just stands still, and Ray needs a minute
                async with asyncio.timeout(SILENT):
                    data = await anext(response, None)
                if data is None:
                    break
                bunch = item_of(data)
                assert isinstance(bunch, Bunch)
                for piece in bunch.pieces:
                    yield piece
                if bunch.failure is not None:
                    raise _of(replica, error_of(bunch.failure))
            over = True
        except TimeoutError:
            response.cancel()
            taken.cancel()
            raise _silent(replica) from None
        except LOST as error:
            raise _lost(error, replica or _who(error)) from None
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise NotReady("the replica ended in the middle of the request", replica) from None
        finally:
            if self._running.get(ask.id) == replica:
                del self._running[ask.id]
                self._recent[ask.id] = replica
                if len(self._recent) > RECENT:
                    del self._recent[next(iter(self._recent))]
            if not over:
                self._left.leave(response, taken)

    async def cancel(self, id: str) -> bool:
        return any(await self._about(id, "cancel", ABOUT))

    async def stop_thinking(self, id: str) -> bool:
        return any(await self._about(id, "stop_thinking"))

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        found = await self._about(id, "trace")
        return next((trace for trace in found if trace is not None), None)

    async def stats(self) -> Mapping[str, Any]:
        found, missing = await self._by_replica("stats", seconds=STATS)
        if missing and not found and not self._sum.answered:
            raise NotReady(f"no replica told its figures within {STATS:g} s")
        if missing and not self._missing:  # once, and not with each look
            logger.warning(
                "{} of the replicas did not tell its figures within {:g} s: what it told before counts",
                missing,
                STATS,
            )
        self._missing = missing
        sums, now = self._sum.of(self._sum.with_missing(found, missing)), self.replicas
        return sums | {"replicas_running": now.running, "replicas_starting": now.starting}

    async def tokenize(self, ask: Ask) -> list[int]:
        tokens: list[int] = await self._any("tokenize", routed_of(ask, self.card), packed_ask(ask))
        return tokens

    async def detokenize(self, tokens: list[int]) -> str:
        return str(await self._any("detokenize", control(""), tokens))

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        found = await self._any("token_bytes", control(""), list(tokens))
        return [(data, shown) for data, shown in found]

    async def close(self, drain: float = 0.0) -> None:
        self._closing = True
        if not self._ending.done():
            self._ending.set_result(None)
        await self._answers_over(drain)
        await self._cancel_all()
        await self._answers_over(LAST)
        await self._left.close(LAST)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        if not self._closed:
            self._closed = True
            await self._end_router()
            await self._deployed.close()

    async def _cancel_all(self) -> None:
        """Cancel what runs, all at once: a replica that hangs says nothing, and its answers end with it."""
        calls = [asyncio.ensure_future(self.cancel(id)) for id in list(self._running)]
        if not calls:
            return
        told, silent = await asyncio.wait(calls, timeout=LAST)
        for call in silent:
            call.cancel()
        for call in told:
            if (error := call.exception()) is not None:
                logger.debug("an answer could not be cancelled: {}", error)

    async def _end_router(self) -> None:
        """With autoscaling it goes on to report requests, and joins any cluster for that once its own one is left."""
        if self._handle is None or not self._handle.is_initialized:
            return
        try:
            await asyncio.wait_for(self._handle.shutdown_async(), LAST)
        except (TimeoutError, *LOST) as error:
            logger.debug("the router did not end: {}", error)

    async def _answers_over(self, seconds: float) -> None:
        """Wait until all answers are over, but not for longer."""
        end = asyncio.get_running_loop().time() + seconds
        while self._running and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(DRAIN_LOOK)

    async def _any(self, method: str, *arguments: Any, seconds: float = CALL) -> Any:
        """Call one replica, whichever."""
        if self._handle is None or not self.replicas.running:
            raise NotReady(self._why)
        try:
            async with asyncio.timeout(seconds):
                data = await self._handle.options(method_name=method).remote(*arguments)
        except TimeoutError:
            raise NotReady(f"no replica answered within {seconds:g} s") from None
        except LOST as error:
            raise _lost(error, "") from None
        returned = returned_of(data)
        if returned.failure is not None:
            raise _of(returned.replica, error_of(returned.failure))
        return returned.value

    async def _about(self, id: str, method: str, seconds: float = CALL) -> list[Any]:
        """What is said about a request: by the replica that answers it or did, or by all where another server
        has asked it."""
        replica = self._running.get(id) or self._recent.get(id)
        if replica is not None:
            return [await self._any(method, control(id, replica), seconds=seconds)]
        found, missing = await self._by_replica(method, control(id), seconds=seconds)
        if missing and not any(found.values()):
            raise NotReady(f"a replica did not answer within {seconds:g} s")
        return list(found.values())

    async def _by_replica(
        self, method: str, *arguments: Any, seconds: float
    ) -> tuple[dict[str, Any], int]:
        """Call all replicas; what those say that answer, and how many do not in time."""
        if self._handle is None or not self.replicas.running:
            raise NotReady(self._why)
        try:
            response = self._handle.broadcast(method, *arguments)
            answers, missing = await answers_within(response, seconds)
        except LOST as error:
            raise _lost(error, "") from None
        returned = [returned_of(data) for data in answers if isinstance(data, bytes)]
        return {one.replica: one.value for one in returned if one.failure is None}, missing

    async def _look(self) -> None:
        """Know how many replicas there are."""
        while True:
            await asyncio.sleep(LOOK if self.replicas.running else LOADING)
            try:
                before, self.replicas = self.replicas, await self._deployed.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may see more
                logger.warning("the controller of Ray Serve does not answer: {}", first_line(error))
                continue
            if before.running != self.replicas.running:
                logger.info(
                    "{} replicas run, {} start", self.replicas.running, self.replicas.starting
                )
            if self.replicas.failed is not None and not self.gave_up.done():
                self.gave_up.set_result(f"no replica can be started: {self.replicas.failed}")


def streaming(handle: Any) -> Any:
    """What asks for answers. Two things that Ray Serve does by default cost more than our own work on an item:
    a router in a thread of its own, and values that are objects of Ray's store. Without them an item takes
    half the processor time."""
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=False)
    by_value = handle.options(method_name="stream", stream=True)
    try:
        return by_value.options(_by_reference=False)
    except TypeError:
        logger.warning(
            "this version of Ray sends answers only through its store: a token costs more"
        )
        return by_value


def _of(replica: str, error: Exception) -> Exception:
    if isinstance(error, NotReady):
        error.replica = replica
    return error


def _silent(replica: str) -> NotReady:
    """A replica that says nothing."""
    if not replica:
        return NotReady(f"no replica took the request within {PATIENCE:g} s")
    logger.warning("replica {} said nothing for {:g} s", replica, SILENT)
    return NotReady("the replica fell silent in the middle of the request", replica)


def _who(error: Exception) -> str:
    """Ray's name for a replica that took a request and ended before it said so; "" where none had it. A request
    that never reached its replica Ray sends to another one by itself."""
    return str(error.actor_id or "unknown") if isinstance(error, RayActorError) else ""


def _lost(error: Exception, replica: str) -> Exception:
    """What Ray says, in the words of an engine."""
    if isinstance(error, BackPressureError):
        return Busy("too many requests wait for a replica; try again soon")
    if isinstance(error, RayTaskError):
        logger.error("a replica failed on a request: {}", error)
        return RuntimeError("the replica failed on the request")
    # whoever asks again tells of a replica that had the request, in fewer words than Ray
    logger.log("DEBUG" if replica else "WARNING", "a replica is gone: {}", first_line(error))
    return NotReady("the replica ended in the middle of the request; try again soon", replica)
