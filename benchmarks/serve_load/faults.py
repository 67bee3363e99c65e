"""What goes wrong around a server: its engine dies, its log's disk is full, the clock jumps, a client hardly reads."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import socket
import tempfile
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from figures import show
from serve_load.clients import Reply, ask, chat, request_of
from serve_load.processes import HERE, ServerProgram, memory

Settings = dict[str, Any]
TOKENS, LONG = 64, 3000  # of answers
BACK = 300.0  # seconds in which an engine must be back
FULL = 4096  # bytes of a log on a disk that is full then
SLOW = 10.0  # seconds of a client that reads a byte each


def answers(address: str, count: int, tokens: int = TOKENS) -> list[Reply]:
    """Of so many clients at once."""

    async def together() -> list[Reply]:
        bodies = [chat(f"Tell me of the number {n}.", tokens) for n in range(count)]
        return list(await asyncio.gather(*(ask(address, body) for body in bodies)))

    return asyncio.run(together())


def all_whole(replies: list[Reply], tokens: int = TOKENS) -> str:
    """What is wrong with them; "" = nothing."""
    bad = [r for r in replies if r.status != 200 or not r.whole or r.tokens != tokens]
    return f"{len(bad)} of {len(replies)} answers are not whole, such as {bad[0]}" if bad else ""


def status(server: ServerProgram, path: str) -> int:
    try:
        server.get(path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def killed(settings: Settings) -> str:
    """kill -9 of the engine in the middle of answers."""
    server = ServerProgram(settings)
    try:
        first = server.stats()["pid"]

        async def kill() -> list[Reply]:
            waiting = [
                asyncio.create_task(ask(server.address, chat(f"Count to {n}.", LONG)))
                for n in range(8)
            ]
            while (await asyncio.to_thread(server.stats))["running"] < len(waiting):
                await asyncio.sleep(0.05)
            os.kill(first, signal.SIGKILL)
            return list(await asyncio.gather(*waiting))

        replies, told = asyncio.run(kill()), time.monotonic()
        torn = [r for r in replies if r.status not in (200, 503) or not r.error]
        if torn:
            return f"{len(torn)} clients got no clean error, such as {torn[0]}"
        if status(server, "/health") != 200:
            return "the server does not live"
        if status(server, "/ready") != 503:
            return "the server says that it is ready"
        while status(server, "/ready") != 200:
            if time.monotonic() - told > BACK:
                return "it does not come back"
            time.sleep(0.05)
        back = time.monotonic() - told
        wrong = all_whole(answers(server.address, 8))
        print(f"  all {len(replies)} were told: {replies[0].error}; back after {back:.1f} s")
        return wrong or ("" if server.stats()["pid"] != first else "it is the same process")
    finally:
        server.end()


def full_disk(settings: Settings) -> str:
    """The log's file takes no more bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(b"." * FULL)
        with path.open("ab") as log:
            server = ServerProgram(settings, log, preexec_fn=limit)
            try:
                return all_whole(answers(server.address, 8))
            finally:
                server.end()


def clock(settings: Settings) -> str:
    """The time of day jumps by a day and back, in both processes."""
    server = ServerProgram(settings, paths=[str(HERE / "clock")])
    try:
        wrong = all_whole(answers(server.address, 8))
        return wrong or ("" if status(server, "/ready") == 200 else "it is not ready")
    finally:
        server.end()


def slow_reader(settings: Settings) -> str:
    """A client that reads one byte a second, beside eight that read."""
    server = ServerProgram(settings)
    try:
        alone = time.monotonic()
        wrong = all_whole(answers(server.address, 8))
        alone, before = time.monotonic() - alone, memory(server.pid)
        where = urlsplit(server.address)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect((where.hostname, where.port))
            slow.sendall(request_of(chat("Tell me everything.", 500)))
            end, beside = time.monotonic() + SLOW, time.monotonic()
            wrong = wrong or all_whole(answers(server.address, 8))
            beside = time.monotonic() - beside
            while time.monotonic() < end:
                if not slow.recv(1):
                    return "the server closed the slow client's connection at once"
                time.sleep(1.0)
        grown = memory(server.pid) - before
        print(f"  8 others: {alone:.1f} s before, {beside:.1f} s beside; memory {grown:+.1f} MiB")
        return wrong or ("" if grown < 32 else f"memory of the server grew by {grown:.0f} MiB")
    finally:
        server.end()


FAULTS: tuple[Callable[[Settings], str], ...] = (killed, full_disk, clock, slow_reader)


def run(args: argparse.Namespace, settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """What was found, and what is wrong."""
    found = {}
    for fault in FAULTS:
        print(fault.__doc__)
        found[fault.__name__] = fault(settings)
    rows = [(name, said or "fine") for name, said in found.items()]
    show(("fault", "found"), rows)
    return found, [f"{name}: {said}" for name, said in found.items() if said]
