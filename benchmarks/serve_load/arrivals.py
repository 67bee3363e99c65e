"""Requests at random moments on replicas, written as a trace that `fastslow simulate` reads."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Sequence
from hashlib import blake2b
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
PAGE = 16  # tokens of a page of a replica, which holds whole pages of a prompt


Seen = tuple[float, dict[str, Any], Reply]  # when it came, what it was, the answer


def body_of(draw: random.Random, number: int) -> dict[str, Any]:
    """A request to one of some bots with long system prompts."""
    deep = draw.random() < SHARE_DEEP
    bot = draw.randrange(BOTS)
    tokens = draw.choice(DEEP if deep else FAST)
    body = chat(f"Request {number}: say something new.", tokens, speculation="off")
    body["messages"].insert(0, {"role": "system", "content": system_prompt(bot)})
    body["mode"] = "deep" if deep else "fast"
    if not deep:
        body["latency_ms"] = TARGET_MS
    return body


async def all_requests(
    address: str, seconds: float, rate: float, draw: random.Random
) -> list[Seen]:
    begin = time.monotonic()
    running: list[asyncio.Task[Seen]] = []

    async def one(moment: float, body: dict[str, Any]) -> Seen:
        return moment, body, await ask(address, body)

    while (moment := time.monotonic() - begin) < seconds:
        running.append(asyncio.create_task(one(moment, body_of(draw, len(running)))))
        await asyncio.sleep(draw.expovariate(rate))
    return await asyncio.gather(*running)


async def one_by_one(address: str, count: int) -> list[Seen]:
    """Fast requests of one bot, each when the one before is over."""
    draw, begin, found = random.Random(0), time.monotonic(), []
    for number in range(count):
        body = body_of(draw, number)
        body |= {"mode": "fast", "max_tokens": 4, "latency_ms": TARGET_MS}
        body["messages"][0]["content"] = system_prompt(0)
        moment = time.monotonic() - begin
        found.append((moment, body, await ask(address, body)))
    return found


def sent(address: str, args: argparse.Namespace, seed: int) -> list[Seen]:
    """Requests on a server that was just started: first those that fill caches, then those that count."""
    seconds = args.warm + args.seconds
    return asyncio.run(all_requests(address, seconds, args.rate, random.Random(seed)))


def as_trace(
    address: str, args: argparse.Namespace, seen: Sequence[Seen]
) -> tuple[list[TracedRequest], int]:
    """The same as a trace, and how many have no answer. Those that fill caches have no measured times."""
    whole = [(number, one) for number, one in enumerate(seen) if one[2].whole]
    found = [traced(address, number, one, one[0] >= args.warm) for number, one in whole]
    return found, len(seen) - len(whole)


def traced(address: str, number: int, seen: Seen, compared: bool) -> TracedRequest:
    """A request that has an answer as a line of a trace."""
    moment, body, reply = seen
    return TracedRequest(
        arrival=moment,
        mode=body["mode"],
        deep=body["mode"] == "deep",
        prompt_tokens=reply.prompt,
        answer_tokens=reply.tokens,
        id=f"r{number}",
        prefix=pages(prompt_tokens(address, body)),
        max_tokens=body["max_tokens"],
        latency_ms=body.get("latency_ms"),
        first_seconds=reply.first if compared else None,
        end_seconds=reply.seconds if compared else None,
        cached_tokens=reply.cached,
    )


def prompt_tokens(address: str, body: dict[str, Any]) -> list[int]:
    """The tokens of a request's prompt, as the server has them."""
    asked = json.dumps({"messages": body["messages"], "mode": body["mode"]}).encode()
    request = urllib.request.Request(f"{address}/tokenize", asked)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[int] = json.load(answer)["tokens"]
        return found


def pages(tokens: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """The whole pages of a prompt as pieces. Each has a name of all tokens up to its end, so that prompts share
    the pages that replicas would share."""
    ends = range(PAGE, len(tokens) + 1, PAGE)
    return tuple(
        (blake2b(repr(tokens[:end]).encode(), digest_size=6).hexdigest(), PAGE) for end in ends
    )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    front = Front(args.model, args.more, args.replicas)
    try:
        seen = sent(front.address, args, args.seed)
        requests, lost = as_trace(front.address, args, seen)
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
