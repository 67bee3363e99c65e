"""Two checkouts of fastslow on one machine, measured in turn: what a change did to speed.

    python benchmarks/checkouts.py OLD NEW [--model smollm2-moge] [--quantization none,int4]
        [--prompts FILE.jsonl...] [--repeat 7] [--starts 7] [--limit 12] [-o FILE.json]

Every checkout runs in a process of its own, started in its folder, and both wait while the other works. Ratios are
those of a pair of neighbours in time (new over old); their median is told. Of tokens a second above 1 is faster.
Start-up is the time from the import of fastslow to the first token of a loaded model: seconds, below 1 is faster.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
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


class CheckoutProcess:
    """A process in one checkout that does one job at a time. `starts`: seconds of the import, and until the first
    token."""

    def __init__(self, checkout: Path, *asked: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *asked],
            cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.starts = [self._read(), self._read()]

    def _read(self) -> float:
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def rate(self, job: Job) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.communicate()


def in_turn(sides: Sequence[CheckoutProcess], jobs: Sequence[Job]) -> list[list[float]]:
    """(old, new) rates of each job; who goes first changes from job to job."""
    pairs = []
    for turn, job in enumerate(jobs):
        order = sides[:: -1 if turn % 2 else 1]
        rates = [side.rate(job) for side in order]
        pairs.append(rates[:: -1 if turn % 2 else 1])
    return pairs


def main() -> None:
    parser = options(__doc__, "out", model="smollm2-moge", repeat=7, limit=12)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--quantization", default="none,int4")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[], metavar="FILE.jsonl")
    parser.add_argument("--starts", type=int, default=7, help="of Python; 0 = leave them out")
    args = parser.parse_args()
    folders, kinds = [args.old.resolve(), args.new.resolve()], args.quantization.split(",")
    found: dict[str, list[list[float]]] = {}
    for turn in range(args.starts + 1 if args.starts else 0):
        sides = [CheckoutProcess(folder, args.model, kinds[0]) for folder in folders]
        for side in sides:
            side.close()
        for name, *pair in zip(("import, s", "first token, s"), *(side.starts for side in sides)):
            found.setdefault(name, []).extend([pair] if turn else [])  # the first warms up
    for quantization in kinds:
        sides = [CheckoutProcess(folder, args.model, quantization) for folder in folders]
        for name, job in JOBS.items():
            found[f"{quantization} {name}"] = in_turn(sides, [job] * (args.repeat + 2))[2:]
        for path in args.prompts:
            talks = read_prompts(path, args.limit)
            jobs = [{**JOBS["batch 1"], "messages": talk, "tokens": 128} for talk in talks]
            found[f"{quantization} auto {path.stem}"] = in_turn(sides, jobs)
        for side in sides:
            side.close()
    rows, figures = [], []
    for name, pairs in found.items():
        old, new = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        rows.append([name, f"{old:.3f}", f"{new:.3f}", f"{ratio:.3f}", str(len(pairs))])
        figures.append({"name": name, "old": old, "new": new, "ratio": ratio, "pairs": pairs})
    show(["", "old", "new", "new/old", "pairs"], rows)
    write(args.out, model=args.model, figures=figures)


if __name__ == "__main__":
    main()
