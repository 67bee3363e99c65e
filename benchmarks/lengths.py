"""The adaptive length against every fixed one, by batch size, as JSON and as a figure.

    python benchmarks/lengths.py --model smollm2 --prompts gsm8k.jsonl qa.jsonl \
        --batch 1,2,4,8,16,32 -o lengths.json --figure docs/lengths.svg

Lengths take turns on the same prompts, so many of which run at once (`flow.py`). Each line is a
batch size, each point a fixed length as times plain decoding; the ring at the right is the adaptive
length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drafting import setting_of
from figures import console, options
from flow import Flow, Run, record, times_plain
from rich.table import Table

from fastslow import SamplingParams, Speculation
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import read_prompts
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.candidates import grid as every

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 380, 60, 24, 130, 44
COLOURS = ("#3b6fd4", "#1d9a6c", "#c9861a", "#c2463d", "#8456c5", "#4d7c8a")
STYLE = (
    "text{font:12px sans-serif;fill:#333}.grid{stroke:#8884}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)
Found = Mapping[int, Mapping[str, float]]  # batch -> length -> times plain


def figure(found: Found) -> str:
    """SVG: a line for each batch size over fixed lengths, rings for the adaptive one."""
    labels = list(next(iter(found.values())))
    top = 1.1 * max(max(row.values()) for row in found.values())
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(n: int) -> float:
        return LEFT + wide * n / (len(labels) - 1)

    def y(value: float) -> float:
        return TOP + high * (1 - value / top)

    def text(words: str, x: float, y: float, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = [f"<style>{STYLE}</style>"]
    for tenth in range(0, int(10 * top) + 1, 2):
        at = y(tenth / 10)
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
        )
        parts.append(text(f"{tenth / 10:.1f} x", LEFT - 8, at + 4, "end"))
    parts += [text(label, x(n), HEIGHT - BOTTOM + 18) for n, label in enumerate(labels)]
    parts.append(text("nodes a step, at most", LEFT + wide / 2, HEIGHT - 6))
    for number, (batch, row) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(n):.1f},{y(row[label]):.1f}" for n, label in enumerate(labels[:-1]))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        ring = f'cx="{x(len(labels) - 1):.1f}" cy="{y(row[labels[-1]]):.1f}" r="6"'
        parts.append(f'<circle {ring} fill="none" stroke="{colour}" stroke-width="3"/>')
        parts.append(text(f"batch {batch}", WIDTH - RIGHT + 14, TOP + 18 * number, "start"))
        swatch = f'x="{WIDTH - 50}" y="{TOP + 18 * number - 9}" width="24" height="9"'
        parts.append(f'<rect {swatch} fill="{colour}"/>')
    view = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f"<svg {view}>{''.join(parts)}</svg>"


def measured(found: dict[Speculation, list[Run]]) -> dict[str, float]:
    """Times plain by length; the adaptive length comes last."""
    row = {"0": 1.0}
    for setting in found:
        if setting is not PLAIN:
            name = "adaptive" if setting.nodes is None else str(setting.nodes)
            row[name] = times_plain(found, setting)
    return row


def main() -> None:
    parser = options(
        __doc__, "head", "prompts", "model", "out",
        dtype="auto", quantization="auto", limit=16, tokens=96, repeat=1,
    )  # fmt: skip
    parser.add_argument("--drafter", default="auto", help="as in drafting.py")
    parser.add_argument("--batch", default="1,2,4,8,16,32")
    parser.add_argument("--lengths", default="1,2,3,4,5,6,7,8")
    parser.add_argument(
        "--fewest", type=int, default=16, help="prompts; twice the batch size if more"
    )
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    sizes = [int(size) for size in args.batch.split(",")]
    lengths = [int(length) for length in args.lengths.split(",")]
    sets = [read_prompts(path, args.limit) for path in args.prompts]
    prompts = [prompt for some in zip(*sets, strict=False) for prompt in some]
    settings = every([setting_of(args.drafter, args.head)], [*lengths, None])
    found, runs = {}, {}
    for size in sizes:
        some = prompts[: max(args.fewest, 2 * size)]
        flow = Flow(
            args.model,
            size,
            some,
            SamplingParams(max_tokens=args.tokens),
            dtype=args.dtype,
            quantization=args.quantization,
        )
        cells = flow.measure(settings, args.repeat)
        found[size], runs[size] = measured(cells), record(cells)
    table = Table("batch", *next(iter(found.values())), "best fixed", "adaptive / best")
    for batch, row in found.items():
        best = max((label for label in row if label != "adaptive"), key=lambda label: row[label])
        share = row["adaptive"] / row[best]
        table.add_row(str(batch), *(f"{v:.2f}" for v in row.values()), best, f"{share:.2f}")
    console(160).print(table)
    if args.out is not None:
        facts: dict[str, Any] = {**circumstances(), "model": args.model, "ratios": found}
        args.out.write_text(json.dumps({**facts, "cells": runs}, indent=1), "utf-8")
    if args.figure is not None:
        args.figure.write_text(figure(found), "utf-8")


if __name__ == "__main__":
    main()
