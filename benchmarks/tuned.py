"""The setting that `fastslow tune` found against the best of an exhaustive search.

    fastslow tune --model smollm2 --prompts mine.jsonl --minutes 3 -o tuned.json
    python benchmarks/tuned.py --model smollm2 --prompts mine.jsonl --settings tuned.json -o found.json

At first every drafter with every length answers some of the prompts; then the best of them, the tuned one and plain
decoding answer all of the prompts in turns. Tokens a second over plain decoding's.
"""

from __future__ import annotations

from pathlib import Path

from drafting import KV
from figures import options, show, write

from fastslow import LLM, SamplingParams
from fastslow.settings import read_settings
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
    places, rows = ranked(finals), []
    top = places[0][0]
    for ratio, cell in places:
        name = label(cell.setting) + " (tuned)" * (cell.setting == tuned)
        rows.append([name, f"{ratio:.2f}", f"{ratio / top:.1%}"])
    own = next(ratio for ratio, cell in places if cell.setting == tuned)
    note = f"{len(every.samples)} settings searched; tuned is at {own / top:.1%} of the best"
    show(["setting", "times plain", "of the best"], rows, note)
    record = {"tuned": tuned.model_dump(mode="json"), "first": every.record()}
    write(args.out, model=args.model, **record, finals=finals.record())


if __name__ == "__main__":
    main()
