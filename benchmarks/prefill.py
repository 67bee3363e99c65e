"""Tokens per second of reading a prompt, by its length and the weight format.

    python benchmarks/prefill.py --model smollm2 --formats bfloat16,int8,int4

From the call to the first token. Prompts are random ids, so the prefix cache holds no part of them.
Formats and lengths take turns; the figure is the median over repeats.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from contextlib import ExitStack
from typing import Any

import probe
import torch
from figures import Row, open_formats, options, take_turns, tell
from peer.report import middle
from peer.texts import unseen
from rich.table import Table

from fastslow import LLM, SamplingParams


def measure(llm: LLM, length: int, seconds: float, seed: int) -> dict[str, Any]:
    """The median of some prompts, which together take at least `seconds`."""
    times: list[float] = []
    sampling = SamplingParams(max_tokens=1, ignore_eos=True)
    while not times or sum(times) < seconds:
        ids = unseen(llm.model.config.vocab_size, [length], seed + len(times))[0]
        started = time.perf_counter()
        llm.generate(ids, sampling, speculation="off")
        times.append(time.perf_counter() - started)
    return {"rate": length / statistics.median(times), "prompts": len(times)}


def table(rows: list[Row], lengths: list[int]) -> Table:
    shown = Table("tokens/s", *map(str, lengths), title="prompts of so many tokens")
    for format in dict.fromkeys(row["format"] for row in rows):
        shown.add_row(format, *(middle(r["samples"]) for r in rows if r["format"] == format))
    return shown


def main() -> int:
    parser = options(
        __doc__, "model", "formats", "threads", "seconds", repeat=5, out="prefill.json"
    )
    parser.add_argument("--lengths", default="128,512,2048")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lengths = [int(length) for length in args.lengths.split(",")]
    with ExitStack() as stack:
        models = open_formats(args, stack)
        rows: list[Row] = [
            {"format": format, "length": n, "samples": []} for format in models for n in lengths
        ]
        if not rows:
            return 1
        seeds = itertools.count(0, 1000)  # prompts differ between all samples

        def warm_up(row: Row) -> dict[str, Any]:
            return measure(models[row["format"]], row["length"], 0, next(seeds))

        def sample(row: Row) -> dict[str, Any]:
            job = (models[row["format"]], row["length"], args.seconds, next(seeds))
            return probe.sample(args.threads, lambda: measure(*job))

        take_turns(args, rows, warm_up, sample)
    tell(args, table(rows, lengths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
