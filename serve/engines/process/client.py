"""An engine in another process, which is started again when it ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.engine import CalledEngine, ModelCard, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.engines.process.child_process import GRACE, USUAL, ChildProcess, Heartbeat
from fastslow.serve.engines.process.connection import EngineConnection
from fastslow.serve.engines.process.messages import Drain
from fastslow.serve.engines.settings import EngineSettings

STATS = 1.0  # seconds for figures; those who ask for several engines' wait a little longer


@dataclass(frozen=True, slots=True)
class Restarts:
    """Limits for restarting a process that ended."""

    most: int = 6  # as many ends within `within` seconds are given up on
    within: float = 600.0
    first: float = 0.5  # seconds of the pause before a start; it doubles with each end in that time
    longest: float = 30.0


class EngineClient(CalledEngine):
    """`Engine` in another process. Where that ends by itself, or hangs, answers under way raise `NotReady`, and a new
    one is started. gave_up: done with one sentence when it is not started again. restarts: how often it was."""

    def __init__(
        self,
        settings: EngineSettings,
        restarts: Restarts = Restarts(),
        heartbeat: Heartbeat = USUAL,
    ) -> None:
        self._settings = settings
        self._restarts = restarts
        self._heartbeat = heartbeat
        self._card: ModelCard | None = None
        self._child: ChildProcess | None = None
        self._connection: EngineConnection | None = None  # of a process whose model is loaded
        self._why = "the model is loading"
        self._closing = False
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start the process, and wait until the model is loaded; raises what `StartedEngine.start` does."""
        child = self._child = await ChildProcess.start(self._settings)
        try:
            await self._loaded(child)
        except BaseException:
            await child.end(0.0)
            raise
        self._supervisor = asyncio.create_task(self._supervise(child))

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            raise NotReady(self._why)
        return self._card

    @property
    def loaded(self) -> bool:
        """True while its process runs with its model, and is to stay."""
        return self._connection is not None and not self._closing

    @property
    def ready(self) -> bool:
        return not self.why_not_ready

    @property
    def why_not_ready(self) -> str:
        if self._connection is None or self._closing:
            return self._why
        return self._connection.why_silent

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._child is None else self._child.pid

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        connection = self._connection
        if connection is None or not self.ready:
            raise NotReady(self.why_not_ready, refused=self.loaded)
        number, answer = connection.ask(request)
        try:
            while pieces := await answer.take():
                for piece in pieces:
                    yield piece
        finally:
            connection.leave(number)

    async def call(self, method: str, *arguments: Any) -> Any:
        if self._connection is None:  # while it drains it is there
            raise NotReady(self._why)
        return await self._connection.call(method, *arguments)

    async def stats(self) -> Mapping[str, Any]:
        """Return the engine's figures; where it does not answer, its last ones, which are `age_seconds` old."""
        connection = self._connection
        if connection is None:
            raise NotReady(self._why)
        if not connection.why_silent:
            with suppress(TimeoutError):
                async with asyncio.timeout(STATS):
                    connection.figures, connection.heard = await super().stats(), time.monotonic()
        if not connection.figures:
            raise NotReady(f"the engine gave no figures within {STATS:g} s")
        age = time.monotonic() - connection.heard
        return {**connection.figures, "age_seconds": round(age, 3)}

    async def close(self, drain: float = 0.0) -> None:
        self._closing, self._why = True, "the server is closing"
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        child = self._child
        if child is None:
            return
        try:
            with suppress(NotReady):
                child.connection.send(Drain(drain))
                await asyncio.wait([child.connection.lost], timeout=drain + GRACE)
        except asyncio.CancelledError:
            child.kill()
            raise
        finally:
            self._connection = self._child = None
            child.connection.end(self._why)
            await child.end()

    async def _loaded(self, child: ChildProcess) -> None:
        """Wait until a process has its model; raises what it says, or RuntimeError where it ended."""
        either: list[asyncio.Future[Any]] = [child.connection.loaded, child.connection.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not child.connection.loaded.done():
            raise RuntimeError(f"the engine's process {await child.wait()} while it loaded")
        self._card = child.connection.loaded.result()
        self._connection = child.connection

    async def _supervise(self, child: ChildProcess) -> None:
        """Start a new process whenever one ends."""
        ends: deque[float] = deque()
        how = ""
        while True:
            if self._connection is not None:
                wrong = await self._heartbeat.watch(child.connection)
                if wrong:
                    logger.error("the engine's process {}: it is killed", wrong)
                    child.kill()
                self._connection, self._why = None, "the engine ended and is started again"
                ended = await child.wait()
                said = "the engine ended in the middle of the request; try again soon"
                child.connection.end(said, child.crashed)
                how = f"the engine's process {wrong or ended}"
            now = time.monotonic()
            ends.append(now)
            while ends[0] < now - self._restarts.within:
                ends.popleft()
            if len(ends) >= self._restarts.most:
                often = f"that was end {len(ends)} within {self._restarts.within:g} s"
                self._why = f"the engine is given up: {how}; {often}"
                logger.error(self._why)
                self.gave_up.set_result(self._why)
                return
            pause = min(self._restarts.longest, self._restarts.first * 2 ** (len(ends) - 1))
            logger.error("{}; a new one starts in {:g} s", how, pause)
            await asyncio.sleep(pause)
            try:
                child = self._child = await ChildProcess.start(self._settings)
                await self._loaded(child)
            except (ValueError, RuntimeError, OSError) as error:
                how = str(error)
            else:
                self.restarts += 1
                logger.info("the engine is back")
