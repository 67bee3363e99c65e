"""A Ray cluster that this process joins."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from loguru import logger

T = TypeVar("T")

CLOSING = 30.0  # seconds that it may take to leave a cluster
REACHED = 5.0  # seconds in which an address must be reached: Ray itself tries for minutes
NO_TOKEN = ("AuthenticationError", "InvalidAuthToken", "authentication token")  # words of Ray
NEEDS_TOKEN = "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the cluster's first machine"


class Cluster:
    """Calls of Ray block, so they run in a thread of this class.

    Args:
        address: "auto" or HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        # a daemon, and no executor's: one that hangs in a call must not hold up the end of the process
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread."""
        if self._thread.ident is None:
            self._thread.start()
        done: Future[T] = Future()
        self._work.put((done, partial(function, *arguments)))
        return await asyncio.wrap_future(done)

    async def open(self) -> None:
        """Join it.

        Raises:
            RuntimeError: that failed; one sentence.
        """
        try:
            await self.call(self._join)
        finally:
            _own_signals()
        logger.info("joined the Ray cluster {}", self.address)

    async def close(self) -> None:
        """Leave it."""
        try:
            await asyncio.wait_for(self.call(leave), CLOSING)
        except TimeoutError:  # its thread hangs in a call; with this process it ends
            logger.warning("the Ray cluster was not left within {:g} s", CLOSING)
        finally:
            self._work.put(None)

    def _join(self) -> None:
        join(self.address, log_to_driver=True, logging_level=logging.ERROR)
        ray_logs(logging.WARNING)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            done, function = job
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the caller has it
                done.set_exception(error)


def join(address: str, **options: Any) -> None:
    """Join a cluster.

    Args:
        address: "auto", HOST:PORT or ray://HOST:PORT.
        options: of `ray.init`.

    Raises:
        RuntimeError: that failed; one sentence.
    """
    import ray

    ray_logs(logging.ERROR)
    _reach(address)
    try:
        ray.init(address, namespace="serve", **options)
    except Exception as error:  # noqa: BLE001 - Ray raises that itself where a node does not start in time
        raise RuntimeError(
            f"cannot join the Ray cluster {address!r}: {first_line(error)}"
        ) from None


def leave() -> None:
    """Leave the cluster."""
    import ray

    ray_logs(logging.CRITICAL)  # threads of Ray Serve miss the cluster a moment later
    ray.shutdown()


def _own_signals() -> None:
    """Signals are for this process again: Ray has put a handler before it that writes stack traces, and aborts
    the process soon after."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def ray_logs(level: int) -> None:
    """The lowest level at which Ray's code in this process logs."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(level)


def _reach(address: str) -> None:
    """Raises:
    RuntimeError: nothing listens at HOST:PORT or ray://HOST:PORT; one sentence.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # "auto", and names that only Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"nothing is reached at the address {address!r}: {error}") from None


def first_line(error: Exception) -> str:
    """The first line of an error, as Ray's have many. Where it ends with a colon, the last line has the reason."""
    with_causes = "".join(traceback.format_exception(error))
    if any(words in with_causes for words in NO_TOKEN):
        return f"it asks for its token: {NEEDS_TOKEN}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[-1].strip()}" if lines[0].endswith(":") and lines[1:] else lines[0]
