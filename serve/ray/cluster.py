"""A Ray cluster: one that is started on this machine and ends with this process, or one that is joined."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from loguru import logger

from fastslow.serve.ray.loopback import cluster_on_loopback
from fastslow.serve.ray.worker_lines import show_lines

T = TypeVar("T")

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
        # Linux ends the processes of a local cluster with the thread that started them
        self._thread = ThreadPoolExecutor(1, "ray")

    @property
    def local(self) -> bool:
        """Whether it is started here."""
        return self.address is None

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something in the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    async def open(self) -> None:
        """Start it, or join it.

        Raises:
            RuntimeError: that failed; one sentence.
        """
        try:
            await self.call(self._open)
        finally:
            _own_signals()

    async def close(self) -> None:
        """Leave it; one of this machine ends."""
        try:
            await self.call(self._close)
        finally:
            self._thread.shutdown(wait=False)

    def _open(self) -> None:
        import ray

        ray_logs(logging.ERROR)
        options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
        if self.local:
            cluster_on_loopback()
            options |= {
                "num_cpus": self._cpus,
                "include_dashboard": False,
                "object_store_memory": SHARED_MEMORY,
            }
        try:
            ray.init(address=self.address or "local", namespace="serve", **options)
        except (ConnectionError, RuntimeError, OSError) as error:
            what = "start a Ray cluster" if self.local else f"join the Ray cluster {self.address!r}"
            raise RuntimeError(f"cannot {what}: {_first_line(error)}") from None
        ray_logs(logging.WARNING)
        show_lines()
        logger.info("a Ray cluster of this machine is up" if self.local else "joined a Ray cluster")

    def _close(self) -> None:
        import ray

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


def own_modules() -> dict[str, str]:
    """What makes processes on this machine import what this one does."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
