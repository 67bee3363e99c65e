"""Requests at random moments on replicas of this machine, and what `fastslow simulate` makes of them.

The machine's speed changes within minutes. So steps are measured before and after each recording, and the mean
counts; and all recordings of a number of replicas are compared together. The server, Ray and the clients need the same
cores, and so do all threads of a replica but its engine's: what they compute for each second of the engine's thread is
measured, and counts where engines need all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from figures import console, numbers, show
from serve_load.clients import TOPICS, Reply, ask, chat
from serve_load.front import CpuSeconds, Front

from fastslow.engine.host.machine import cores
from fastslow.tools.simulate.cluster import SimulatedCluster
from fastslow.tools.simulate.costs import ReplicaCosts, read_costs, write_costs
from fastslow.tools.simulate.figures import SHARES, by_mode, measured
from fastslow.tools.simulate.replica import AnswerState
from fastslow.tools.simulate.trace import TracedRequest, write_trace

ALONE, COLD = 14, 4  # requests one by one, and those of them that do not count
RUNNING = "16"  # most requests in a step that are measured: there are never more here
LIMIT = 0.2  # that a 95th percentile may be off
BOTS = 6  # system prompts
SHARE_DEEP, TARGET_MS = 0.3, 1000
FAST, DEEP = (8, 16, 24), (32, 64, 96)  # tokens of answers
PAGE = 16  # tokens of a page of a replica, which holds whole pages of a prompt

Seen = tuple[float, dict[str, Any], Reply]  # when it came, what it was, the answer
Recording = tuple[list[TracedRequest], ReplicaCosts]


def run(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    counts = numbers(args.counts)
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)  # better known now than after minutes
    recordings: dict[int, list[Recording]] = {count: [] for count in counts}
    lost = 0
    with TemporaryDirectory() as folder:
        out = Path(folder) / "costs.json"
        before = _costs(args.model, out, max(counts) - 1)
        slowdown = before.slowdown
        for turn in range(args.repeat):
            for count in counts[:: -1 if turn % 2 else 1]:
                trace, way, share, missing = _recorded(args, count, args.seed + turn)
                after = _costs(args.model, out)
                slowed = shared_slowdown(slowdown, share)
                costs = between(before, after, first_seconds=way, slowdown=slowed)
                recordings[count].append((trace, costs))
                before, lost = after, lost + missing
                if args.keep is not None:
                    name = f"{count}-replicas-{turn + 1}"
                    write_trace(args.keep / f"{name}.trace.jsonl", trace)
                    write_costs(args.keep / f"{name}.costs.json", costs)
                console().print(
                    f"round {turn + 1}: {count} replicas, {len(trace)} answers; a way of {1000 * way:.0f} ms; all but "
                    f"the engines computed {share:.2f} s for each second of theirs"
                )
    found, wrong, rows = {}, [f"{lost} requests have no answer"] if lost else [], []
    for count, rounds in recordings.items():
        found[count] = compared(count, rounds)
        for mode, what, share, there, here in found[count]:
            off = here / there - 1
            values = f"{1000 * there:.1f}", f"{1000 * here:.1f}", f"{off:+.0%}"
            rows.append((str(count), mode, what, f"p{share}", *values))
            if mode == "all" and share == 95 and abs(off) > LIMIT:
                wrong.append(f"{count} replicas, {what}: p95 is off by {off:+.0%}")
    show(
        ("replicas", "mode", "what", "", "measured ms", "simulated ms", "off"),
        rows,
        f"{args.rate:g} requests a second, {args.repeat} rounds of {args.seconds:g} s. A step beside others takes "
        f"{', '.join(f'{value:.2f}' for value in slowdown)} times what it takes alone.",
    )
    return {"slowdown": list(slowdown), "counts": found}, wrong


def compared(replicas: int, rounds: Sequence[Recording]) -> list[tuple[Any, ...]]:
    """All rounds of some replicas on one machine: mode, what, percentile, seconds measured and simulated."""
    recorded: list[AnswerState] = []
    simulated: list[AnswerState] = []
    for trace, costs in rounds:
        recorded += measured(trace)
        answers = SimulatedCluster(trace, costs, replicas, replicas).run()
        simulated += [one for one in answers if one.request.first_seconds is not None]
    found, here = [], by_mode(simulated)
    for mode, there in by_mode(recorded).items():
        found += [(mode, "first token", *one) for one in zip(SHARES, there.first, here[mode].first)]
        found += [(mode, "later tokens", *one) for one in zip(SHARES, there.each, here[mode].each)]
    return found


def shared_slowdown(slowdown: Sequence[float], share: float) -> tuple[float, ...]:
    """The slowdown of engines of one thread where other programs need the same cores: they compute `share` seconds
    for each second of an engine, and count where all together need more cores than there are."""

    def wanted(engines: int, each: float) -> float:
        return max(1.0, engines * each / cores())

    return tuple(
        value * wanted(engines, 1.0 + share) / wanted(engines, 1.0)
        for engines, value in enumerate(slowdown, 2)
    )


# What is recorded


def _recorded(
    args: argparse.Namespace, replicas: int, seed: int
) -> tuple[list[TracedRequest], float, float, int]:
    """A trace; seconds of the way to a replica; the share of all but the engines; requests without an answer.

    Requests that fill caches have no measured times.
    """
    with Front(args.model, args.more, replicas) as front:
        alone = asyncio.run(_one_by_one(front.address, ALONE))[COLD:]
        begun = front.cpu_seconds()
        seconds = args.warm + args.seconds
        seen = asyncio.run(_requests(front.address, seconds, args.rate, random.Random(seed)))
        share = other_share(begun, front.cpu_seconds())
        whole = [(number, one) for number, one in enumerate(seen) if one[2].whole]
        trace = [traced(front.address, n, one, one[0] >= args.warm) for n, one in whole]
    way = max(0.0, median(reply.first - reply.waited for reply in alone))
    return trace, way, share, len(seen) - len(whole)


def system_prompt(bot: int) -> str:
    """Some 300 tokens that all chats of a bot begin with."""
    draw = random.Random(bot)
    rules = (
        f"Rule {n}: speak of {draw.choice(TOPICS)} when asked of {draw.choice(TOPICS)}."
        for n in range(18)
    )
    return f"You are bot {bot}. " + " ".join(rules)


def body_of(draw: random.Random, number: int) -> dict[str, Any]:
    """A request to one of some bots with long system prompts."""
    deep, bot = draw.random() < SHARE_DEEP, draw.randrange(BOTS)
    body = chat(
        f"Request {number}: say something new.",
        draw.choice(DEEP if deep else FAST),
        speculation="off",
        mode="deep" if deep else "fast",
        **({} if deep else {"latency_ms": TARGET_MS}),
    )
    body["messages"].insert(0, {"role": "system", "content": system_prompt(bot)})
    return body


async def _requests(address: str, seconds: float, rate: float, draw: random.Random) -> list[Seen]:
    begin = time.monotonic()
    running: list[asyncio.Task[Seen]] = []

    async def one(moment: float, body: dict[str, Any]) -> Seen:
        return moment, body, await ask(address, body)

    while (moment := time.monotonic() - begin) < seconds:
        running.append(asyncio.create_task(one(moment, body_of(draw, len(running)))))
        await asyncio.sleep(draw.expovariate(rate))
    return await asyncio.gather(*running)


async def _one_by_one(address: str, count: int) -> list[Reply]:
    """Fast requests of one bot, each when the one before is over."""
    draw, found = random.Random(0), []
    for number in range(count):
        body = body_of(draw, number) | {"mode": "fast", "max_tokens": 4, "latency_ms": TARGET_MS}
        body["messages"][0]["content"] = system_prompt(0)
        found.append(await ask(address, body))
    return found


def traced(address: str, number: int, seen: Seen, counts: bool) -> TracedRequest:
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
        latency_ms=body.get("latency_ms"),
        first_seconds=reply.first if counts else None,
        end_seconds=reply.seconds if counts else None,
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


def other_share(begun: CpuSeconds, ended: CpuSeconds) -> float:
    """Seconds that all but the engines computed for each second of theirs, between two moments.

    The thread of a replica that computed most is its engine's. A process that ended meanwhile does not count.
    """
    engines = others = 0.0
    for pid, threads in ended.replicas.items():
        known = begun.replicas.get(pid, {})
        spent = [seconds - known.get(thread, 0.0) for thread, seconds in threads.items()]
        engines += max(spent, default=0.0)
        others += sum(spent) - max(spent, default=0.0)
    for pid, seconds in ended.others.items():
        others += seconds - begun.others.get(pid, 0.0)
    if not engines:
        raise RuntimeError("no replica computed while requests were sent")
    return others / engines


def _costs(model: str, out: Path, beside: int = 0) -> ReplicaCosts:
    """What steps take now, on one thread as a replica has."""
    words = ["simulate", "measure", "--model", model, "-o", str(out), "--max-running", RUNNING]
    subprocess.run(
        [sys.executable, "-m", "fastslow", *words, "--beside", str(beside)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return read_costs(out)


def between(one: ReplicaCosts, other: ReplicaCosts, **more: Any) -> ReplicaCosts:
    """The mean of both, with further fields."""
    found, also = one.model_dump(), other.model_dump()
    for name in ("context_seconds", "attention_seconds"):
        found[name] = (found[name] + also[name]) / 2
    for mode, steps in found["modes"].items():
        for curve in ("seconds", "prompt_seconds"):
            pairs = zip(steps[curve], also["modes"][mode][curve], strict=True)
            steps[curve] = tuple((a + b) / 2 for a, b in pairs)
    return ReplicaCosts(**found | more)
