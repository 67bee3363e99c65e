"""Where a step's time goes: the parts of the model, and the engine around them.

    python benchmarks/parts.py --model smollm2 --quantization int8 [--rows 1 8] [--context 100]

A table, and a picture (SVG) of the same figures. The parts are timed by the kernels themselves on
thread 0; "engine" is all that is not the model: scheduling, laws, acceptance, text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fastslow import LLM, SamplingParams

COLOURS = ("#9aa5b1", "#4c78a8", "#72b7b2", "#54a24b", "#eeca3b", "#f58518", "#e45756", "#b279a2")
ENGINE = "#222222"


class Timed:
    """A model whose forwards are timed, steps of one number of rows only."""

    def __init__(self, llm: LLM) -> None:
        self._forward = llm.model.forward
        self.seconds: list[float] = []
        llm.model.forward = self  # type: ignore[method-assign]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._forward(*arguments, **options)
        finally:
            self.seconds.append(time.perf_counter() - started)


def measure(llm: LLM, timed: Timed, rows: int, context: int, tokens: int) -> dict[str, float]:
    """Milliseconds of a step for each part, the engine included; `rows` requests decode at once."""
    prompts = [[7 + n, *([11] * (context - 1))] for n in range(rows)]
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    llm.generate(prompts, sampling, speculation="off", progress=False)  # the prompts are cached now
    timed.seconds.clear()
    llm.model.clock(True)
    started = time.perf_counter()
    llm.generate(prompts, sampling, speculation="off", progress=False)
    whole = time.perf_counter() - started
    parts = llm.model.clock(False)
    steps = len(timed.seconds)
    found = {name: seconds / steps * 1e3 for name, seconds in parts.items() if seconds}
    found["call"] = (sum(timed.seconds) - sum(parts.values())) / steps * 1e3
    found["engine"] = (whole - sum(timed.seconds)) / steps * 1e3
    return found


def picture(figures: dict[str, dict[str, float]]) -> str:
    """Bars of stacked parts, one for each number of rows, as SVG."""
    longest = max(sum(parts.values()) for parts in figures.values())
    names = list(dict.fromkeys(name for parts in figures.values() for name in parts))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    colour["engine"] = ENGINE
    lines = []
    for line, (label, parts) in enumerate(figures.items()):
        y, x = 40 + 44 * line, 90.0
        lines.append(f'<text x="80" y="{y + 19}" text-anchor="end">{label}</text>')
        for name, value in parts.items():
            width = value / longest * 680
            title = f"<title>{name}: {value:.3f} ms</title>"
            box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="28"'
            lines.append(f'<rect {box} fill="{colour[name]}">{title}</rect>')
            x += width
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 19}">{sum(parts.values()):.2f} ms</text>')
    for i, name in enumerate(names):
        x = 90 + 84 * i
        lines.append(f'<rect x="{x}" y="14" width="10" height="10" fill="{colour[name]}"/>')
        lines.append(f'<text x="{x + 14}" y="23">{name}</text>')
    height = 60 + 44 * len(figures)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12">', *lines, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none", help="none, int8 or int4")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--context", type=int, default=100, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("parts.svg"))
    options = parser.parse_args()
    llm = LLM(options.model, dtype=options.dtype, quantization=options.quantization)
    if not hasattr(llm.model, "clock"):
        sys.exit("the parts are timed by the CPU kernels, which do not run here")
    timed = Timed(llm)
    figures: dict[str, dict[str, float]] = {}
    for rows in options.rows:
        runs = [
            measure(llm, timed, rows, options.context, options.tokens)
            for _ in range(options.repeat)
        ]
        figures[f"{rows} row{'s' * (rows > 1)}"] = {
            name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]
        }
    names = list(dict.fromkeys(name for parts in figures.values() for name in parts))
    table = Table("ms a step", *names, "sum")
    for label, parts in figures.items():
        shown = [f"{parts.get(name, 0.0):.3f}" for name in names]
        table.add_row(label, *shown, f"{sum(parts.values()):.3f}")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    options.out.write_text(picture(figures), "utf-8")
    record = {"command": sys.argv, "threads": torch.get_num_threads(), "figures": figures}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=1), "utf-8")
    print(f"picture in {options.out}")
    llm.close()


if __name__ == "__main__":
    main()
