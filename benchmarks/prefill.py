"""Tokens per second of reading a prompt, by its length and the weight format.

    python benchmarks/prefill.py --model smollm2 --formats bfloat16,int8,int4

From the call to the first token. Prompts are random ids, so the prefix cache holds no part of them.
Formats and lengths take turns; the figure is the median over repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probe
import torch
from peer.formats import options_of
from peer.report import middle
from peer.texts import unseen
from rich.console import Console
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


def table(rows: list[dict[str, Any]], lengths: list[int]) -> Table:
    shown = Table("tokens/s", *map(str, lengths), title="prompts of so many tokens")
    for format in dict.fromkeys(row["format"] for row in rows):
        shown.add_row(format, *(middle(r["samples"]) for r in rows if r["format"] == format))
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a folder or a built-in name")
    parser.add_argument("--formats", default="bfloat16,int8,int4")
    parser.add_argument("--lengths", default="128,512,2048")
    parser.add_argument("--threads", type=int, default=probe.physical_cores())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of a sample")
    parser.add_argument("--out", type=Path, default=Path("prefill.json"))
    return parser.parse_args()


def main() -> int:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(args.threads)
    lengths = [int(length) for length in args.lengths.split(",")]
    rows: list[dict[str, Any]] = []
    models: dict[str, LLM] = {}
    with ExitStack() as stack:
        for format in args.formats.split(","):
            try:
                models[format] = stack.enter_context(LLM(args.model, **options_of(format)))
            except ValueError as error:
                console.print(f"{format} is left out: {error}", highlight=False)
                continue
            rows += [{"format": format, "length": n, "samples": []} for n in lengths]
        for turn in range(-1, args.repeat if rows else -1):  # the first one warms up
            for place, row in enumerate(rows):
                # Prompts differ between all samples of a model: 1000 seeds for each.
                job = (models[row["format"]], row["length"])
                seed = 1000 * ((turn + 1) * len(rows) + place)
                if turn < 0:
                    measure(*job, seconds=0, seed=seed)
                    continue
                made = probe.sample(
                    args.threads, lambda job=job, seed=seed: measure(*job, args.seconds, seed)
                )
                row["samples"].append({"turn": turn, **made})
            if turn >= 0:
                figures = {**probe.header(args.threads), "model": args.model, "rows": rows}
                args.out.write_text(json.dumps(figures, indent=1), "utf-8")
    if not rows:
        return 1
    console.print(table(rows, lengths))
    console.print(f"{args.threads} threads; ~ marks contended medians; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
