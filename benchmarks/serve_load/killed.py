"""Answers of replicas that are killed meanwhile: none is lost, none comes twice, all are those of one engine."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import time
from collections import Counter
from typing import Any

from figures import percentiles, show
from serve_load.clients import TOPICS, Reply, ask, chat
from serve_load.front import Front

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


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What was found, and what is wrong."""
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
    lines = [line for line in front.said if "ended; another one" in line]
    firsts = percentiles([1000 * reply.first for [reply] in seen if reply.first])
    when, equal = (f"{moment:.0f}" for moment in moments), counts["greedy"] + counts["seeded"]
    figures = (len(asked), equal, len(wrong), ", ".join(when), f"{seconds:.0f}")
    show(
        ("answers", "equal", "wrong", "kills at s", "seconds", "first ms p50", "p95", "p99"),
        [(*map(str, figures), *(f"{value:.0f}" for value in firsts))],
        f"{CLIENTS} clients, {args.replicas} replicas; {counts['greedy']} greedy, {counts['seeded']} seeded; of "
        f"these {counts['continued']} were continued on another replica, and "
        f"{len(lines) - counts['continued']} asked again.",
    )
    found = {"counts": counts, "kills": moments, "seconds": seconds, "stats": stats, "log": lines}
    return found, wrong
