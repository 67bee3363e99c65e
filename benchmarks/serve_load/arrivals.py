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


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    front = Front(args.model, args.more, args.replicas)
    try:
        draw = random.Random(args.seed)
        asyncio.run(all_requests(front.address, 8, args.rate, random.Random(args.seed + 1)))
        seen = asyncio.run(all_requests(front.address, args.seconds, args.rate, draw))
    finally:
        front.end()
    requests, lost = [], 0
    firsts: dict[str, list[float]] = {"fast": [], "deep": []}
    for number, (moment, body, bot, reply) in enumerate(seen):
        if not reply.whole:
            lost += 1
            continue
        mode = body["mode"]
        firsts[mode].append(1000 * reply.first)
        shared = max(0, reply.prompt - OWN)
        requests.append(
            TracedRequest(
                arrival=moment,
                mode=mode,
                deep=mode == "deep",
                prompt_tokens=reply.prompt,
                answer_tokens=reply.tokens,
                id=f"r{number}",
                prefix=((f"bot {bot}", shared),),
                max_tokens=body["max_tokens"],
                latency_ms=body.get("latency_ms"),
                first_seconds=reply.first,
                end_seconds=reply.seconds,
                cached_tokens=reply.cached,
            )
        )
    write_trace(Path(args.record), requests)
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


OWN = 16  # tokens of a prompt behind its system prompt, about
