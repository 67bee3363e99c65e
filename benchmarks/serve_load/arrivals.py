"""Requests at random moments on replicas, written as a trace that `fastslow simulate` reads."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from pathlib import Path
from typing import Any

from figures import show
from serve_load.clients import Reply, ask, chat
from serve_load.front import Front
from serve_load.load import percentiles
from serve_load.prefixes import BOTS, system_prompt

from fastslow.tools.simulate.trace import TracedRequest, write_trace

SHARE_DEEP = 0.3
FAST, DEEP = (8, 16, 24), (32, 64, 96)  # tokens of answers
TARGET_MS = 1000
OWN = 16  # tokens of a prompt behind its system prompt, about


Seen = tuple[
    float, dict[str, Any], int, Reply
]  # when it came, what it was, of which bot, the answer


def body_of(draw: random.Random, number: int) -> tuple[dict[str, Any], int]:
    """A request, and its bot: fast ones of bots with long system prompts, deep ones of their own."""
    deep = draw.random() < SHARE_DEEP
    bot = draw.randrange(BOTS)
    tokens = draw.choice(DEEP if deep else FAST)
    body = chat(f"Request {number}: say something new.", tokens, speculation="off")
    body["messages"].insert(0, {"role": "system", "content": system_prompt(bot)})
    body["mode"] = "deep" if deep else "fast"
    if not deep:
        body["latency_ms"] = TARGET_MS
    return body, bot


async def all_requests(
    address: str, seconds: float, rate: float, draw: random.Random
) -> list[Seen]:
    begin = time.monotonic()
    running: list[asyncio.Task[Seen]] = []

    async def one(moment: float, body: dict[str, Any], bot: int) -> Seen:
        return moment, body, bot, await ask(address, body)

    while (moment := time.monotonic() - begin) < seconds:
        body, bot = body_of(draw, len(running))
        running.append(asyncio.create_task(one(moment, body, bot)))
        await asyncio.sleep(draw.expovariate(rate))
    return await asyncio.gather(*running)


async def one_by_one(address: str, count: int) -> list[Seen]:
    """Fast requests of one bot, each when the one before is over."""
    draw, begin, found = random.Random(0), time.monotonic(), []
    for number in range(count):
        body, _ = body_of(draw, number)
        body |= {"mode": "fast", "max_tokens": 4, "latency_ms": TARGET_MS}
        body["messages"][0]["content"] = system_prompt(0)
        moment = time.monotonic() - begin
        found.append((moment, body, 0, await ask(address, body)))
    return found


def recorded(address: str, args: argparse.Namespace, seed: int) -> tuple[list[TracedRequest], int]:
    """Requests on a server that was just started, and how many of them have no answer. Those of the first
    seconds, in which caches fill, have no measured times."""
    seconds = args.warm + args.seconds
    seen = asyncio.run(all_requests(address, seconds, args.rate, random.Random(seed)))
    requests = [traced(number, one, one[0] >= args.warm) for number, one in enumerate(seen)]
    return [one for one in requests if one is not None], requests.count(None)


def traced(number: int, seen: Seen, compared: bool) -> TracedRequest | None:
    """A request as a line of a trace; None: it has no answer."""
    moment, body, bot, reply = seen
    if not reply.whole:
        return None
    return TracedRequest(
        arrival=moment,
        mode=body["mode"],
        deep=body["mode"] == "deep",
        prompt_tokens=reply.prompt,
        answer_tokens=reply.tokens,
        id=f"r{number}",
        prefix=((f"bot {bot}", max(0, reply.prompt - OWN)),),
        max_tokens=body["max_tokens"],
        latency_ms=body.get("latency_ms"),
        first_seconds=reply.first if compared else None,
        end_seconds=reply.seconds if compared else None,
        cached_tokens=reply.cached,
    )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    front = Front(args.model, args.more, args.replicas)
    try:
        requests, lost = recorded(front.address, args, args.seed)
    finally:
        front.end()
    write_trace(Path(args.record), requests)
    firsts = {
        mode: [
            1000 * one.first_seconds for one in requests if one.mode == mode and one.first_seconds
        ]
        for mode in ("fast", "deep")
    }
    rows = [
        (mode, str(len(times)), *(f"{value:.0f}" for value in percentiles(times)))
        for mode, times in firsts.items()
    ]
    show(
        ("mode", "answers", "first ms p50", "p95", "p99"),
        rows,
        f"{args.replicas} replicas, {args.rate:g} requests a second for {args.seconds:g} s, written to {args.record}.",
    )
    return {"firsts": firsts}, [f"{lost} requests have no answer"] if lost else []
