"""The socket that a server listens at, and the event loop that it runs on."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

WAITING = 2048  # connections that the system holds until they are accepted
T = TypeVar("T")


@contextmanager
def listen(host: str, port: int, unix_socket: Path | None = None) -> Iterator[socket.socket]:
    """A listening socket, closed at the end. host: a name or an address of this machine. port: 0 = any that is free.
    unix_socket: a file to listen at instead; removed at the end."""
    listener = _at_port(host, port) if unix_socket is None else _at_file(unix_socket)
    try:
        yield listener
    finally:
        listener.close()
        if unix_socket is not None:
            unix_socket.unlink(missing_ok=True)


def address_of(listener: socket.socket) -> str:
    """As a client writes it: http://HOST:PORT, or unix:PATH."""
    name = listener.getsockname()
    if listener.family == getattr(socket, "AF_UNIX", None):
        return f"unix:{name}"
    host, port = name[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _at_port(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=WAITING)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} of {host} is taken: give another --port, or end what listens there"
        else:
            said = f"cannot listen at host {host!r}, port {port}: {error.strerror or error}"
        raise ValueError(said) from None


def _at_file(path: Path) -> socket.socket:
    _remove_old(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        raise ValueError(f"cannot listen at {str(path)!r}: {error.strerror or error}") from None
    return listener


def _remove_old(path: Path) -> None:
    """Remove the file of a server that is gone."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ValueError(f"{str(path)!r} is there, and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(os.fspath(path))
            except ConnectionRefusedError:
                path.unlink()
                return
        raise ValueError(f"{str(path)!r} is taken: another server listens there")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a program on uvloop, where that is installed."""
    gc.freeze()  # modules live as long as it: a collection, in which all else waits, need not look at them
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):  # Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
