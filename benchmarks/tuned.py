"""The setting that `fastslow tune` found against the best of an exhaustive search.

    fastslow tune --model smollm2 --prompts mine.jsonl --minutes 3 -o tuned.json
    python benchmarks/tuned.py --model smollm2 --prompts mine.jsonl --settings tuned.json -o found.json

First every drafter with every length answers some of the prompts; then the best of them, the tuned
one and plain decoding answer all of the prompts in turns. Tokens a second over plain decoding's.
"""

from __future__ import annotations

import json
from pathlib import Path

from figures import console, options
from flow import KV
from rich.table import Table

from fastslow import LLM, SamplingParams
from fastslow.settings import read_settings
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import read_prompts
from fastslow.tools.tune.candidates import default_drafters, grid, label, read_lengths
from fastslow.tools.tune.grid import Grid
from fastslow.tools.tune.runner import TuneRunner
from fastslow.tools.tune.sample import Cell


def ranked(found: Grid) -> list[tuple[float, Cell]]:
    """Times plain and cell, the best first."""
    every = [(found.ratio(cell) or 0.0, cell) for cell in found.samples]
    return sorted(every, key=lambda item: -item[0])


def main() -> None:
    parser = options(__doc__, "prompts", "out", "model", quantization="auto", tokens=96, repeat=1)
    parser.add_argument("--settings", type=Path, required=True, help="what fastslow tune wrote")
    parser.add_argument("--lengths", default="1,2,3,4,5,6,7,8,12,16,adaptive")
    parser.add_argument("--first", type=int, default=8, help="prompts that every setting answers")
    parser.add_argument("--best", type=int, default=6, help="settings that answer all prompts")
    args = parser.parse_args()
    prompts = [prompt for path in args.prompts for prompt in read_prompts(path)]
    tuned = read_settings(args.settings)
    fields = {"quantization": args.quantization, "max_running": 1, "remember": False}
    with LLM(args.model, kv_memory=KV, **fields) as llm:
        runner = TuneRunner(llm, SamplingParams(max_tokens=args.tokens))
        every = Grid(grid(default_drafters(llm), read_lengths(args.lengths)))
        every.measure(runner, prompts[: args.first], 1)
        best = [cell.setting for _, cell in ranked(every) if cell.setting != tuned][: args.best]
        finals = Grid([tuned, *best])
        finals.measure(runner, prompts, args.repeat)
    places = ranked(finals)
    own = next(ratio for ratio, cell in places if cell.setting == tuned)
    table = Table("setting", "times plain", "of the best")
    for ratio, cell in places:
        name = f"{label(cell.setting)}{' (tuned)' if cell.setting == tuned else ''}"
        table.add_row(name, f"{ratio:.2f}", f"{ratio / places[0][0]:.1%}")
    console().print(table)
    print(
        f"{len(every.samples)} settings searched; tuned is at {own / places[0][0]:.1%} of the best"
    )
    if args.out is not None:
        record = {**circumstances(), "model": args.model, "tuned": tuned.model_dump(mode="json")}
        record |= {"first": every.record(), "finals": finals.record()}
        args.out.write_text(json.dumps(record, indent=1), "utf-8")


if __name__ == "__main__":
    main()
