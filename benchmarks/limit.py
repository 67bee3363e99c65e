"""Which share of the memory bandwidth decoding reaches, in each weight format.

    python benchmarks/limit.py --model smollm2 --formats bfloat16,int8,int4

A step at batch 1 has to read its weights and the keys and values of its context once. These bytes,
times steps per second, over the bandwidth that all threads together read right before or after (the
better of both) are the share. Formats and modes take turns. A MoGE model is measured in each mode:
if time followed bytes alone, all would have the same share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import probe
import torch
from peer.formats import options_of
from peer.report import fair, middle
from peer.texts import openings
from rich.console import Console
from rich.table import Table

from fastslow import LLM, SamplingParams

PROMPT = 64


def cases(llm: LLM) -> list[str]:
    """The modes to measure; all modes of a dense model are the same."""
    if not llm.model.config.groups:
        return ["deep"]
    seen: dict[int | None, str] = {}
    for name, mode in llm.modes.items():
        seen.setdefault(mode.groups, name)
    return list(seen.values())


def step_bytes(llm: LLM, mode: str, tokens: int) -> tuple[int, float]:
    """Bytes of weights, and of keys and values, of a step in the middle of the answer.

    Raises:
        ValueError: the model does not run on the packed kernels.
    """
    if not hasattr(llm.model, "bytes_for"):
        raise ValueError("the reference path does not count its bytes; the CPU kernels are needed")
    per_token = llm.model.config.kv_bytes_per_token(llm.model.dtype)
    return llm.model.bytes_for(llm.modes[mode].groups), per_token * (PROMPT + tokens / 2)


def measure(llm: LLM, prompt: list[int], mode: str, tokens: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of some answers, which together take at least `seconds`."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    spent, made = 0.0, 0
    while not made or spent < seconds:
        metrics = llm.generate(prompt, sampling, mode=mode, speculation="off").metrics
        spent, made = spent + metrics.tpot * (tokens - 1), made + tokens - 1
    return {"rate": made / spent}


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("format", "mode", "tokens/s", "weights MB", "KV MB", "GB/s", "probed", "share")
    for row in rows:
        samples, _ = fair(row["samples"])
        reads = (row["weights"] + row["kv"]) / 1e9
        used = statistics.median(sample["rate"] * reads for sample in samples)
        probed = statistics.median(sample["bandwidth"] for sample in samples)
        share = statistics.median(s["rate"] * reads / s["bandwidth"] for s in samples)
        shown.add_row(
            row["format"],
            row["mode"],
            middle(row["samples"]),
            f"{row['weights'] / 1e6:.1f}",
            f"{row['kv'] / 1e6:.1f}",
            f"{used:.1f}",
            f"{probed:.1f}",
            f"{share:.0%}",
        )
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a folder or a built-in name")
    parser.add_argument("--formats", default="bfloat16,int8,int4")
    parser.add_argument("--threads", type=int, default=probe.physical_cores())
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="least length of a sample")
    parser.add_argument("--out", type=Path, default=Path("limit.json"))
    return parser.parse_args()


def main() -> int:
    args = arguments()
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        models = {}
        for format in args.formats.split(","):
            try:
                llm = stack.enter_context(LLM(args.model, **options_of(format)))
                kept = [(mode, *step_bytes(llm, mode, args.tokens)) for mode in cases(llm)]
            except ValueError as error:
                console.print(f"{format} is left out: {error}", highlight=False)
                continue
            models[format] = llm
            for mode, weights, kv in kept:
                row = {"format": format, "mode": mode, "weights": weights, "kv": kv, "samples": []}
                rows.append(row)
        if not rows:
            return 1
        prompt = openings(next(iter(models.values())).tokenizer, 1, PROMPT)[0]
        for turn in range(-1, args.repeat):  # the first one warms up
            first = turn % len(rows)
            for row in rows[first:] + rows[:first]:
                job = (models[row["format"]], prompt, row["mode"], args.tokens)
                if turn < 0:
                    measure(*job, seconds=0)
                    continue
                made = probe.sample(args.threads, lambda job=job: measure(*job, args.seconds))
                row["samples"].append({"turn": turn, **made})
            if turn >= 0:
                figures = {**probe.header(args.threads), "model": args.model, "rows": rows}
                args.out.write_text(json.dumps(figures, indent=1), "utf-8")
    console.print(table(rows))
    console.print(f"{args.threads} threads; ~ marks contended medians; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
