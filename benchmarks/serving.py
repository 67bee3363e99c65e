"""The server against the bare engine.

    python benchmarks/serving.py [--clients 1,4,16,64] [--tokens 64] [--repeat 5] [--out serving.json]

It gives the share of the bare engine's tokens a second that clients of the server get, and what the server
adds to the time to the first token: what a client waits, less what the engine says that it took, over the same for the
bare engine. Both run the same prompts, one round of each in turn. The bare engine is an `LLM` in a separate process,
whose answers are read piece by piece.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import Any

from figures import numbers, options, show, write
from serve_load.clients import TOPICS, Reply, ask, chat
from serve_load.front import BareEngine, Front

APART = 0.02  # seconds between the first requests of two clients
FIGURES = "rate", "first_ms", "added_ms"
Prompts = list[list[str]]  # of each client


def prompts_for(turn: int, clients: int, each: int) -> Prompts:
    """For each client some prompts that nobody asked before."""
    return [
        [
            f"Write a story of {TOPICS[(client + n) % len(TOPICS)]}, number {turn}.{client}.{n}."
            for n in range(each)
        ]
        for client in range(clients)
    ]


async def all_clients(
    address: str, prompts: Prompts, tokens: int, fields: dict[str, Any]
) -> list[Reply]:
    """Each client asks its prompts one after the other."""

    async def client(number: int, asked: list[str]) -> list[Reply]:
        await asyncio.sleep(number * APART)
        return [await ask(address, chat(prompt, tokens, **fields)) for prompt in asked]

    found = await asyncio.gather(*(client(n, asked) for n, asked in enumerate(prompts)))
    return [reply for replies in found for reply in replies]


def of_server(
    server: Front, prompts: Prompts, tokens: int, fields: dict[str, Any]
) -> dict[str, float]:
    """One round of the server."""
    begin = time.perf_counter()
    replies = asyncio.run(all_clients(server.address, prompts, tokens, fields))
    seconds = time.perf_counter() - begin
    wrong = [r for r in replies if not r.whole or r.tokens != tokens]
    if wrong:
        raise RuntimeError(f"{len(wrong)} answers are not whole, such as {wrong[0]}")
    return figures([(r.first, r.waited) for r in replies], len(replies) * tokens / seconds)


def of_engine(
    bare: BareEngine, prompts: Prompts, tokens: int, fields: dict[str, Any]
) -> dict[str, float]:
    """One round of the bare engine."""
    found = bare.measure({"clients": prompts, "tokens": tokens, "apart": APART, **fields})
    answers = found["answers"]
    count = sum(answer["tokens"] for answer in answers)
    if count != len(answers) * tokens:
        raise RuntimeError(f"{count} tokens came of {len(answers)} answers of {tokens}")
    return figures([(a["first"], a["waited"]) for a in answers], count / found["seconds"])


def figures(firsts: list[tuple[float, float]], rate: float) -> dict[str, float]:
    """Tokens a second; milliseconds to the first token, and those that the engine does not count."""
    return {
        "rate": rate,
        "first_ms": 1000 * statistics.median(seen for seen, _ in firsts),
        "added_ms": 1000 * statistics.median(seen - waited for seen, waited in firsts),
    }


def compare(args: argparse.Namespace, server: Front, bare: BareEngine) -> None:
    fields = {"mode": args.mode, "speculation": args.speculation}
    rows: list[dict[str, Any]] = []
    for clients in numbers(args.clients):
        each = max(args.each, args.least // clients)
        rounds: dict[str, list[dict[str, float]]] = {"server": [], "engine": []}
        for turn in range(args.repeat + 1):  # the first one warms up
            asked = (prompts_for(turn, clients, each), args.tokens, fields)
            for name in sorted(rounds, reverse=turn % 2 == 0):
                found = of_server(server, *asked) if name == "server" else of_engine(bare, *asked)
                rounds[name] += [found] if turn else []
        rows.append({"clients": clients, "requests": each, **compared(rounds)})
        write(args.out, model=args.model, rows=rows)
    table = [
        (
            str(row["clients"]),
            *(f"{row[name]['rate']:.1f}" for name in ("server", "engine")),
            f"{row['share']:.1%}",
            f"{row['server']['first_ms']:.1f}",
            f"{row['added_ms']:+.1f}",
        )
        for row in rows
    ]
    show(
        ("clients", "server tok/s", "engine tok/s", "share", "first ms", "added ms"),
        table,
        f"Medians of {args.repeat} rounds each, in turn; {args.tokens} tokens an answer, mode {args.mode}, "
        f"speculation {args.speculation}.",
    )


def compared(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians; the share is the median of the shares of neighbouring rounds."""
    pairs = list(zip(rounds["server"], rounds["engine"], strict=True))
    middles = {
        name: {figure: statistics.median(one[figure] for one in found) for figure in FIGURES}
        for name, found in rounds.items()
    }
    return middles | {
        "share": statistics.median(s["rate"] / e["rate"] for s, e in pairs),
        "added_ms": statistics.median(s["added_ms"] - e["added_ms"] for s, e in pairs),
        "rounds": rounds,
    }


def main() -> int:
    parser = options(__doc__, "dtype", "quantization", "out", model="smollm2-moge", tokens=64)
    parser.add_argument("--clients", default="1,4,16,64", help="how many at a time")
    parser.add_argument("--least", type=int, default=4, help="requests of a round, at least")
    parser.add_argument("--each", type=int, default=3, help="requests of a client in a round")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of each")
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--speculation", default="off", help="a drafter, auto or off")
    args = parser.parse_args()
    given = {name: value for name in ("dtype", "quantization") if (value := getattr(args, name))}
    serving = ["--remember", "off", *(part for n, v in given.items() for part in (f"--{n}", v))]
    bare = BareEngine(args.model, given | {"progress": False, "remember": False})
    try:
        with Front(args.model, serving) as server:
            compare(args, server, bare)
    finally:
        bare.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
