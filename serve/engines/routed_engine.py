"""`RoutedEngine`: several engines that are alike, as one engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any, Protocol

from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.engine import CalledEngine, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.replica_stats import StatsSum
from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import RoutedRequest, routed_of
from fastslow.serve.engines.routing.settings import RoutingSettings

LOOK = 0.5  # seconds between two looks at which replicas there are, and how busy
CALL = 15.0  # seconds that a call may take
ABOUT = 5.0  # the same where it waits for no step of the engine
STATS = 1.5  # seconds for figures: /metrics waits for 2
LAST = 5.0  # seconds that answers have to end once they are cancelled
DRAIN_LOOK = 0.05  # seconds between two looks at whether answers are over


class Replicas(Protocol):
    """Engines that are alike. A replica that ends is started again, under another name."""

    gave_up: asyncio.Future[str]  # done with one sentence when no replica will run any more

    @property
    def running(self) -> Mapping[str, ReplicaReport | None]:
        """The replicas that take requests, each with its newest report."""

    @property
    def silent(self) -> Collection[str]:
        """Those of them that have said nothing for some seconds."""

    @property
    def starting(self) -> int:
        """The number of replicas that load their model."""

    async def start(self) -> ModelCard:
        """Wait until the first replica has its model; raises what `StartedEngine.start` does."""

    def stream(self, name: str, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        """`Engine.stream` of one replica."""

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        """Another method of `Engine`, of one replica."""

    async def close(self) -> None:
        """End all of them."""


class RoutedEngine(CalledEngine):
    """`Engine` over several replicas; a `ReplicaChooser` says which of them answers a request. Where a replica ends,
    answers that it was making raise `NotReady` with the replica's name."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._chooser = ReplicaChooser(RoutingSettings(), time.time)
        self._card: ModelCard | None = None
        self._closing = self._closed = False
        self._running: dict[str, str] = {}  # by request: the replica that answers it
        self._known: dict[str, ReplicaReport | None] = {}  # what the chooser knows
        self._failed: set[str] = set()  # replicas that have not reported since
        self._numbers = count()
        self._sum = StatsSum()
        self._starting: asyncio.Future[ModelCard] | None = None
        self._looking: asyncio.Task[None] | None = None
        self.gave_up = replicas.gave_up

    async def start(self) -> None:
        self._starting = asyncio.ensure_future(self._replicas.start())
        try:
            self._card = await self._starting
        except asyncio.CancelledError:
            if not self._closing:
                raise
            raise NotReady(self.why_not_ready) from None
        self._look()
        self._looking = asyncio.create_task(self._keep_looking())

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise NotReady(self.why_not_ready)
        return self._card

    @property
    def ready(self) -> bool:
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        if self._closing:
            return "the server is closing"
        if self._card is None:
            return "the model is loading"
        if running := self._replicas.running:
            silent = len(running) == len(self._replicas.silent)
            return f"no replica answers now, {len(running)} run" if silent else ""
        return f"no replica runs, {self._replicas.starting} are starting"

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        routed = routed_of(request, self.card)
        # a request that is asked again elsewhere keeps its id, and counts by itself
        id = f"{request.id}/{next(self._numbers)}"
        avoid = (*routed.avoid, *self._failed, *self._replicas.silent)
        routed = replace(routed, id=id, avoid=avoid)
        name = self._choose(routed)
        self._chooser.routed(routed, name)
        self._running[request.id] = name
        try:
            async with aclosing(self._replicas.stream(name, request)) as pieces:
                async for piece in pieces:
                    yield piece
        except NotReady as error:
            error.replica = name
            self._failed.add(name)
            self._look()
            raise
        finally:
            self._chooser.ended(routed.id)
            if self._running.get(request.id) == name:
                del self._running[request.id]

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method that any replica can answer."""
        return await self._call(self._any(), method, *arguments)

    async def cancel(self, id: str) -> bool:
        return any(await self._about(id, "cancel", ABOUT))

    async def stop_thinking(self, id: str) -> bool:
        return any(await self._about(id, "stop_thinking"))

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        found = await self._about(id, "trace")
        return next((trace for trace in found if trace is not None), None)

    async def stats(self) -> Mapping[str, Any]:
        found, missing = await self._all("stats", seconds=STATS)
        if missing and not found and not self._sum.answered:
            raise NotReady(f"no replica sent its figures within {STATS:g} s")
        sums = self._sum.of(found, missing)
        running, starting = len(self._replicas.running), self._replicas.starting
        return sums | {"replicas_running": running, "replicas_starting": starting}

    async def close(self, drain: float = 0.0) -> None:
        self._closing = True
        if self._starting is not None:
            self._starting.cancel()
        await self._answers_over(drain)
        # all at once, and each for a few seconds: a replica that hangs says nothing, and its answers end with it
        cancels = (self.cancel(id) for id in list(self._running))
        await asyncio.gather(*cancels, return_exceptions=True)
        await self._answers_over(LAST)
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if not self._closed:
            self._closed = True
            await self._replicas.close()

    def _choose(self, routed: RoutedRequest) -> str:
        if not self.ready:
            raise NotReady(self.why_not_ready)
        ranked = (name for name in self._chooser.rank(routed) if name in self._replicas.running)
        # the chooser may not know yet what has come since the last look
        return next(ranked, None) or self._any()

    def _any(self) -> str:
        answering = set(self._replicas.running).difference(self._replicas.silent)
        if not answering:
            raise NotReady(self.why_not_ready)
        return random.choice([*answering])

    async def _call(self, name: str, method: str, *arguments: Any, seconds: float = CALL) -> Any:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._replicas.call(name, method, *arguments)
        except TimeoutError:
            if not limit.expired():
                raise
            raise NotReady(f"a replica did not answer within {seconds:g} s") from None

    async def _about(self, id: str, method: str, seconds: float = CALL) -> list[Any]:
        """Return what is known of a request, by its replica; by all where it is over, or another server sent it."""
        name = self._running.get(id)
        if name is not None:
            return [await self._call(name, method, id, seconds=seconds)]
        found, missing = await self._all(method, id, seconds=seconds)
        if missing and not any(found.values()):
            raise NotReady(f"a replica did not answer within {seconds:g} s")
        return list(found.values())

    async def _all(
        self, method: str, *arguments: Any, seconds: float
    ) -> tuple[dict[str, Any], int]:
        """Return what each replica says that answers in time, by name, and the number of those that do not."""
        names = list(self._replicas.running)
        if not names:
            raise NotReady(self.why_not_ready)
        calls = (self._call(name, method, *arguments, seconds=seconds) for name in names)
        answers = zip(names, await asyncio.gather(*calls, return_exceptions=True))
        found = {name: one for name, one in answers if not isinstance(one, BaseException)}
        return found, len(names) - len(found)

    async def _answers_over(self, seconds: float) -> None:
        """Wait until all answers are over, but not for longer."""
        end = asyncio.get_running_loop().time() + seconds
        while self._running and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(DRAIN_LOOK)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._look()

    def _look(self) -> None:
        """Pass what has changed to the chooser."""
        before, self._known = self._known, dict(self._replicas.running)
        if before.keys() != self._known.keys():
            self._chooser.set_replicas(self._known)
            logger.info("{} replicas run, {} start", len(self._known), self._replicas.starting)
        for name, report in self._known.items():
            if report is not None and report is not before.get(name):
                self._chooser.report(name, report)
                self._failed.discard(name)
        self._failed &= self._known.keys()
