"""`EngineClient`: an engine in a process of its own, which is started again when it ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loguru import logger

from fastslow.output import Piece
from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import ModelCard, NotReady
from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.engines.process.answer_stream import UNREAD
from fastslow.serve.engines.process.child_process import GRACE, ChildProcess
from fastslow.serve.engines.process.heartbeat import USUAL, Heartbeat
from fastslow.serve.engines.process.link import EngineConnection, as_fields
from fastslow.serve.engines.process.messages import (
    Cancel,
    Detokenize,
    Drain,
    GetStats,
    GetTokenBytes,
    GetTrace,
    StopThinking,
    Tokenize,
)


@dataclass(frozen=True, slots=True)
class Restarts:
    """When a process that ended is started again.

    Attributes:
        most: as many ends within `within` seconds are given up on.
        first, longest: seconds of the pause before a start; it doubles with each end within that time.
    """

    most: int = 6
    within: float = 600.0
    first: float = 0.5
    longest: float = 30.0


class EngineClient:
    """`Engine` in a process of its own.

    Where that ends by itself, or hangs, answers under way raise `NotReady`, and a new one is started.

    Args:
        settings: of the engine.
        restarts: when it is started again.
        unread: seconds after which an answer that nobody reads is cut.
        heartbeat: when it counts as hung, and is killed.

    Attributes:
        gave_up: done with one sentence when it is not started again.
        restarts: how often it was.
    """

    def __init__(
        self,
        settings: EngineSettings,
        restarts: Restarts = Restarts(),
        unread: float = UNREAD,
        heartbeat: Heartbeat = USUAL,
    ) -> None:
        self._settings = settings
        self._restarts = restarts
        self._unread = unread
        self._heartbeat = heartbeat
        self._card: ModelCard | None = None
        self._child: ChildProcess | None = None
        self._link: EngineConnection | None = None  # of a process whose model is loaded
        self._why = "the model is loading"
        self._closing = False
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0
        self.gave_up: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start the process, and wait until the model is loaded.

        Raises:
            ValueError: one sentence about what does not fit.
            RuntimeError: it failed, or ended.
        """
        child = await self._begin()
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
    def ready(self) -> bool:
        return self._link is not None and not self._closing

    @property
    def why_not_ready(self) -> str:
        return "" if self.ready else self._why

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._child is None else self._child.pid

    async def stream(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        link = self._ready_link()
        number, answer = link.ask(ask, self._unread)
        try:
            while pieces := await answer.take():
                for piece in pieces:
                    yield piece
        finally:
            link.leave(number)

    async def cancel(self, id: str) -> bool:
        return bool(await self._running_link().call(Cancel, id))

    async def stop_thinking(self, id: str) -> bool:
        return bool(await self._running_link().call(StopThinking, id))

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = await self._running_link().call(GetTrace, id)
        return found

    async def stats(self) -> Mapping[str, Any]:
        stats: Mapping[str, Any] = await self._running_link().call(GetStats)
        return stats

    async def tokenize(self, ask: Ask) -> list[int]:
        tokens: list[int] = await self._running_link().call(Tokenize, as_fields(ask))
        return tokens

    async def detokenize(self, tokens: list[int]) -> str:
        return str(await self._running_link().call(Detokenize, tokens))

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        found = await self._running_link().call(GetTokenBytes, list(tokens))
        return [(data, shown) for data, shown in found]

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
                child.link.send(Drain(drain))
                await asyncio.wait([child.link.lost], timeout=drain + GRACE)
        except asyncio.CancelledError:
            child.kill()
            raise
        finally:
            self._link = self._child = None
            child.link.end(self._why)
            await child.end()

    def _ready_link(self) -> EngineConnection:
        if self._link is None or self._closing:
            raise NotReady(self._why)
        return self._link

    def _running_link(self) -> EngineConnection:
        """Also while it drains."""
        if self._link is None:
            raise NotReady(self._why)
        return self._link

    async def _begin(self) -> ChildProcess:
        self._child = await ChildProcess.start(self._settings)
        return self._child

    async def _loaded(self, child: ChildProcess) -> None:
        """Wait until a process has its model.

        Raises:
            ValueError, RuntimeError: as the process says; or it ended.
        """
        either: list[asyncio.Future[Any]] = [child.link.loaded, child.link.lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not child.link.loaded.done():
            raise RuntimeError(f"the engine's process {await child.wait()} while it loaded")
        self._card = child.link.loaded.result()
        self._link = child.link

    async def _supervise(self, child: ChildProcess) -> None:
        """Start a new process whenever one ends."""
        ends: deque[float] = deque()
        how = ""
        while True:
            if self._link is not None:
                wrong = await self._heartbeat.watch(child.link)
                if wrong:
                    logger.error("the engine's process {}: it is killed", wrong)
                    child.kill()
                self._link, self._why = None, "the engine ended and is started again"
                child.link.end("the engine ended in the middle of the request; try again soon")
                ended = await child.wait()
                how = f"the engine's process {wrong or ended}"
            now = time.monotonic()
            ends.append(now)
            while ends[0] < now - self._restarts.within:
                ends.popleft()
            if len(ends) >= self._restarts.most:
                self._give_up(f"{how}; that was end {len(ends)} within {self._restarts.within:g} s")
                return
            pause = min(self._restarts.longest, self._restarts.first * 2 ** (len(ends) - 1))
            logger.error("{}; a new one starts in {:g} s", how, pause)
            await asyncio.sleep(pause)
            try:
                child = await self._begin()
                await self._loaded(child)
            except (ValueError, RuntimeError, OSError) as error:
                how = str(error)
            else:
                self.restarts += 1
                logger.info("the engine is back")

    def _give_up(self, why: str) -> None:
        self._why = f"the engine is given up: {why}"
        logger.error(self._why)
        if not self.gave_up.done():
            self.gave_up.set_result(self._why)
