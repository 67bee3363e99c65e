"""Two checkouts of fastslow on one machine, measured in turn: what a change did to speed.

    python benchmarks/checkouts.py OLD NEW [--model smollm2-moge] [--quantization none,int4]
        [--prompts FILE.jsonl...] [--repeat 7] [--limit 12]

Each checkout runs in a process of its own, started in its folder, and both wait while the other works.
Ratios are those of a pair of neighbours in time (new over old, above 1 = faster); their median is told.
Start-up is the time from the start of a process to the first token of a loaded model, import that of
`import fastslow`. JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Runs in the checkout: only names that both have. One job a line in, one figure a line out.
WORKER = """
import json, sys, time
from fastslow import LLM, SamplingParams
model, quantization = sys.argv[1:]
llm = LLM(model, quantization=quantization, progress=False, remember=False, prefix_caching=False)
draw = iter(range(10**9))
def ids(count):
    return [(next(draw) * 7919) % 40000 + 100 for _ in range(count)]
def plain(count, tokens):
    prompts = [ids(16) for _ in range(count)]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    llm.generate(prompts, params, speculation="off", progress=False)
for line in sys.stdin:
    job = json.loads(line)
    start = time.perf_counter()
    if job["kind"] == "decode":
        plain(job["batch"], job["tokens"])
        made = job["batch"] * job["tokens"]
    elif job["kind"] == "prefill":
        plain_ids = ids(job["tokens"])
        llm.generate(plain_ids, SamplingParams(max_tokens=1), speculation="off", progress=False)
        made = job["tokens"]
    else:
        out = llm.chat(job["prompt"], SamplingParams(max_tokens=job["tokens"]))
        made = len(out.token_ids)
    print(made / (time.perf_counter() - start), flush=True)
llm.close()
"""
JOBS = {
    "batch 1": {"kind": "decode", "batch": 1, "tokens": 96},
    "batch 8": {"kind": "decode", "batch": 8, "tokens": 64},
    "prefill 512": {"kind": "prefill", "tokens": 512},
}


class Worker:
    """A process in one checkout that does one job at a time."""

    def __init__(self, checkout: Path, model: str, quantization: str) -> None:
        command = [sys.executable, "-c", WORKER, model, quantization]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=checkout, stdin=pipe, stdout=pipe, text=True)

    def rate(self, job: dict[str, object]) -> float:
        """Tokens a second."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def ratios(old: Worker, new: Worker, jobs: list[dict[str, object]]) -> list[tuple[float, float]]:
    """(old, new) rates of each job, the first side changing from job to job."""
    pairs = []
    for turn, job in enumerate(jobs):
        if turn % 2:
            second = new.rate(job)
            pairs.append((old.rate(job), second))
        else:
            pairs.append((old.rate(job), new.rate(job)))
    return pairs


def seconds(checkout: Path, code: str) -> float:
    """Wall time of a Python process in a checkout."""
    timed = f"import time; start = time.perf_counter()\n{code}\nprint(time.perf_counter() - start)"
    done = subprocess.run(
        [sys.executable, "-c", timed], cwd=checkout, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def told(name: str, pairs: list[tuple[float, float]]) -> dict[str, object]:
    """One line for people; the same for programs."""
    old, new = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{name:28} old {old:9.3f}  new {new:9.3f}  new/old {ratio:.3f}  ({len(pairs)} pairs)")
    return {"name": name, "old": old, "new": new, "ratio": ratio, "pairs": pairs}


def measured(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    sides = (args.old, args.new)
    start = (
        "from fastslow import LLM, SamplingParams\n"
        f"llm = LLM({args.model!r}, progress=False)\n"
        "llm.generate([5, 6, 7], SamplingParams(max_tokens=1))"
    )
    for name, code in (("import, s", "import fastslow"), ("first token, s", start)):
        found = [(seconds(sides[0], code), seconds(sides[1], code)) for _ in range(args.repeat + 1)]
        yield told(name, found[1:])
    for quantization in args.quantization.split(","):
        old, new = (Worker(side.resolve(), args.model, quantization) for side in sides)
        for name, job in JOBS.items():
            pairs = ratios(old, new, [job] * (args.repeat + 2))[2:]
            yield told(f"{quantization} {name}", pairs)
        for path in args.prompts:
            lines = path.read_text("utf-8").splitlines()[: args.limit]
            asked = [json.loads(line)["prompt"] for line in lines]
            jobs = [{"kind": "chat", "prompt": text, "tokens": 128} for text in asked]
            yield told(f"{quantization} auto {path.stem}", ratios(old, new, jobs))
        old.close()
        new.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--model", default="smollm2-moge")
    parser.add_argument("--quantization", default="none,int4")
    parser.add_argument("--prompts", type=Path, nargs="*", default=[])
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = list(measured(args))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
