"""The server against the bare engine; under load; and when things go wrong.

    python benchmarks/serving.py [--clients 1,4,16,64] [--tokens 64] [--repeat 5] [--out serving.json]
    python benchmarks/serving.py --load 5
    python benchmarks/serving.py --faults

The first form gives the share of the bare engine's tokens a second that clients of the server get, and what the server
adds to the time to the first token: what a client waits, less what the engine says that it took, over the same for the
bare engine. Both run the same prompts, one round of each in turn; the bare engine is an `LLM` in
a process of its own, whose answers are read piece by piece. Clients of the server run beside it on the same processor, so
the table also says what they, the server and the engine take for a token.

`--load` has 64 clients for some minutes, in mixed modes; 20% leave at some moment and 5% send what is wrong. `--faults`
kills the engine, and reads one byte a second. Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from figures import console, numbers, options, show, write
from serve_load import faults, load
from serve_load.clients import Reply, ask, chat
from serve_load.front import BareEngine, Front, cpu_seconds

APART = 0.02  # seconds between the first requests of two clients
FIGURES = "rate", "first_ms", "added_ms", "whole_ms"
SUBJECTS = ("the sea", "old maps", "bread", "a lighthouse", "bees", "rivers", "clocks", "snow")


def prompts_for(turn: int, clients: int, each: int) -> list[list[str]]:
    """For each client so many prompts that nobody asked before."""
    return [
        [
            f"Write a story of {SUBJECTS[(client + n) % len(SUBJECTS)]}, number {turn}.{client}.{n}."
            for n in range(each)
        ]
        for client in range(clients)
    ]


async def one_client(
    address: str, number: int, prompts: list[str], tokens: int, fields: dict[str, Any]
) -> list[Reply]:
    await asyncio.sleep(number * APART)
    return [await ask(address, chat(prompt, tokens, **fields)) for prompt in prompts]


async def all_clients(
    address: str, prompts: list[list[str]], tokens: int, fields: dict[str, Any]
) -> list[Reply]:
    clients = (one_client(address, n, one, tokens, fields) for n, one in enumerate(prompts))
    found = await asyncio.gather(*clients)
    return [reply for replies in found for reply in replies]


def of_server(
    server: Front, prompts: list[list[str]], tokens: int, fields: dict[str, Any]
) -> dict[str, Any]:
    """One round of the server."""
    processes = server.pid, server.engine
    before = [cpu_seconds(pid) for pid in processes]
    own, begin = time.process_time(), time.perf_counter()
    replies = asyncio.run(all_clients(server.address, prompts, tokens, fields))
    seconds, own = time.perf_counter() - begin, time.process_time() - own
    wrong = [r for r in replies if not r.whole or r.tokens != tokens]
    if wrong:
        raise RuntimeError(f"{len(wrong)} answers are not whole, such as {wrong[0]}")
    after = [cpu_seconds(pid) for pid in processes]
    used = dict(zip(("server", "engine"), (b - a for a, b in zip(before, after))), clients=own)
    return figures(
        [(r.first, r.waited) for r in replies],
        len(replies) * tokens,
        seconds,
        used,
        [r.seconds for r in replies],
    )


def of_engine(
    bare: BareEngine, prompts: list[list[str]], tokens: int, fields: dict[str, Any]
) -> dict[str, Any]:
    """One round of the bare engine."""
    found = bare.measure({"clients": prompts, "tokens": tokens, "apart": APART, **fields})
    answers = found["answers"]
    count = sum(answer["tokens"] for answer in answers)
    if count != len(answers) * tokens:
        raise RuntimeError(f"{count} tokens came of {len(answers)} answers of {tokens}")
    firsts, whole = [(a["first"], a["waited"]) for a in answers], [a["seconds"] for a in answers]
    return figures(firsts, count, found["seconds"], {"engine": found["cpu"]}, whole)


def figures(
    firsts: list[tuple[float, float]],
    tokens: int,
    seconds: float,
    cpu: dict[str, float],
    whole: list[float],
) -> dict[str, Any]:
    """Tokens a second; milliseconds to the first token, as the client sees it and as the engine says; microseconds
    of processor for a token."""
    return {
        "rate": tokens / seconds,
        "first_ms": 1000 * statistics.median(seen for seen, _ in firsts),
        "added_ms": 1000 * statistics.median(seen - waited for seen, waited in firsts),
        "whole_ms": 1000 * statistics.median(whole),
        "cpu_us": {name: 1e6 * used / tokens for name, used in cpu.items()},
    }


def compare(args: argparse.Namespace, serving: Sequence[str], options: dict[str, Any]) -> None:
    fields = {"mode": args.mode, "speculation": args.speculation}
    bare, server = BareEngine(args.model, options), Front(args.model, serving)
    rows = []
    try:
        for clients in numbers(args.clients):
            each = max(args.each, args.least // clients)
            rounds: dict[str, list[dict[str, Any]]] = {"server": [], "engine": []}
            for turn in range(args.repeat + 1):  # the first one warms up
                prompts = prompts_for(turn, clients, each)
                took = {
                    "server": lambda p=prompts: of_server(server, p, args.tokens, fields),
                    "engine": lambda p=prompts: of_engine(bare, p, args.tokens, fields),
                }
                for name in sorted(took, reverse=turn % 2 == 0):
                    found = took[name]()
                    if turn:
                        rounds[name].append(found)
            rows.append({"clients": clients, "requests": each, **compared(rounds)})
            write(args.out, model=args.model, rows=rows)
    finally:
        server.end()
        bare.end()
    titles = ("clients", "server tok/s", "engine tok/s", "share", "first ms", "added ms")
    cpu = ("engine", "server", "clients")
    table = [
        (
            str(row["clients"]),
            *(f"{row[name]['rate']:.1f}" for name in ("server", "engine")),
            f"{row['share']:.1%}",
            f"{row['server']['first_ms']:.1f}",
            f"{row['added_ms']:+.1f}",
            f"{row['engine']['cpu_us']['engine']:.0f}",
            *(f"{row['server']['cpu_us'][name]:.0f}" for name in cpu),
        )
        for row in rows
    ]
    show(
        (*titles, "bare us/tok", *(f"{name} us/tok" for name in cpu)),
        table,
        f"Medians of {args.repeat} rounds each, in turn; {args.tokens} tokens an answer, mode {args.mode}, "
        f"speculation {args.speculation}; us/tok: processor time of all threads for a token.",
    )


def compared(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians; the share is the median of the shares of neighbouring rounds."""
    pairs = list(zip(rounds["server"], rounds["engine"]))
    return {
        "share": statistics.median(s["rate"] / e["rate"] for s, e in pairs),
        "added_ms": statistics.median(s["added_ms"] - e["added_ms"] for s, e in pairs),
        **{name: middles(found) for name, found in rounds.items()},
        "rounds": rounds,
    }


