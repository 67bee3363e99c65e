"""What drafters bring on several prompt sets: tokens a step and speed against plain decoding.

    python benchmarks/drafting.py --model smollm2 --prompts gsm8k.jsonl qa.jsonl \
        --drafters suffix,auto --batch 1,8 --temperatures 0,0.7 --limit 16 -o drafting.json

All drafters and plain decoding answer the same prompts in turns. `head:4` has a fixed length of four,
`head/3` trees with three children a node. `batch` requests run at once, of at least twice as many
prompts (`flow.py`); prompts are read before the clock runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from figures import console, options
from flow import Flow, Run, record, times_plain
from rich.table import Table

from fastslow import SamplingParams, Speculation
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import read_prompts
from fastslow.tools.tune.candidates import PLAIN


def setting_of(wish: str, head: Path | None) -> Speculation:
    """From "name/width:length" to settings."""
    name, _, length = wish.partition(":")
    name, _, width = name.partition("/")
    fields: dict[str, Any] = {"drafter": name}
    if length:
        fields["nodes"] = int(length)
    if width:
        fields["width"] = int(width)
    if head is not None and ("head" in name or name == "auto"):
        fields["head"] = head
    return Speculation(**fields)


def _cell(runs: Sequence[Run], ratio: float) -> str:
    if ratio == 1.0:
        return f"{median(run.rate for run in runs):.0f} tok/s"
    return f"{ratio:.2f} x ({median(run.tokens_per_step for run in runs):.2f})"


def main() -> None:
    parser = options(
        __doc__, "head", "prompts", "model", "out",
        dtype="auto", quantization="auto", limit=16, tokens=128, repeat=1,
    )  # fmt: skip
    parser.add_argument("--drafters", default="suffix,head:4,auto")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--temperatures", default="0,0.7")
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch.split(",")]
    wishes = args.drafters.split(",")
    settings = [setting_of(wish, args.head) for wish in wishes]
    table = Table("temperature", "batch", "drafter", *(path.stem for path in args.prompts), "mean")
    cells: list[dict[str, Any]] = []
    for heat in map(float, args.temperatures.split(",")):
        for size in sizes:
            sampling = SamplingParams(max_tokens=args.tokens, temperature=heat)
            found = []
            for path in args.prompts:
                prompts = read_prompts(path, args.limit)
                flow = Flow(
                    args.model,
                    size,
                    prompts,
                    sampling,
                    dtype=args.dtype,
                    quantization=args.quantization,
                )
                found.append(flow.measure(settings, args.repeat))
                facts = {"set": path.stem, "temperature": heat, "batch": size}
                cells += [{**facts, **cell} for cell in record(found[-1])]
            for name, setting in zip(["plain", *wishes], [PLAIN, *settings], strict=True):
                ratios = [times_plain(one, setting) for one in found]
                texts = [_cell(one[setting], ratio) for one, ratio in zip(found, ratios)]
                mean = f"{sum(ratios) / len(ratios):.2f}"
                table.add_row(f"{heat:g}", str(size), name, *texts, mean)
            table.add_section()
    console(160).print(table)
    if args.out is not None:
        whole = {**circumstances(), "model": args.model, "limit": args.limit, "cells": cells}
        args.out.write_text(json.dumps(whole, indent=1), "utf-8")


if __name__ == "__main__":
    main()
