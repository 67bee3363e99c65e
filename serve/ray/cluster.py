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
from typing import Any, TypeVar

from loguru import logger

T = TypeVar("T")

CLOSING = 30.0  # seconds that it may take to leave a cluster
REACHED = 5.0  # seconds in which an address must be reached: Ray itself tries for minutes
NO_TOKEN = ("AuthenticationError", "InvalidAuthToken", "authentication token")  # words of Ray
NEEDS_TOKEN = "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the cluster's first machine"


async def join(address: str) -> None:
    """Join the cluster at "auto" or HOST:PORT. RuntimeError: that failed; one sentence."""
    try:
        await in_thread(_join, address)
    finally:
        _own_signals()
    logger.info("joined the Ray cluster {}", address)


async def leave() -> None:
    """Leave the cluster."""
    try:
        await asyncio.wait_for(in_thread(_leave), CLOSING)
    except TimeoutError:  # the thread hangs in a call; with this process it ends
        logger.warning("the Ray cluster was not left within {:g} s", CLOSING)


def _join(address: str) -> None:
    import ray

    ray_logs(logging.ERROR)
    _reach(address)
    try:
        ray.init(address, namespace="serve", log_to_driver=True, logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001 - Ray raises that itself where a node does not start in time
        said = f"cannot join the Ray cluster {address!r}: {first_line(error)}"
        raise RuntimeError(said) from None
    ray_logs(logging.WARNING)


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Do what blocks, as calls of Ray do. In a daemon, which no executor waits for: one that hangs must not hold
    up the end of the process."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001 - the caller has it
            done.set_exception(error)

    threading.Thread(target=run, name="ray", daemon=True).start()
    return await asyncio.wrap_future(done)


def _leave() -> None:
    import ray

    ray_logs(logging.CRITICAL)  # threads of Ray Serve miss the cluster a moment later
    ray.shutdown()


def _own_signals() -> None:
    """Signals are for this process again: Ray's handler writes stack traces, and aborts the process soon after."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def ray_logs(level: int) -> None:
    """The lowest level at which Ray's code in this process logs."""
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(level)


def _reach(address: str) -> None:
    """RuntimeError: nothing listens at HOST:PORT; one sentence."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():  # "auto"
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
