"""Which share of the memory bandwidth decoding reaches, in each weight format.

    python benchmarks/limit.py --model smollm2 --formats bfloat16,int8,int4

A step at batch 1 has to read its weights and the keys and values of its context once. These bytes,
times steps per second, over the bandwidth that all threads together read right before or after (the
better of both) are the share. Formats and modes take turns. A MoGE model is measured in each mode:
if time followed bytes alone, all would have the same share.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from typing import Any

import probe
import torch
from figures import Row, on_kernels, open_formats, options, take_turns, tell
from peer.report import fair, middle
from peer.texts import openings
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
    """Bytes of weights, and of keys and values, of a step in the middle of the answer."""
    model = on_kernels(llm.model)
    per_token = model.config.kv_bytes_per_token(model.dtype)
    return model.bytes_for(llm.modes[mode].groups), per_token * (PROMPT + tokens / 2)


def measure(llm: LLM, mode: str, tokens: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of some answers, which together take at least `seconds`."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompt = openings(llm.tokenizer, 1, PROMPT)[0]
    spent, made = 0.0, 0
    while not made or spent < seconds:
        metrics = llm.generate(prompt, sampling, mode=mode, speculation="off").metrics
        spent, made = spent + metrics.tpot * (tokens - 1), made + tokens - 1
    return {"rate": made / spent}


def table(rows: list[Row]) -> Table:
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


def main() -> int:
    parser = options(
        __doc__, "model", "formats", "threads", "seconds", tokens=128, repeat=7, out="limit.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        models = open_formats(args, stack)
        rows: list[Row] = []
        for format, llm in models.items():
            for mode in cases(llm):
                weights, kv = step_bytes(llm, mode, args.tokens)
                row = {"format": format, "mode": mode, "weights": weights, "kv": kv, "samples": []}
                rows.append(row)
        if not rows:
            return 1

        def warm_up(row: Row) -> dict[str, Any]:
            return measure(models[row["format"]], row["mode"], args.tokens, seconds=0)

        def sample(row: Row) -> dict[str, Any]:
            job = (models[row["format"]], row["mode"], args.tokens, args.seconds)
            return probe.sample(args.threads, lambda: measure(*job))

        take_turns(args, rows, warm_up, sample)
    tell(args, table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
