"""Replicas on this machine: nothing is lost, and fast stays fast.

    python benchmarks/replicas.py killed [--answers 2000] [--kills 2]
    python benchmarks/replicas.py flood

killed: 64 clients, mixed modes, greedy and seeded, streamed and not; replicas are killed with -9 meanwhile. Every
answer must be there once, and be the one that an engine alone gives. flood: fast requests with a target beside clients
of deep ones, and without them on a server that has only the replicas that are reserved in the flood: what more
replicas would save is a shorter queue, and no matter of the flood.

Both run the command `fastslow serve MODEL --replicas N` and ask it over HTTP. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from figures import console, options, percentiles, show, write
from serve_load.clients import TOPICS, Reply, ask, chat
from serve_load.front import Front

from fastslow.engine.host.machine import cores
from fastslow.serve.engines.routing.settings import RoutingSettings

Found = tuple[dict[str, Any], list[str]]  # what was found, and what is wrong

# Replicas that are killed

CLIENTS = 64
MODES: tuple[Any, ...] = ("fast", "deep", {"base": "deep", "groups": 2})
Body = dict[str, Any]


def bodies(count: int, seed: int) -> list[Body]:
    """What is asked: greedy and seeded, of all modes, three in four of them streamed."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        sampling = {"temperature": 0} if n % 2 else {"temperature": 0.9, "seed": n}
        prompt = f"Tell me of {draw.choice(TOPICS)}, number {n}. " * draw.choice((1, 1, 6))
        tokens, streamed = draw.choice((8, 16, 32)), bool(n % 4)
        fields = {"mode": MODES[n % len(MODES)], "ignore_eos": False, **sampling}
        body = chat(prompt, tokens, **fields)
        if streamed:
            body["stream_options"]["include_sources"] = True
        else:
            body |= {"stream": False}
            del body["stream_options"]
        found.append(body)
    return found


async def all_answers(
    address: str, asked: list[Body], seen: list[list[Reply]], clients: int
) -> None:
    """Have all answered, by some clients; an answer is added at the place of its request."""
    places = iter(range(len(asked)))

    async def client() -> None:
        for place in places:
            try:
                seen[place].append(await ask(address, asked[place]))
            except (OSError, TimeoutError) as error:
                seen[place].append(Reply(error=f"{type(error).__name__}: {error}"))

    await asyncio.gather(*(client() for _ in range(clients)))


async def with_kills(
    front: Front, asked: list[Body], seen: list[list[Reply]], kills: int
) -> list[float]:
    """The same while replicas are killed, at equal shares of the answers: when that was."""
    moments: list[float] = []
    begin = time.monotonic()

    async def kill() -> None:
        for number in range(kills):
            while sum(map(len, seen)) < (number + 1) * len(asked) // (kills + 1):
                await asyncio.sleep(0.05)
            while not (there := front.replicas):
                await asyncio.sleep(0.1)
            os.kill(there[number % len(there)], signal.SIGKILL)
            moments.append(time.monotonic() - begin)

    killing = asyncio.create_task(kill())
    await all_answers(front.address, asked, seen, CLIENTS)
    await killing
    return moments


def said(reply: Reply) -> tuple[Any, ...]:
    """What an answer is: text, thought and tokens where it has them, and how it ended."""
    return reply.text, reply.thought, reply.ids, reply.tokens, reply.finish