def middles(found: list[dict[str, Any]]) -> dict[str, Any]:
    each = {n: statistics.median(f[n] for f in found) for n in FIGURES}
    names = found[0]["cpu_us"]
    return each | {"cpu_us": {n: statistics.median(f["cpu_us"][n] for f in found) for n in names}}


def main() -> int:
    parser = options(__doc__, "dtype", "quantization", "out", model="smollm2-moge", tokens=64)
    parser.add_argument("--clients", default="1,4,16,64", help="how many at a time")
    parser.add_argument("--least", type=int, default=4, help="requests of a round, at least")
    parser.add_argument("--each", type=int, default=3, help="requests of a client in a round")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of each")
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--speculation", default="off", help="a drafter, auto or off")
    parser.add_argument("--load", type=float, metavar="MINUTES", help="clients of all kinds")
    parser.add_argument("--faults", action="store_true", help="what goes wrong")
    parser.add_argument("--kv-memory", default="512MiB", help="of the engine under load")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    given = {name: value for name in ("dtype", "quantization") if (value := getattr(args, name))}
    serving = ["--remember", "off", *(part for n, v in given.items() for part in (f"--{n}", v))]
    if args.load is not None or args.faults:
        module = load if args.load is not None else faults
        # small enough to be full of cached prefixes in the first minute: memory must not grow from then on
        serving += ["--kv-memory", args.kv_memory]
        found, wrong = module.run(args, serving)
        write(args.out, model=args.model, found=found, wrong=wrong)
        for line in wrong:
            console().print(line)
        return 1 if wrong else 0
    compare(args, serving, given | {"progress": False, "remember": False})
    return 0


if __name__ == "__main__":
    sys.exit(main())
