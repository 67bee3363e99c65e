"""The engine's process: `python -m fastslow.serve.engines.process.child FD`, where FD is a connected socket.

It ends with the server's process, however that ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from fastslow.output import Piece
from fastslow.serve.api.engine import called
from fastslow.serve.engines.process.messages import (
    Answers,
    Call,
    CallResult,
    Drain,
    Failure,
    FrameReader,
    LeaveAnswer,
    NotLoaded,
    Ready,
    Start,
    StartAnswer,
    ToEngine,
    ToServer,
    arguments_of,
    failure_of,
    frame,
)
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.http.listen import run
from fastslow.serve.observe.logs import ServerLog

if TYPE_CHECKING:
    from fastslow.serve.engines.local import LocalEngine

LAST = 3.0  # seconds for the last bytes, and to end what runs


class EngineServer(asyncio.Protocol):
    """The engine's end of the connection: does what comes in. loaded: called once the model is there."""

    def __init__(self, loaded: Callable[[], None] = lambda: None) -> None:
        self._loaded = loaded
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()  # the process is to end
        self._engine: LocalEngine | None = None
        self._frames: FrameReader[ToEngine] = FrameReader(ToEngine)
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._pieces: list[tuple[int, Piece]] = []
        self._over: list[tuple[int, Failure | None]] = []
        self._due = False  # `_flush` is about to run
        self._paused = False  # the server does not read; what comes waits here
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._take(message)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone, or wants no more."""
        for task in self._answering.values():
            task.cancel()
        self._end_loading()
        self._end()

    def send(self, message: ToServer) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    def _take(self, message: ToEngine) -> None:
        match message:
            case StartAnswer():
                task = self._loop.create_task(self._answer(message))
                self._answering[message.number] = task
            case LeaveAnswer():
                if (left := self._answering.get(message.number)) is not None:
                    left.cancel()
            case Start():
                self._do(self._load(EngineSettings(**message.settings)))
            case Drain():
                self._do(self._drain(message.seconds))
            case _:
                self._do(self._call(message))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _load(self, settings: EngineSettings) -> None:
        try:
            self._engine = await settings.open()
        except Exception as error:  # noqa: BLE001 - the server says it
            self.send(NotLoaded(failure_of(error, "the model cannot be loaded")))
            self._end()
        else:
            self._loaded()
            self.send(Ready(self._engine.card))

    async def _answer(self, message: StartAnswer) -> None:
        assert self._engine is not None
        failure, number = None, message.number
        try:
            async with aclosing(self._engine.stream(message.request)) as pieces:
                async for piece in pieces:
                    self._pieces.append((number, piece))
                    self._flush_soon()
        except Exception as error:  # noqa: BLE001 - it is the client's
            failure = failure_of(error)
        finally:
            del self._answering[number]
        self._over.append((number, failure))
        self._flush_soon()

    async def _call(self, message: Call) -> None:
        assert self._engine is not None
        try:
            if message.method == "alive":
                value: Any = None if self._engine.broken else await self._engine.stats()
            elif message.method == "report":
                value = self._engine.report().to_dict()
            else:
                value = await called(self._engine, message.method, arguments_of(message.arguments))
            self.send(CallResult(message.number, value))
        except Exception as error:  # noqa: BLE001 - it is the client's, also where the value cannot be sent
            self.send(CallResult(message.number, None, failure_of(error)))

    async def _drain(self, seconds: float) -> None:
        self._end_loading()
        if self._engine is not None:
            await self._engine.close(seconds)
            if self._answering:  # they hear now that the engine is closed
                await asyncio.wait(self._answering.values(), timeout=LAST)
        # a server that is late finds the last pieces in the socket, see `serve`
        self._paused = False
        self._flush()
        self._end()

    def _flush_soon(self) -> None:
        """Send what has come once all answers that are ready now have given their pieces."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._due = False
        if (self._pieces or self._over) and not self._paused:
            message = Answers(self._pieces, self._over)
            self._pieces, self._over = [], []
            try:
                self.send(message)
            except Exception:  # noqa: BLE001 - of one answer, which its own message says
                self._send_each(message)

    def _send_each(self, bunch: Answers) -> None:
        """Send each answer by itself. One that cannot be sent ends with a sentence."""
        pieces: dict[int, list[tuple[int, Piece]]] = {}
        for number, piece in bunch.pieces:
            pieces.setdefault(number, []).append((number, piece))
        over = dict(bunch.over)
        for number in dict.fromkeys([*pieces, *over]):
            end = [(number, over[number])] if number in over else []
            try:
                self.send(Answers(pieces.get(number, []), end))
            except Exception as error:  # noqa: BLE001 - it is the client's
                why = ValueError(f"the answer cannot be sent between two processes: {error}")
                self.send(Answers([], [(number, failure_of(why))]))
                if (running := self._answering.get(number)) is not None:
                    running.cancel()

    def _end_loading(self) -> None:
        """End now if the model is not loaded: nothing ends the thread that loads it."""
        if self._engine is None and not self.over.done():
            os._exit(0)

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def serve(connection: socket.socket) -> None:
    """Serve until the connection is closed, or the server says so."""
    loop = asyncio.get_running_loop()
    # what the model is made of lives as long as the process: collections need not look at it
    made = partial(EngineServer, gc.freeze)
    transport, server = await loop.create_unix_connection(made, sock=connection)
    await server.over
    transport.close()
    await asyncio.sleep(0)
    end = loop.time() + LAST
    while transport.get_write_buffer_size() and loop.time() < end:
        await asyncio.sleep(0.01)


def end_with_parent() -> None:
    """On Linux: be killed when the process that started this one is gone, even inside of a kernel."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def main() -> None:
    """Serve the connection that the command line names."""
    end_with_parent()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the server says when to end
    log = ServerLog.of_environment()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.setblocking(False)
    run(serve(connection))
    log.close()
    os._exit(0)  # threads that are inside of a kernel do not hold it up


if __name__ == "__main__":
    main()