def run_killed(args: argparse.Namespace) -> Found:
    asked = bodies(args.answers, args.seed)
    alone: list[list[Reply]] = [[] for _ in asked]
    with Front(args.model) as one:
        asyncio.run(all_answers(one.address, asked, alone, 16))
    seen: list[list[Reply]] = [[] for _ in asked]
    with Front(args.model, args.more, args.replicas) as front:
        begin = time.monotonic()
        moments = asyncio.run(with_kills(front, asked, seen, args.kills))
        seconds = time.monotonic() - begin
        stats = front.stats()
        code = front.end()
    wrong, counts = [], Counter[str]()
    for place, (replies, expected) in enumerate(zip(seen, alone)):
        kind = "greedy" if "seed" not in asked[place] else "seeded"
        [reply], [right] = replies, expected
        if reply.status != 200 or not reply.whole:
            wrong.append(f"answer {place} is lost: {reply}")
        elif said(reply) != said(right):
            wrong.append(f"answer {place} ({kind}) is {said(reply)}, not {said(right)}")
        else:
            counts[kind] += 1
            counts["continued"] += "continued" in reply.decision
    if code:
        wrong.append(f"the server ended with exit code {code}")
    again = [line for line in front.said if "ended; another engine is asked" in line]
    firsts = percentiles([1000 * reply.first for [reply] in seen if reply.first])
    when, equal = (f"{moment:.0f}" for moment in moments), counts["greedy"] + counts["seeded"]
    figures = (len(asked), equal, len(wrong), ", ".join(when), f"{seconds:.0f}")
    show(
        ("answers", "equal", "wrong", "kills at s", "seconds", "first ms p50", "p95", "p99"),
        [(*map(str, figures), *(f"{value:.0f}" for value in firsts))],
        f"{CLIENTS} clients, {args.replicas} replicas; {counts['greedy']} greedy, {counts['seeded']} seeded; of "
        f"these {counts['continued']} were continued on another replica, and "
        f"{len(again)} asked again.",
    )
    found = {"counts": counts, "kills": moments, "seconds": seconds, "stats": stats, "log": again}
    return found, wrong


# A flood of deep requests

TARGET_MS = 1000  # that fast requests ask for
FAST_TOKENS, DEEP_TOKENS = 8, 128
PAUSE = 0.4  # seconds between two fast requests, on average
SETTLE = 12.0  # seconds of the flood before fast requests count: by then routers know of it
QUIET = 8.0  # seconds without any request


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
    alone: str, address: str, seconds: float, clients: int, seed: str
) -> tuple[list[float], list[float], int]:
    """The same fast requests at the same moments alone, and at another address beside the flood."""
    quiet = await probes(alone, seconds, random.Random(seed))
    done, draw = asyncio.Event(), random.Random(f"{seed} flood")
    flooding = asyncio.create_task(flood(address, clients, draw, done))
    await probes(address, SETTLE, draw)
    beside = await probes(address, seconds, random.Random(seed))
    done.set()
    answered = await flooding
    await asyncio.sleep(QUIET)
    return quiet, beside, answered


def run_flood(args: argparse.Namespace) -> Found:
    reserved = max(1, round(RoutingSettings().reserved_share * args.replicas))
    each = ["--replica-cpus", str(max(1, cores() // args.replicas))]
    with (
        Front(args.model, [*each, *args.more], reserved) as alone,
        Front(args.model, args.more, args.replicas) as front,
    ):
        for server in (alone, front):  # what is made on first use
            asyncio.run(probes(server.address, 5, random.Random(args.seed)))
        turns = [
            asyncio.run(
                one_turn(
                    alone.address, front.address, args.seconds, args.flood, f"{args.seed} {turn}"
                )
            )
            for turn in range(args.repeat)
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
        f"Milliseconds to the first token of fast requests; medians of {args.repeat} turns of {args.seconds:g} s each. "
        f"Alone: {reserved} replicas. The flood: {args.replicas} replicas, {args.flood} clients of deep answers "
        f"of {DEEP_TOKENS} tokens.",
    )
    wrong = [f"fast p95 is {ratio:.2f} times its value without load"] if ratio > 1.3 else []
    return {"turns": turns, "p95": [pair[1] for pair in middle]}, wrong


PARTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "killed": run_killed,
    "flood": run_flood,
}


def main() -> int:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=3, seconds=30.0)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--flood", type=int, default=24, help="clients of deep answers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs="*", default=[], help="options of `fastslow serve`")
    args = parser.parse_args()
    found, wrong = PARTS[args.part](args)
    write(args.out, model=args.model, found=found, wrong=wrong)
    for line in wrong[:20]:
        console().print(line, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
