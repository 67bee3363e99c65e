"""The engine's process, as the server's starts it, connects to it, and learns how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Self

from msgspec import to_builtins

from fastslow.serve.api.keys import environment_without_key
from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.engines.process.link import EngineConnection
from fastslow.serve.engines.process.messages import Start

GRACE = 5.0  # seconds that a process has to end once its connection is closed


class ChildProcess:
    """One process with its connection. `start` makes it."""

    def __init__(self, process: subprocess.Popen[bytes], link: EngineConnection) -> None:
        self._process = process
        self.link = link

    @classmethod
    async def start(cls, settings: EngineSettings) -> Self:
        """Start a process that loads a model.

        It is started in this very thread: on Linux it ends with the thread that started it.
        """
        process, ours = _spawn()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_unix_connection(EngineConnection, sock=ours)
            link.send(Start(to_builtins(settings)))
        except BaseException:
            process.kill()
            process.wait()
            raise
        return cls(process, link)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Wait until the connection is lost and the process gone: how it ended, for a sentence."""
        await asyncio.shield(self.link.lost)
        await self._reap(GRACE)
        code = self._process.returncode
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def end(self, grace: float = GRACE) -> None:
        """Close the connection; kill the process if it is there after so many seconds."""
        self.link.close()
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


def _spawn() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The process, and this end of its connection."""
    ours, its = socket.socketpair()
    command = [sys.executable, "-m", "fastslow.serve.engines.process.child", str(its.fileno())]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,  # with its log
            pass_fds=[its.fileno()],
            env={**environment_without_key(), "PYTHONPATH": paths},
            process_group=0,  # Ctrl-C is for this process, which ends the other
        )
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return process, ours
