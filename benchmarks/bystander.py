"""Does anybody wait for somebody else's request? Answers of four tokens, alone and beside attacks of another address.

    python benchmarks/bystander.py [--model abacus] [--attacks plain,drafts]

The command `fastslow serve MODEL` is asked over HTTP by two addresses of this machine, so by two shares. Turns alone
and beside each attack are interleaved. Milliseconds of whole answers. Exit code 1 where a median is more than twice
that of the turns alone, or the worst more than 250 ms.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import Any

from figures import options, percentiles, show, write
from serve_load.clients import WAIT, ask, chat
from serve_load.front import served

OTHER = "127.0.0.2"  # where attacks come from
PAUSE = 0.1  # seconds between two requests of the bystander, on average
SETTLE = 1.0  # seconds after an attack begins, and after it ends
WORST_MS = 250.0
FLOOR = {"every": 4, "tokens": 16, "times": 16, "sure": 0}  # what clients may ask of `confidence`
ATTACKS: dict[str, tuple[int, int, dict[str, Any]]] = {  # requests at a time, words, fields
    "plain": (1, 1, {"n": 16}),
    "prompts": (4, 1000, {}),
    "drafts": (1, 1, {"n": 16, "speculation": {"drafter": "self", "nodes": 64}}),
    "questions": (1, 1, {"n": 16, "reasoning_effort": "high", "confidence": FLOOR}),
    "priority": (16, 1, {"n": 16, "priority": -1000}),
    "target": (1, 1, {"n": 16, "latency_ms": 1}),
    "grammar": (16, 1, {"guided_grammar": 'start: s\ns: s s | s s s | "a" |', "temperature": 1}),
}


async def answer(address: str, body: dict[str, Any], said: set[str], source: str = "") -> float:
    """Milliseconds of an answer; the longest wait where it does not come."""
    began = time.perf_counter()
    try:
        if (reply := await ask(address, body, source)).whole:
            return 1000 * (time.perf_counter() - began)
        said.add(f"{reply.status} {reply.error[-200:]}")
        await asyncio.sleep(0.2)
    except TimeoutError:
        said.add(f"no answer within {WAIT:g} s")
    return 1000 * WAIT


async def turn(address: str, name: str, count: int, said: set[str]) -> list[float]:
    """Milliseconds of so many answers beside an attack."""
    clients, words, fields = ATTACKS.get(name, (0, 0, {}))
    over = asyncio.Event()  # a cancelled task may miss that, where its answer ends at the same time

    async def attacker() -> None:
        while not over.is_set():
            asked = " ".join(str(random.randrange(10**6)) for _ in range(words))
            body = chat(f"Tell me of {asked}.", 200, **fields)
            await answer(address, body, said, OTHER)

    others, found = [asyncio.create_task(attacker()) for _ in range(clients)], list[float]()
    await asyncio.sleep(SETTLE)
    while len(found) < count and 1000 * WAIT not in found:
        await asyncio.sleep(random.expovariate(1 / PAUSE))
        body = chat(f"Hi {random.randrange(10**6)}", 4, mode="fast")
        found.append(await answer(address, body, said))
    over.set()
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(SETTLE)
    return found


def main() -> int:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=2)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--count", type=int, default=15, help="answers of a turn")
    args = parser.parse_args()
    said, names = set[str](), args.attacks.split(",")
    times: dict[str, list[float]] = {name: [] for name in ("alone", *names)}
    with served(args.model) as address:
        asyncio.run(turn(address, "alone", args.count, said))  # what is made on first use
        for one in [one for name in names * args.repeat for one in ("alone", name)]:
            times[one] += (made := asyncio.run(turn(address, one, args.count, said)))
            print(f"{one}:", *(f"{ms:.0f}" for ms in made), flush=True)
    figures = {name: (*percentiles(ms)[::2], max(ms)) for name, ms in times.items()}
    most = 2 * figures["alone"][0]
    wrong = [name for name, (p50, _, worst) in figures.items() if p50 > most or worst > WORST_MS]
    rows = [(name, *(f"{value:.0f}" for value in row)) for name, row in figures.items()]
    show(("beside", "p50 ms", "p99", "worst"), rows, *sorted(said), f"too long: {wrong}")
    write(args.out, model=args.model, times=times, wrong=wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
