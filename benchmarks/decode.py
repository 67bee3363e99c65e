"""Plain decoding by weight format: rows at once, length of context, and a busy neighbour.

    python benchmarks/decode.py --model smollm2 --formats bfloat16,int8,int4

Tokens per second of all rows together, the first token of each answer not counted; medians over
repeats in which all cells take turns. A format may end in +kv8 (keys and values in int8), and then
in @FOLDER (another model, such as the same one quantised: auto@FOLDER). `--beside N` adds cells of
one row while N other processes each keep a processor busy. What other engines reach is peers.py's to measure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import probe
import torch
from figures import Row, open_formats, options, take_turns, tell
from peer.report import middle
from peer.texts import openings
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


def cell_of(row: Row) -> Cell:
    return Cell(row["rows"], row["context"], row["beside"])


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


def table(rows: list[Row]) -> Table:
    titles = list(dict.fromkeys(row["cell"] for row in rows))
    shown = Table("tokens/s", *titles)
    for format in dict.fromkeys(row["format"] for row in rows):
        mine = {r["cell"]: middle(r["samples"]) for r in rows if r["format"] == format}
        shown.add_row(format, *(mine.get(title, "-") for title in titles))
    return shown


def main() -> int:
    parser = options(
        __doc__, "model", "formats", "threads", "seconds", tokens=64, repeat=5, out="decode.json"
    )
    parser.add_argument("--rows", default="1,2,4,8")
    parser.add_argument("--contexts", default="", help="tokens, such as 100,1000,8000")
    parser.add_argument("--beside", type=int, default=0, metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        models = open_formats(args, stack)
        jobs = [
            (format, cell)
            for format, llm in models.items()
            for cell in cells(args, llm.model.config.context)
        ]
        if not jobs:
            return 1
        rows: list[Row] = [
            {"format": format, "cell": cell.title, **cell._asdict(), "samples": []}
            for format, cell in jobs
        ]

        def warm_up(row: Row) -> None:
            measure(models[row["format"]], cell_of(row), tokens=4, seconds=0)

        def taken(row: Row) -> dict[str, Any]:
            return sample(models[row["format"]], cell_of(row), args)

        take_turns(args, rows, warm_up, taken)
    tell(args, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
