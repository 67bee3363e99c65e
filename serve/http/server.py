"""The HTTP server's life: it listens while the model loads, serves, drains, and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from loguru import logger

from fastslow.serve.api.engine import Engine, ModelCard, StartedEngine
from fastslow.serve.http.client_connection import Connection

KEEP_ALIVE = 75  # seconds that an idle connection stays open
LAST = 5  # seconds for the last bytes of answers, once the engine is closed
# they would end the process, too; Windows has none of them
ALSO = [getattr(signal, name, 0) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2")]


class StoppedError(RuntimeError):
    """Ctrl-C came twice: what ran was cut off."""


class Server(uvicorn.Server):
    """Serves an application until a signal comes, and then drains. SIGTERM, SIGHUP or Ctrl-C: the engine takes no more
    requests, those that run have `drain` seconds, and meanwhile connections are still accepted, and get HTTP 503.
    Ctrl-C again ends at once. SIGUSR1 and SIGUSR2 do nothing."""

    def __init__(self, app: FastAPI, engine: Engine, drain: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",  # it has none; uvicorn would leave its task running, and log that as an error
                log_config=None,
                log_level="error",  # what clients do wrong is no news
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST,
            )
        )
        self._engine, self._seconds = engine, drain
        self._loop = asyncio.get_running_loop()
        self.draining: asyncio.Task[None] | None = None  # since a signal came
        self.stopped = False

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Catch the signals of `ALSO`, too. A signal that is ignored already, as SIGHUP under nohup, stays so."""
        with super().capture_signals():
            ours = signal.getsignal(signal.SIGTERM) == self.handle_exit  # as in the main thread
            for number in filter(None, ALSO if ours else ()):
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self.handle_exit)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._signalled, sig)

    def _signalled(self, sig: int) -> None:
        if sig in ALSO[1:]:
            logger.info("{} means nothing here: it is ignored", signal.Signals(sig).name)
        elif self.draining is None:
            logger.info("no more requests are taken; those that run have {:g} s", self._seconds)
            self.draining = self._loop.create_task(self._drain())
        elif sig == signal.SIGINT:
            self.stopped = self.force_exit = self.should_exit = True
            self.draining.cancel()

    async def _drain(self) -> None:
        try:
            await self._engine.close(self._seconds)
        finally:
            self.should_exit = True


async def serve(
    app: FastAPI,
    engine: Engine,
    listener: socket.socket,
    drain: float,
    ready: Callable[[ModelCard], None],
    started: StartedEngine | None = None,
) -> None:
    """Serve until a signal comes and all is drained. app: says that it is not ready while the model loads. engine:
    closed at the end. drain: seconds that running requests have when a signal comes. ready: called once the model is
    loaded. started: what is to be started, if anything is. ValueError: the model cannot be loaded: one sentence.
    RuntimeError: the engine ended, and is not started again. StoppedError: Ctrl-C came twice."""
    server = Server(app, engine, drain)
    serving = asyncio.create_task(server.serve([listener]))
    failure: BaseException | None = None
    try:
        if started is not None:
            await started.start()
        ready(engine.card)
        if started is not None:
            either: list[asyncio.Future[Any]] = [serving, started.gave_up]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if started.gave_up.done():
                failure = RuntimeError(started.gave_up.result())
    except Exception as error:  # noqa: BLE001 - raised below, once the server has ended
        if server.draining is None:
            failure = error
    if failure is not None:
        server.should_exit = True
    await serving
    await engine.close()
    if server.stopped:
        raise StoppedError("stopped; what ran was cut off")
    if failure is not None:
        raise failure
