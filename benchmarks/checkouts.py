"""Two checkouts of fastslow on one machine, measured in turn: what a change did to speed.

    python benchmarks/checkouts.py OLD NEW [--model smollm2-moge] [--quantization none,int4]
        [--prompts FILE.jsonl...] [--rounds 6] [--repeat 7] [--limit 12] [-o FILE.json]

The checkouts take turns, a process after the other, and a process has the machine to itself: of two that live at the
same time the later one gets worse memory. A ratio is new over old, the median of a round and then of the rounds. Of
tokens a second above 1 is faster; of seconds (import, and from there to the first token) below 1 is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from figures import options, show, write

from fastslow.tools.prompts import read_prompts

# Runs in the checkout, with names only that both have. Two figures of the start; then one job a line in, one figure
# a line out.
WORKER = """
import json, sys, time
start = time.perf_counter()
from fastslow import LLM, SamplingParams
print(time.perf_counter() - start)
model, quantization = sys.argv[1:]
llm = LLM(model, quantization=quantization, progress=False, remember=False, prefix_caching=False)
llm.generate([5, 6, 7], SamplingParams(max_tokens=1))
print(time.perf_counter() - start, flush=True)
vocab = llm.model.config.vocab_size
draw = iter(range(10**9))
for line in sys.stdin:
    job = json.loads(line)
    tokens = job["tokens"]
    prompts = [[next(draw) * 7919 % vocab for _ in range(job["length"])] for _ in range(job["batch"])]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    start = time.perf_counter()
    if "messages" in job:
        made = len(llm.chat(job["messages"], SamplingParams(max_tokens=tokens)).token_ids)
    else:
        llm.generate(prompts, params, speculation="off", progress=False)
        made = job["batch"] * (tokens if tokens > 1 else job["length"])
    print(made / (time.perf_counter() - start), flush=True)
llm.close()
"""
Job = dict[str, Any]
JOBS: dict[str, Job] = {
    "batch 1": {"batch": 1, "length": 16, "tokens": 96},
    "batch 8": {"batch": 8, "length": 16, "tokens": 64},
    "prefill 512": {"batch": 1, "length": 512, "tokens": 1},
}


def measured(folder: Path, args: argparse.Namespace, quantization: str) -> dict[str, list[float]]:
    """Measure one process that has the machine to itself: seconds of its start, tokens a second of each job."""
    jobs = [(name, job) for name, job in JOBS.items() for _ in range(args.repeat + 1)]
    for path in args.prompts:
        for talk in read_prompts(path, args.limit):
            jobs.append((f"auto {path.stem}", {**JOBS["batch 1"], "messages": talk, "tokens": 128}))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, args.model, quantization],
        cwd=folder, input="".join(f"{json.dumps(job)}\n" for _, job in jobs), stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    imported, first, *rates = map(float, done.stdout.split())
    found = {"import, s": [imported], f"{quantization} first token, s": [first]}
    for (name, _), rate in zip(jobs, rates, strict=True):
        found.setdefault(f"{quantization} {name}", []).append(rate)
    for name in JOBS:
        del found[f"{quantization} {name}"][0]  # it warmed up
    return found


def main() -> None:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=7, limit=12)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--quantization", default="none,int4")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], metavar="FILE.jsonl")
    parser.add_argument("--rounds", type=int, default=6, help="of processes, in either order")
    args = parser.parse_args()
    folders = [args.old.resolve(), args.new.resolve()]
    ratios: dict[str, list[float]] = {}
    values: dict[str, list[tuple[float, float]]] = {}
    for turn in range(args.rounds):
        order = -1 if turn % 2 else 1
        for quantization in args.quantization.split(","):
            sides = [measured(folder, args, quantization) for folder in folders[::order]][::order]
            for name in sides[0]:
                pairs = list(zip(*(side[name] for side in sides)))
                ratios.setdefault(name, []).append(statistics.median(b / a for a, b in pairs))
                values.setdefault(name, []).extend(pairs)
    rows, figures = [], []
    for name, pairs in values.items():
        old, new = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(ratios[name])
        rows.append([name, f"{old:.3f}", f"{new:.3f}", f"{ratio:.3f}", str(len(ratios[name]))])
        figures.append({"name": name, "old": old, "new": new, "ratio": ratio, "pairs": pairs})
    show(["", "old", "new", "new/old", "rounds"], rows)
    write(args.out, model=args.model, figures=figures)


if __name__ == "__main__":
    main()
