"""Where a step's time goes: the parts of the model, and the engine around them.

    python benchmarks/parts.py --model smollm2 --quantization int8 [--rows 1 8] [--context 100]

A table, and a picture (SVG) of the same figures. The parts are timed by the kernels themselves on
thread 0; "engine" is all that is not the model: scheduling, laws, acceptance, text.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from figures import console, on_kernels, options, write
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
    model = on_kernels(llm.model)
    prompts = [[7 + n, *([11] * (context - 1))] for n in range(rows)]
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    llm.generate(prompts, sampling, speculation="off", progress=False)  # the prompts are cached now
    timed.seconds.clear()
    model.part_seconds(True)
    started = time.perf_counter()
    llm.generate(prompts, sampling, speculation="off", progress=False)
    whole = time.perf_counter() - started
    parts = model.part_seconds(False)
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
    parser = options(
        __doc__, "threads", "model",
        dtype="bfloat16", quantization="none", rows=[1, 2, 4, 8], tokens=64, repeat=5, out="parts.svg",
    )  # fmt: skip
    parser.add_argument("--context", type=int, default=100, help="tokens of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    llm = LLM(args.model, dtype=args.dtype, quantization=args.quantization)
    on_kernels(llm.model)
    timed = Timed(llm)
    figures: dict[str, dict[str, float]] = {}
    for rows in args.rows:
        runs = [measure(llm, timed, rows, args.context, args.tokens) for _ in range(args.repeat)]
        figures[f"{rows} row{'s' * (rows > 1)}"] = {
            name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]
        }
    names = list(dict.fromkeys(name for parts in figures.values() for name in parts))
    table = Table("ms a step", *names, "sum")
    for label, parts in figures.items():
        shown = [f"{parts.get(name, 0.0):.3f}" for name in names]
        table.add_row(label, *shown, f"{sum(parts.values()):.3f}")
    console().print(table)
    args.out.write_text(picture(figures), "utf-8")
    write(args.out.with_suffix(".json"), args.threads, figures=figures)
    print(f"picture in {args.out}")
    llm.close()


if __name__ == "__main__":
    main()
