"""The other ranks, as rank 0 sees them: sent commands, watched, and ended."""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from loguru import logger

from fastslow.engine.host.machine import HomeProcess
from fastslow.engine.parallel.commands import receive, send, send_json

PATIENCE = 300.0  # seconds until every rank must have started
GRACE = 5.0  # seconds that a rank has to end by itself


class RankError(RuntimeError):
    """A rank failed or is gone: one sentence, which needs no traceback."""


class RankGroup:
    """Ranks 1 .. count, each with a connection, which they open at `listener` with the `token`.

    A rank that is gone or says that it failed ends all of them: its sentence is kept in `failure`, and every
    later call raises it as a RankError. processes: those that this one started, by rank. ended: called after
    the group has ended, for whatever reason."""

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        count: int,
        processes: dict[int, subprocess.Popen[bytes]],
        ended: Callable[[], None],
    ) -> None:
        self.failure: str | None = None
        self.pids: dict[int, int] = {}
        self._processes = processes
        self._ended = ended
        self._connections: dict[int, socket.socket] = {}
        self._loaded: set[int] = set()
        self._news = threading.Condition()
        self._over = False
        self.home = HomeProcess()
        try:
            with listener:
                self._accept(listener, token, count)
        except BaseException:
            self._end()
            raise
        threading.Thread(target=self._watch, name="fastslow-ranks", daemon=True).start()
        _groups.add(self)

    def send_job(self, job: dict[str, Any]) -> None:
        """Send the first frame to every rank."""
        for connection in self._connections.values():
            send_json(connection, job)

    def send(self, frame: bytes) -> None:
        """Send a frame to every rank. RankError: a rank is gone."""
        self.check()
        for rank, connection in self._connections.items():
            try:
                send(connection, frame)
            except OSError:
                self.fail(self._gone(rank))
                self.check()

    def wait_loaded(self) -> None:
        """Until every rank has loaded its shard. RankError if one failed."""
        with self._news:
            self._news.wait_for(lambda: self._loaded == set(self._connections) or self._over)
        self.check()

    def check(self) -> None:
        """RankError with one sentence if the group has ended."""
        if self.failure is not None:
            raise RankError(self.failure)
        if self._over:
            raise RankError("the ranks of this model have ended")

    def fail(self, why: str) -> None:
        """End all ranks for a reason; the first one counts."""
        with self._news:
            if self._over:
                return
            self.failure = f"{why}; all ranks of this model have been ended, load it again"
            self._over = True
            self._news.notify_all()
        logger.error(self.failure)
        self._end()

    def failed_soon(self, seconds: float = 3.0) -> bool:
        """Tell whether a rank has failed, or does within `seconds`."""
        with self._news:
            self._news.wait_for(lambda: self._over, timeout=seconds)
        return self.failure is not None

    def explain(self, error: BaseException) -> None:
        """An error came out of a step of rank 0: if a rank caused it, RankError says which one.

        Collectives of this rank fail as soon as another rank is gone, which may be before that is noticed. An
        error of rank 0 leaves the others inside a step, so it ends them, too."""
        if not self.failed_soon():
            self.fail(f"rank 0 failed inside a step: {type(error).__name__}: {error}")
        raise RankError(self.failure) from error

    def close(self) -> None:
        """Let all ranks end, and wait for it. Closing twice is fine; in a forked process nothing happens."""
        if not self.home.here:
            return
        with self._news:
            if self._over:
                return
            self._over = True
            self._news.notify_all()
        for connection in self._connections.values():
            try:
                send(connection, b"")
            except OSError:
                logger.debug("a rank was gone before it was asked to end")
        self._end(GRACE)

    def _accept(self, listener: socket.socket, token: str, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        listener.settimeout(0.2)
        while len(self._connections) < count:
            for rank, process in self._processes.items():
                if process.poll() is not None:
                    raise RankError(f"{self._gone(rank)} while it started")
            if time.monotonic() > deadline:
                missing = sorted(set(range(1, count + 1)) - set(self._connections))
                raise RankError(f"ranks {missing} did not start within {PATIENCE:.0f} s")
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(GRACE)
            hello = receive(connection)
            known = json.loads(hello) if hello else {}
            if known.get("token") != token:
                connection.close()  # a stranger
                continue
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[known["rank"]] = connection
            self.pids[known["rank"]] = known["pid"]
        self._connections = dict(sorted(self._connections.items()))

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while not self._over:
                for key, _ in selector.select(timeout=1.0):
                    self._hear(key.data)

    def _hear(self, rank: int) -> None:
        frame = receive(self._connections[rank])
        if self._over:
            return
        if frame is None:
            self.fail(self._gone(rank))
            return
        news = json.loads(frame)
        if "failed" in news:
            self.fail(f"rank {rank} failed: {news['failed']}")
            return
        with self._news:
            self._loaded.add(rank)
            self._news.notify_all()

    def _gone(self, rank: int) -> str:
        process = self._processes.get(rank)
        known = f"rank {rank}"
        if rank in self.pids:
            known += f" (process {self.pids[rank]})"
        if process is None:
            return f"{known} is gone"
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return f"{known} closed its connection"
        if code < 0:
            return f"{known} was killed by signal {-code}"
        return f"{known} ended with exit code {code}"

    def disconnect(self) -> None:
        """Close the connections, and say nothing: ranks see that theirs is gone once nobody has it."""
        for connection in self._connections.values():
            connection.close()

    def _end(self, grace: float = 0.0) -> None:
        deadline = time.monotonic() + grace
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.disconnect()
        self._ended()


_groups: weakref.WeakSet[RankGroup] = weakref.WeakSet()


def _disconnect_all() -> None:
    """In a forked process, which would keep the ranks alive when the one that they serve is gone."""
    for group in _groups:
        group.disconnect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disconnect_all)
