"""What goes wrong around a server: its engine dies, or a client hardly reads."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from figures import show
from serve_load.clients import Reply, ask, chat, request_of
from serve_load.front import Front, memory

TOKENS, LONG = 64, 3000  # of answers
BACK = 300.0  # seconds in which an engine must be back
SLOW = 10.0  # seconds of a client that reads a byte each


def answers(address: str, count: int) -> str:
    """Of some clients at once: what is wrong with their answers; "" = nothing."""

    async def together() -> list[Reply]:
        bodies = [chat(f"Tell me of the number {n}.", TOKENS) for n in range(count)]
        return list(await asyncio.gather(*(ask(address, body) for body in bodies)))

    replies = asyncio.run(together())
    bad = [r for r in replies if r.status != 200 or not r.whole or r.tokens != TOKENS]
    return f"{len(bad)} of {len(replies)} answers are not whole, such as {bad[0]}" if bad else ""


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(address + path, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def killed(server: Front) -> str:
    """kill -9 of the engine in the middle of answers."""
    first = server.engine

    async def kill() -> list[Reply]:
        bodies = [chat(f"Count to {n}.", LONG) for n in range(8)]
        waiting = [asyncio.create_task(ask(server.address, body)) for body in bodies]
        while (await asyncio.to_thread(server.stats))["running"] < len(waiting):
            await asyncio.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        return list(await asyncio.gather(*waiting))

    replies, ended = asyncio.run(kill()), time.monotonic()
    torn = [r for r in replies if r.status not in (200, 503) or not r.error]
    if torn:
        return f"{len(torn)} clients got no clean error, such as {torn[0]}"
    if status(server.address, "/health") != 200:
        return "the server does not live"
    if status(server.address, "/ready") != 503:
        return "the server says that it is ready"
    while status(server.address, "/ready") != 200:
        if time.monotonic() - ended > BACK:
            return "it does not come back"
        time.sleep(0.05)
    print(f"  all {len(replies)} heard: {replies[0].error}; back {time.monotonic() - ended:.1f} s")
    return answers(server.address, 8) or "it is the same process" * (server.engine == first)


def slow_reader(server: Front) -> str:
    """A client that reads one byte a second, beside eight that read."""
    wrong, before = answers(server.address, 8), memory(server.pid)
    where = urlsplit(server.address)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((where.hostname, where.port))
        slow.sendall(request_of(chat("Tell me everything.", 500)))
        end = time.monotonic() + SLOW
        wrong = wrong or answers(server.address, 8)
        while time.monotonic() < end:
            if not slow.recv(1):
                return "the server closed the slow client's connection at once"
            time.sleep(1.0)
    grown = memory(server.pid) - before
    print(f"  memory {grown:+.1f} MiB")
    return wrong or ("" if grown < 32 else f"memory of the server grew by {grown:.0f} MiB")


def run(args: argparse.Namespace, serving: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What was found, and what is wrong."""
    found = {}
    for fault in (killed, slow_reader):
        print(fault.__doc__)
        with Front(args.model, serving) as server:
            found[fault.__name__] = fault(server)
    show(("fault", "found"), [(name, said or "fine") for name, said in found.items()])
    return found, [f"{name}: {said}" for name, said in found.items() if said]
