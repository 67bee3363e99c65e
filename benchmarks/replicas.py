"""Replicas on this machine: fast requests with a target, alone and beside clients of deep ones.

    python benchmarks/replicas.py

It runs the command `fastslow serve MODEL --replicas N` and asks it over HTTP. Exit code 1 where fast ones wait much
longer beside the flood. That nothing is lost where replicas are killed is shown by tests/serve/test_chaos.py.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from typing import Any

from figures import console, options, percentiles, show, write
from serve_load.clients import TOPICS, ask, chat
from serve_load.front import Front

TARGET_MS = 1000  # that fast requests ask for
FAST_TOKENS, DEEP_TOKENS = 8, 128
PAUSE = 0.4  # seconds between two fast requests, on average
SETTLE = 12.0  # seconds of the flood before fast requests count: by then routers know of it
QUIET = 8.0  # seconds without any request
MOST = 1.3  # times its value without load that the p95 of fast ones may be


def fast_body(draw: random.Random) -> dict[str, Any]:
    prompt = f"A word on {draw.choice(TOPICS)}, please, {draw.randrange(10**9)}."
    return chat(prompt, FAST_TOKENS, mode="fast", latency_ms=TARGET_MS, speculation="off")


def deep_body(draw: random.Random) -> dict[str, Any]:
    prompt = f"Think about {draw.choice(TOPICS)}, {draw.randrange(10**9)}. " * 4
    return chat(prompt, DEEP_TOKENS, mode="deep")


async def probes(address: str, seconds: float, draw: random.Random) -> list[float]:
    """Fast requests at random moments: milliseconds to the first token."""
    asked, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        asked.append(asyncio.create_task(ask(address, fast_body(draw))))
        await asyncio.sleep(draw.expovariate(1 / PAUSE))
    replies = await asyncio.gather(*asked)
    if lost := [reply for reply in replies if not reply.whole]:
        raise RuntimeError(f"{len(lost)} fast requests have no answer, such as {lost[0]}")
    return [1000 * reply.first for reply in replies]


async def flood(address: str, clients: int, draw: random.Random, done: asyncio.Event) -> int:
    """Deep requests, one after the other for each client: how many were answered."""
    answered = 0

    async def client() -> None:
        nonlocal answered
        while not done.is_set():
            reply = await ask(address, deep_body(draw))
            answered += reply.whole
            if not reply.whole:
                await asyncio.sleep(0.2)  # 429: its queue is full

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered


async def one_turn(
    address: str, seconds: float, clients: int, draw: random.Random
) -> tuple[list[float], list[float], int]:
    """Fast requests alone, and beside the flood."""
    alone = await probes(address, seconds, draw)
    done = asyncio.Event()
    flooding = asyncio.create_task(flood(address, clients, draw, done))
    await probes(address, SETTLE, draw)
    beside = await probes(address, seconds, draw)
    done.set()
    answered = await flooding
    await asyncio.sleep(QUIET)
    return alone, beside, answered


def main() -> int:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=3, seconds=30.0)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--flood", type=int, default=24, help="clients of deep answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs="*", default=[], help="options of `fastslow serve`")
    args = parser.parse_args()
    with Front(args.model, args.more, args.replicas) as front:
        draw = random.Random(args.seed)
        asyncio.run(probes(front.address, 5, draw))  # what is made on first use
        turns = [
            asyncio.run(one_turn(front.address, args.seconds, args.flood, draw))
            for _ in range(args.repeat)
        ]
    middle = [
        [statistics.median(percentiles(one)[place] for one in times) for place in (0, 1)]
        for times in zip(*((turn[0], turn[1]) for turn in turns), strict=True)
    ]
    ratio = middle[1][1] / middle[0][1]
    figures = [f"{value:.0f}" for pair in middle for value in pair]
    show(
        ("alone p50", "p95", "flood p50", "p95", "ratio of p95", "deep answers"),
        [(*figures, f"{ratio:.2f}", str(sum(turn[2] for turn in turns)))],
        f"Milliseconds to the first token of fast requests, {args.replicas} replicas; medians of {args.repeat} turns "
        f"of {args.seconds:g} s each; the flood: {args.flood} clients of deep answers of {DEEP_TOKENS} tokens.",
    )
    write(args.out, model=args.model, turns=turns, p95=[pair[1] for pair in middle])
    if ratio > MOST:
        console().print(f"fast p95 is {ratio:.2f} times its value without load, above {MOST}")
    return 1 if ratio > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
