"""Decoding and reading prompts by weight format: rows, contexts, modes, and a busy neighbour.

    python benchmarks/decode.py --model smollm2 --formats bfloat16,int8,int4
    python benchmarks/decode.py --contexts 100,8000 --beside 1
    python benchmarks/decode.py --rows "" --read 128,512,2048
    python benchmarks/decode.py --model smollm2-moge --rows 1 --tokens 128 --modes deep,fast

Tokens per second of all rows, the first token of each answer not counted; medians over repeats in which everything
takes turns. A format may end in +kv8 (keys and values in int8), and then in @FOLDER (another model, such as the same
one quantised: auto@FOLDER). `--beside N` adds one row while N other processes each keep a processor busy. `--read`
adds prompts of random ids, which no cache holds: tokens per second from the call to the first token. What other
engines make is measured by peers.py.

The second table (with the CPU kernels) is of one row: the bytes that a step has to read once, its weights and the
keys and values of its context, times steps per second, as a share of the bandwidth that all threads read right before
or after. If time followed bytes alone, all modes would have the same share.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from figures import (
    Row,
    fair,
    middle,
    numbers,
    open_formats,
    options,
    show,
    take_turns,
    with_conditions,
)
from peer.texts import openings, unseen

from fastslow import LLM, SamplingParams
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.tools.tune.sample import seconds_of

PROMPT = 64
BUSY = "while True: pass"
SEEDS = itertools.count()  # no two prompts that are read are the same


@contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """Processes that each keep a processor busy; their ids."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        if running:
            time.sleep(0.5)  # until they are past their own start
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(llm: LLM, row: Row, tokens: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of answers, or of prompts that are read, for at least `seconds`."""
    if row["read"]:
        times: list[float] = []
        while not times or sum(times) < seconds:
            (ids,) = unseen(llm.model.config.vocab_size, [row["read"]], next(SEEDS))
            started = time.perf_counter()
            llm.generate(ids, SamplingParams(max_tokens=1), mode=row["mode"], speculation="off")
            times.append(time.perf_counter() - started)
        return {"rate": row["read"] / statistics.median(times), "prompts": len(times)}
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = openings(llm.tokenizer, row["rows"], row["context"])
    spent, made = 0.0, 0
    while not made or spent < seconds:
        asked = {"mode": row["mode"], "speculation": "off", "progress": False}
        outputs = llm.generate(prompts, sampling, **asked)
        spent += seconds_of([output.metrics for output in outputs])
        made += row["rows"] * (tokens - 1)
    return {"rate": made / spent}


def rows_of(format: str, llm: LLM, args: argparse.Namespace) -> list[Row]:
    """The rows to measure in one format, without samples yet."""
    config = llm.model.config
    fits = [n for n in numbers(args.contexts) if n + args.tokens <= config.context]
    cells: dict[str, Row] = {f"{n} row{'s' * (n > 1)}": {"rows": n} for n in numbers(args.rows)}
    cells |= {f"1 row after {n}": {"context": n} for n in fits}
    cells |= {f"1 row beside {n}": {"beside": n} for n in [args.beside] if n}
    cells |= {f"read {n}": {"read": n} for n in numbers(args.read)}
    usual = {"rows": 1, "context": PROMPT, "beside": 0, "read": 0, "bytes": None}
    found: list[Row] = []
    for mode in args.modes.split(","):
        for title, cell in cells.items():
            row: Row = {"format": format, "mode": mode, "cell": title, **usual, **cell}
            if isinstance(llm.model, CpuDecoder) and row["rows"] == 1 and not row["read"]:
                kept = config.state_layout.token_bytes(llm.model.dtype)
                weights = llm.model.bytes_for(llm.modes[mode].groups)
                row["bytes"] = weights + kept * (row["context"] + args.tokens / 2)
            found.append({**row, "samples": []})
    return found


def report(rows: list[Row], *notes: str) -> None:
    titles = list(dict.fromkeys(row["cell"] for row in rows))
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault((row["format"], row["mode"]), {})
        line[row["cell"]] = middle(row["samples"])
    cells = [[*key, *(line.get(t, "-") for t in titles)] for key, line in lines.items()]
    show(["tokens/s", "mode", *titles], cells)
    shares = []
    for row in (row for row in rows if row["bytes"]):
        read, (samples, _) = row["bytes"], fair(row["samples"])
        used = statistics.median(s["rate"] * read / 1e9 for s in samples)
        probed = statistics.median(s["bandwidth"] for s in samples)
        share = statistics.median(s["rate"] * read / 1e9 / s["bandwidth"] for s in samples)
        figures = f"{read / 1e6:.1f}", f"{used:.1f}", f"{probed:.1f}", f"{share:.0%}"
        shares.append([row["format"], row["mode"], row["cell"], *figures])
    show(["format", "mode", "", "MB a step", "GB/s", "probed", "share"], shares, *notes)


def main() -> int:
    names = ("model", "formats", "threads", "seconds")
    parser = options(__doc__, *names, tokens=64, repeat=5, out="decode.json")
    parser.add_argument("--rows", default="1,2,4,8", help="answers at once")
    parser.add_argument("--contexts", default="", help="tokens, such as 100,1000,8000")
    parser.add_argument("--modes", default="deep", help="presets, such as deep,fast")
    parser.add_argument("--beside", type=int, default=0, metavar="N")
    parser.add_argument("--read", default="", help="lengths of prompts, such as 128,512,2048")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        models = open_formats(args, stack)
        rows = [row for format, llm in models.items() for row in rows_of(format, llm, args)]
        if not rows:
            return 1

        def warm_up(row: Row) -> dict[str, Any]:
            return measure(models[row["format"]], row, tokens=4, seconds=0)

        def sample(row: Row) -> dict[str, Any]:
            job = (models[row["format"]], row, args.tokens, args.seconds)
            with busy(row["beside"]) as pids:  # a neighbour that is asked for is no other
                return with_conditions(args.threads, lambda: measure(*job), pids)

        take_turns(args, rows, warm_up, sample)
    report(rows, f"{args.threads} threads; ~ marks contended medians; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
