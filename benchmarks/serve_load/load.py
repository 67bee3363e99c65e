"""Clients of all kinds at once, for minutes: some leave, some send what is wrong, the others wait."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from figures import show
from serve_load.clients import ask, chat
from serve_load.front import Front, growth, memory

CLIENTS = 64
LEAVES, MALFORMED = 0.2, 0.05
MODES = ("fast", "deep", "auto")
TOPICS = ("the sea", "old maps", "bread", "a lighthouse", "bees", "rivers", "clocks", "snow")
QUIET = 60.0  # seconds after which all must be over
MALFORMED_BODIES: tuple[Any, ...] = (
    b"",
    b"{",
    b"[1, 2]",
    b'{"messages": "\xff\xfe"}',
    {"model": "measured"},
    {"model": "measured", "messages": []},
    {"model": "measured", "messages": [{"role": "user"}]},
    {"model": "measured", "messages": [{"role": "nobody", "content": "Hello"}]},
    chat("Hello", 8) | {"max_tokens": -1},
    chat("Hello", 8) | {"temperature": "hot"},
    chat("Hello", 8) | {"n": 10**9},
    chat("Hello", 8) | {"mode": "fats"},
    chat("Hello", 8) | {"stop": [""] * 10**4},
    chat("Hello " * 10**5, 8),
)


@dataclass
class Seen:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float, float]] = field(default_factory=list)  # when; both, in MiB


async def client(address: str, number: int, end: float, seed: int, seen: Seen) -> None:
    """Ask until the time is over."""
    draw = random.Random(seed * 1000 + number)
    while time.monotonic() < end:
        try:
            await one_request(address, draw, seen)
        except (OSError, TimeoutError, ValueError) as error:
            seen.wrong.append(f"client {number}: {type(error).__name__}: {error}")


async def one_request(address: str, draw: random.Random, seen: Seen) -> None:
    kind = draw.random()
    if kind < MALFORMED:
        body = draw.choice(MALFORMED_BODIES)
        reply = await ask(address, body)
        seen.counts["malformed"] += 1
        if not 400 <= reply.status < 500 or '"message"' not in reply.error:
            seen.wrong.append(f"status {reply.status} for {str(body)[:60]}: {reply.error[-200:]}")
        return
    mode, tokens = draw.choice(MODES), draw.choice((8, 32, 64, 128))
    topic = f"Tell me of {draw.choice(TOPICS)}, {draw.randrange(10**6)}. " * draw.choice((1, 1, 8))
    sampling = {"temperature": draw.choice((0, 0, 0.8)), "seed": draw.randrange(100)}
    body = chat(topic, tokens, mode=mode, ignore_eos=False, **sampling)
    if kind < MALFORMED + LEAVES:
        seen.counts["left"] += 1
        await ask(address, body, leave_after=draw.random() * 3)
        return
    reply = await ask(address, body)
    seen.counts["answered"] += 1
    if reply.status != 200 or not reply.whole or reply.finish not in ("stop", "length"):
        seen.wrong.append(f"no answer: {reply}")
    elif not 0 < reply.tokens <= tokens:
        seen.wrong.append(f"{reply.tokens} tokens, of at most {tokens}")


async def all_clients(server: Front, seconds: float, seed: int, seen: Seen) -> None:
    engine, begin = server.engine, time.monotonic()
    end = begin + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            sizes = memory(server.pid), memory(engine)
            seen.memory.append((time.monotonic() - begin, *sizes))
            await asyncio.sleep(min(1.0, seconds / 20))

    clients = [client(server.address, n, end, seed, seen) for n in range(CLIENTS)]
    await asyncio.gather(watch(), *clients)


def run(args: argparse.Namespace, serving: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What was found, and what is wrong."""
    seen = Seen()
    with Front(args.model, serving) as server:
        asyncio.run(all_clients(server, 60 * args.load, args.seed, seen))
        stats = settled(server)
        code = server.end()
    if stats["running"] or stats["waiting"] or stats["pages_used"]:
        seen.wrong.append(f"not all is over or given back: {stats}")
    if code:
        seen.wrong.append(f"the server ended with exit code {code}")
    sizes = []
    for place, name in ((1, "server"), (2, "engine")):
        first, last, grew = growth([row[place] for row in seen.memory])
        sizes.append(f"{name}: {first:.0f} MiB after a fifth, {last:.0f} at the end")
        if grew:
            seen.wrong.append(f"memory of the {name} grew from {first:.0f} to {last:.0f} MiB")
    show(
        ("clients", "answered", "left", "malformed", "steps", "tokens", "pages in use at the end"),
        [
            (str(CLIENTS), *(str(seen.counts[name]) for name in ("answered", "left", "malformed")))
            + tuple(str(stats[name]) for name in ("steps", "tokens", "pages_used"))
        ],
        *sizes,
        title=f"{args.load:g} minutes",
    )
    return {"counts": seen.counts, "memory": seen.memory, "stats": stats}, seen.wrong


def settled(server: Front) -> dict[str, Any]:
    """The engine's statistics once all is over, or has not been for long."""
    end = time.monotonic() + QUIET
    while True:
        stats = server.stats()
        busy = stats["running"] or stats["waiting"] or stats["pages_used"]
        if not busy or time.monotonic() > end:
            return stats
        time.sleep(0.2)
