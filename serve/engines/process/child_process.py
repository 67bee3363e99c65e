"""The engine's process as the server starts it, watches it, and learns how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from loguru import logger
from msgspec import to_builtins

from fastslow.serve.api.keys import environment_without_key
from fastslow.serve.engines.process.connection import EngineConnection
from fastslow.serve.engines.process.messages import Start
from fastslow.serve.engines.settings import EngineSettings

GRACE = 5.0  # seconds that a process has to end once its connection is closed
# signals of a process that is at fault itself: nobody killed it
CRASHES = tuple(
    getattr(signal, name, 0) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Asks a process whether it lives, over and over; the answer has the engine's figures. A long step of the model is
    no hang: the event loop of the process answers meanwhile. Time in which this process could not run itself, as while
    a machine sleeps, counts as one pause at most."""

    # seconds between a question and the next one, and of a pause for its answer
    every: float = 1.0
    silent: int = 3  # after as many pauses without the answer the process gets no more requests
    missed: int = 30  # after as many it counts as hung

    async def watch(self, connection: EngineConnection) -> str:
        """Wait until a process is lost, or to be ended: what is wrong with it, "" if it is lost."""
        while True:
            answer = asyncio.ensure_future(connection.call("alive"))
            try:
                either: list[asyncio.Future[None]] = [connection.lost, answer]
                first = asyncio.FIRST_COMPLETED
                for pauses in range(1, self.missed + 1):
                    await asyncio.wait(either, timeout=self.every, return_when=first)
                    if connection.lost.done():
                        return ""
                    if answer.done():
                        break
                    if pauses == self.silent:
                        seconds = f"{self.every * pauses:g} s or more"
                        connection.why_silent = f"the engine has said nothing for {seconds}"
                        logger.warning("{}; it gets no requests meanwhile", connection.why_silent)
                else:
                    return f"answered nothing for {self.every * self.missed:g} s"
            finally:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
            if answer.exception() is None:
                if not answer.result():
                    return "lives on without its engine, which broke"
                connection.figures, connection.heard = answer.result(), time.monotonic()
            if connection.why_silent:
                logger.info("the engine answers again")
                connection.why_silent = ""
            await asyncio.wait([connection.lost], timeout=self.every)


USUAL = Heartbeat()


class ChildProcess:
    """An engine's process with its connection. `start` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], connection: EngineConnection) -> None:
        self._process = process
        self.connection = connection

    @classmethod
    async def start(cls, settings: EngineSettings) -> Self:
        """Start a process that loads a model. On Linux it ends with the thread that started it: this one."""
        ours, its = socket.socketpair()
        ours.setblocking(False)
        with its:
            process = _spawn(its)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_unix_connection(EngineConnection, sock=ours)
            connection.send(Start(to_builtins(settings)))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return cls(process, connection)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def crashed(self) -> bool:
        """True where it ended, and by its own fault."""
        return -(self._process.returncode or 1) in CRASHES

    async def wait(self) -> str:
        """Wait until the connection is lost and the process gone: how it ended, for a sentence."""
        await asyncio.shield(self.connection.lost)
        await self._reap(GRACE)
        code = self._process.returncode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def end(self, grace: float = GRACE) -> None:
        """Close the connection; kill the process if it is still there after `grace` seconds."""
        self.connection.close()
        await self._reap(grace)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    async def _reap(self, grace: float) -> None:
        try:
            await asyncio.to_thread(self._process.wait, grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)


def _spawn(its: socket.socket) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fastslow.serve.engines.process.child", str(its.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=2,  # with its log
        pass_fds=[its.fileno()],
        env={**environment_without_key(), "PYTHONPATH": paths},
        process_group=0,  # Ctrl-C is for this process, which ends the other
    )
