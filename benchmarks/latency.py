"""Fast streams beside deep requests: the time to the first token and of each later one, with a target and without.

    python benchmarks/latency.py --target 120 --out latency.json

Some streams ask short questions in fast mode, one after the other, while deep requests with long prompts run all the
time. A round runs for some seconds with the target and for as long without, and rounds alternate, so that a machine
that slows down harms both. Milliseconds are median / 95th percentile / largest; "kept" is the share of fast requests
whose times both lay within the target.
"""

from __future__ import annotations

import argparse
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from figures import options, show, spread, write

from fastslow import LLM, Mode, SamplingParams
from fastslow.engine.core.latency_budget import LATER
from fastslow.output import Metrics

QUESTIONS = (
    "What are your opening hours?", "Where is my parcel?", "How do I send something back?",
    "Do you ship to Norway?", "Can I pay by invoice?", "My code does not work.",
)  # fmt: skip
TOPIC = "The history of the lighthouse, its keepers, its lamps and the ships that went past it. "


@dataclass(slots=True)
class Round:
    """What ran in one round, or in all of them."""

    fast: list[Metrics] = field(default_factory=list)
    deep: list[Metrics] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self, target_ms: float) -> dict[str, Any]:
        """Milliseconds, and shares of fast requests."""
        firsts, laters = ([1000 * getattr(m, n) for m in self.fast] for n in ("ttft", "tpot"))
        kept = [max(a, b) <= target_ms for a, b in zip(firsts, laters)]
        return {
            "fast_requests": len(self.fast),
            "first_ms": spread(firsts),
            "later_ms": spread(laters),
            "kept": sum(kept) / max(1, len(kept)),
            "deep_finished": len(self.deep),
            "deep_tokens_per_second": sum(m.tokens for m in self.deep) / max(self.seconds, 1e-9),
        }


def play(llm: LLM, fast: Mode, args: argparse.Namespace) -> Round:
    """One round. Requests that began in it are counted, and waited for."""
    started = time.monotonic()
    answers: dict[Mode | str, list[Metrics]] = {fast: [], "deep": []}

    def ask(number: int, mode: Mode | str, tokens: int) -> None:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        time.sleep(0.05 * number)
        for turn in itertools.count(number):
            if time.monotonic() >= started + args.seconds:
                return
            words = QUESTIONS[turn % len(QUESTIONS)]
            if mode == "deep":  # never in the prefix cache
                words = f"Number {number}.{turn}. " + TOPIC * args.repeat
            out = llm.chat(words, params, mode=mode, speculation="off")
            answers[mode].append(out.metrics)

    jobs: list[tuple[int, Mode | str, int]] = [(n, fast, args.tokens) for n in range(args.streams)]
    jobs += [(n, "deep", args.deep_tokens) for n in range(args.deep)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(lambda job: ask(*job), jobs))
    return Round(answers[fast], answers["deep"], time.monotonic() - started)


def main() -> None:
    kind = {"model": "smollm2-moge", "quantization": "auto"}
    parser = options(__doc__, "out", tokens=24, seconds=20.0, **kind)
    parser.add_argument("--target", type=float, default=150.0, help="milliseconds (150)")
    parser.add_argument("--streams", type=int, default=4, help="of fast requests (4)")
    parser.add_argument("--deep", type=int, default=2, help="deep requests at a time (2)")
    parser.add_argument("--deep-tokens", type=int, default=48, help="of a deep answer (48)")
    parser.add_argument("--repeat", type=int, default=60, help="of the deep prompt's 19 tokens")
    parser.add_argument("--rounds", type=int, default=2, help="of each kind (2)")
    args = parser.parse_args()

    found = {"with": Round(), "without": Round()}
    with LLM(args.model, quantization=args.quantization, remember=False) as llm:
        fast = Mode(name="fast", base="fast")
        modes = {"with": fast.model_copy(update={"latency_ms": args.target}), "without": fast}
        every = [*modes.values(), llm.modes["deep"]]
        llm.chat(["Hello"] * 3, SamplingParams(max_tokens=2), mode=every)  # all that is made once
        for turn in range(args.rounds):
            for name in ("with", "without") if turn % 2 else ("without", "with"):
                one = play(llm, modes[name], args)
                found[name].fast += one.fast
                found[name].deep += one.deep
                found[name].seconds += one.seconds
                time.sleep(LATER + 1)  # steps stay short for a while after a target
    figures = {name: one.figures(args.target) for name, one in found.items()}
    rows = []
    for name, row in figures.items():
        spreads = (row["first_ms"].values(), row["later_ms"].values())
        times = (" / ".join(f"{v:.0f}" for v in values) for values in spreads)
        deep = f"{row['deep_finished']} done, {row['deep_tokens_per_second']:.1f} tokens/s"
        rows.append([name, str(row["fast_requests"]), *times, f"{row['kept']:.1%}", deep])
    titles = ["", "requests", "first token, ms", "later tokens, ms", "kept", "deep"]
    show(titles, rows, title=f"target {args.target:g} ms")
    write(args.out, options={k: str(v) for k, v in vars(args).items()}, figures=figures)


if __name__ == "__main__":
    main()
