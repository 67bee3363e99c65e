"""A Ray cluster: one that is started on this machine and ends with this process, or one that is joined."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from loguru import logger

from fastslow.serve.ray.local_cluster import lean
from fastslow.serve.ray.loopback import driver_on_loopback
from fastslow.serve.ray.worker_lines import show_lines

T = TypeVar("T")

CLOSING = 30.0  # seconds that the end of a cluster may take
REACHED = 5.0  # seconds in which an address must be reached: Ray itself tries for minutes
NO_TOKEN = ("AuthenticationError", "InvalidAuthToken", "authentication token")  # so Ray tells of it
NEEDS_TOKEN = "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the cluster's first machine"
SHARED_MEMORY = 256 << 20  # bytes of the store of a local cluster: nothing large passes through it


class Cluster:
    """Calls of Ray block, so they have a thread of their own.

    Args:
        address: None: a cluster of this machine; "auto" or HOST:PORT: the one that is there.
        cpus: processor cores of a cluster of this machine.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self.address = address
        self._cpus = cpus
        self._own = ExitStack()  # what holds while a cluster of this machine is there
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        # Linux ends the processes of a local cluster with the thread that started them
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    @property
    def local(self) -> bool:
        """Whether it is started here."""
        return self.address is None

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread."""
        if self._thread.ident is None:
            self._thread.start()
        done: Future[T] = Future()
        self._work.put((done, partial(function, *arguments)))
        return await asyncio.wrap_future(done)

    async def open(self, environment: Mapping[str, str] | None = None) -> None:
        """Start it, or join it.

        Args:
            environment: variables of the processes of one that is started.

        Raises:
            RuntimeError: that failed; one sentence.
        """
        try:
            await self.call(self._open, environment or {})
        finally:
            _own_signals()

    async def close(self) -> None:
        """Leave it; one of this machine ends."""
        try:
            await asyncio.wait_for(self.call(self._close), CLOSING)
        except TimeoutError:  # its thread hangs in a call; with this process it ends
            logger.warning("the Ray cluster was not left within {:g} s", CLOSING)
        finally:
            self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            done, function = job
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(function())
            except BaseException as error:  # noqa: BLE001 - who waits has it
                done.set_exception(error)

    def _open(self, environment: Mapping[str, str]) -> None:
        import ray

        ray_logs(logging.ERROR)
        if self.address is not None:
            reach(self.address)
        options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
        if self.local:
            self._own.enter_context(driver_on_loopback())
            options |= {
                "num_cpus": self._cpus,
                "include_dashboard": False,
                "object_store_memory": SHARED_MEMORY,
            }
        starting = lean(own_modules() | dict(environment)) if self.local else nullcontext()
        try:
            with starting:
                ray.init(address=self.address or "local", namespace="serve", **options)
        except Exception as error:  # noqa: BLE001 - Ray raises that itself where a node does not start in time
            self._own.close()
            what = "start a Ray cluster" if self.local else f"join the Ray cluster {self.address!r}"
            raise RuntimeError(f"cannot {what}: {first_line(error)}") from None
        ray_logs(logging.WARNING)
        show_lines()
        logger.info("a Ray cluster of this machine is up" if self.local else "joined a Ray cluster")

    def _close(self) -> None:
        import ray

        ray_logs(logging.CRITICAL)  # threads of Ray Serve miss the cluster a moment later
        ray.shutdown()
        self._own.close()


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


def reach(address: str) -> None:
    """See whether somebody listens at HOST:PORT or ray://HOST:PORT.

    Raises:
        RuntimeError: nobody does; one sentence.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # "auto", and names that only Ray knows
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"nothing is reached at the address {address!r}: {error}") from None


def own_modules() -> dict[str, str]:
    """What makes processes on this machine import what this one does."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def first_line(error: Exception) -> str:
    """What an error says first; Ray's say much. Where that ends with a colon, the last line has the reason."""
    said = _with_causes(error)
    if any(words in said for words in NO_TOKEN):
        return "it takes only who has its token: " + NEEDS_TOKEN
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0]} {lines[-1].strip()}" if lines[0].endswith(":") and lines[1:] else lines[0]


def _with_causes(error: BaseException | None) -> str:
    """All that an error says, and those that it came from."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)
