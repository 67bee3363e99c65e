"""Plain decoding by weight format: rows at once, length of context, and a busy neighbour.

    python benchmarks/decode.py --model smollm2 --formats bfloat16,int8,int4

Tokens per second of all rows together, the first token of each answer not counted; medians over
repeats in which all cells take turns. A format may end in +kv8 (keys and values in int8), and then in @FOLDER
(another model, such as the same one quantised: auto@FOLDER). `--beside N` adds cells of one row while N other processes each
keep a processor busy. What other engines max_len is peers.py's to measure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import probe
import torch
from peer.formats import options_of
from peer.report import middle
from peer.texts import openings
from rich.console import Console
from rich.table import Table

from fastslow import LLM, SamplingParams

PROMPT = 64
BUSY = "while True: pass"


class Cell(NamedTuple):
    """`rows` answers after `context` tokens each, beside so many busy processes."""

    rows: int = 1
    context: int = PROMPT
    beside: int = 0

    @property
    def title(self) -> str:
        if self.beside:
            return f"1 row beside {self.beside}"
        if self.context != PROMPT:
            return f"1 row after {self.context}"
        return f"{self.rows} row{'s' if self.rows > 1 else ''}"


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


def measure(llm: LLM, cell: Cell, tokens: int, seconds: float) -> dict[str, Any]:
    """Answers until they took at least `seconds`."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = openings(llm.tokenizer, cell.rows, cell.context)
    spent, made = 0.0, 0
    while not made or spent < seconds:
        outputs = llm.generate(prompts, sampling, speculation="off", progress=False)
        metrics = [output.metrics for output in outputs]
        ends = [m.ttft + m.tpot * (m.tokens - 1) for m in metrics]
        spent += max(ends) - min(m.ttft for m in metrics)
        made += cell.rows * (tokens - 1)
    return {"rate": made / spent}


def sample(llm: LLM, cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """A neighbour that the cell asks for counts as the benchmark's own."""
    with busy(cell.beside) as pids:
        return probe.sample(
            args.threads, lambda: measure(llm, cell, args.tokens, args.seconds), pids
        )


def cells(args: argparse.Namespace, longest: int) -> list[Cell]:
    found = [Cell(rows=int(n)) for n in args.rows.split(",")]
    contexts = [int(n) for n in args.contexts.split(",") if n]
    found += [Cell(context=n) for n in contexts if n + args.tokens <= longest]
    return found + ([Cell(beside=args.beside)] if args.beside else [])


def table(rows: list[dict[str, Any]]) -> Table:
    titles = list(dict.fromkeys(row["cell"] for row in rows))
    shown = Table("tokens/s", *titles)
    for format in dict.fromkeys(row["format"] for row in rows):
        mine = {r["cell"]: middle(r["samples"]) for r in rows if r["format"] == format}
        shown.add_row(format, *(mine.get(title, "-") for title in titles))
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a folder or a built-in name")
    parser.add_argument("--formats", default="bfloat16,int8,int4")
    parser.add_argument("--rows", default="1,2,4,8")
    parser.add_argument("--contexts", default="", help="tokens, such as 100,1000,8000")
    parser.add_argument("--beside", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=probe.physical_cores())
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of a sample")
    parser.add_argument("--out", type=Path, default=Path("decode.json"))
    return parser.parse_args()


def main() -> int:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(args.threads)
    models: dict[str, LLM] = {}
    jobs: list[tuple[str, Cell]] = []
    with ExitStack() as stack:
        for format in args.formats.split(","):
            try:
                own, _, other = format.partition("@")
                llm = LLM(other or args.model, **options_of(own))
                models[format] = stack.enter_context(llm)
            except ValueError as error:
                console.print(f"{format} is left out: {error}", highlight=False)
                continue
            jobs += [(format, cell) for cell in cells(args, models[format].model.config.context)]
        rows: list[dict[str, Any]] = [
            {"format": format, "cell": cell.title, **cell._asdict(), "samples": []}
            for format, cell in jobs
        ]
        for turn in range(-1, args.repeat if jobs else -1):  # the first one warms up
            for row, (format, cell) in zip(rows, jobs):
                if turn < 0:
                    measure(models[format], cell, tokens=4, seconds=0)
                else:
                    made = sample(models[format], cell, args)
                    row["samples"].append({"turn": turn, **made})
            if turn >= 0:
                figures = {**probe.header(args.threads), "model": args.model, "rows": rows}
                args.out.write_text(json.dumps(figures, indent=1), "utf-8")
    if not jobs:
        return 1
    console.print(table(rows))
    console.print(f"{args.threads} threads; ~ marks contended medians; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
