"""A model that drafts for itself with some of its layers, or some of its groups: does it pay?

    python benchmarks/shallow.py --model smollm2 --prompts FILE.jsonl... --keep 0-29 0-14 0-4,5-25/2,25-29
    python benchmarks/shallow.py --model smollm2-moge --prompts FILE.jsonl... --groups 0,1,2

A setting is the layers that run: a-b, both run, or a-b/s, every s-th. Greedy, batch 1. For each setting:
tokens a step, the share of drafted tokens that is kept, by position, the processor time of a drafting
forward as a share of a plain one (medians, in turns), and tokens a second as a ratio to plain decoding (medians over
prompts, in turns). Answers must be those of plain decoding.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peer.formats import options_of
from rich.console import Console
from rich.table import Table

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV
from fastslow.engine.kv.storage import KVShape, KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.types import Rows, Segment
from fastslow.output import Output

CONTEXT = 200  # of the forwards that are timed


class Setting(NamedTuple):
    layers: str
    groups: int | None
    width: int

    @property
    def title(self) -> str:
        groups = "" if self.groups is None else f" groups {self.groups}"
        return f"{self.layers}{groups}{f' width {self.width}' if self.width > 1 else ''}"

    def model(self, target: Model) -> Model:
        return target.layer_subset(layers_of(self.layers))


def layers_of(text: str) -> list[int]:
    """0-4,5-25/2,25-29 -> the layers."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return sorted(found)


def prompts_of(files: list[Path], count: int) -> list[str]:
    """So many prompts, from all files in turn."""
    texts = [[json.loads(line)["turns"][0] for line in f.open(encoding="utf-8")] for f in files]
    return [text for turn in zip(*texts) for text in turn][:count]


def answer(llm: LLM, prompt: str, tokens: int, speculation: Any) -> Output:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return llm.chat(prompt, sampling, speculation=speculation)


def forward_ms(models: dict[str, tuple[Model, int | None]], repeat: int) -> dict[str, float]:
    """Milliseconds of processor time of a forward of one row, medians, the models taking turns.

    Of the processor, since others may be at work; the clock would count what they take.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeat):
        for name, (model, groups) in models.items():
            kv = _storage(model)
            rows = Rows.of([_row(groups)])
            started = time.process_time()
            model.forward(rows, kv)
            if turn:
                spent[name].append(time.process_time() - started)
    return {name: 1000 * statistics.median(times) for name, times in spent.items()}


_kept: dict[int, KVStorage] = {}


def _storage(model: Model) -> KVStorage:
    c = model.config
    shape = KVShape(c.layers, CONTEXT + 1, c.kv_heads, c.head_dim, model.dtype, model.device)
    if c.layers not in _kept:
        _kept[c.layers] = model.storage(shape)
    return _kept[c.layers]


def _row(groups: int | None) -> Segment:
    slots = np.arange(CONTEXT + 1)
    return Segment([7], [CONTEXT], [-1], slots[-1:], slots[:-1], groups, [0], CONTEXT + 9)


def by_position(outputs: list[Output]) -> str:
    longest = max(len(o.metrics.acceptance) for o in outputs)
    columns = [
        [o.metrics.acceptance[i] for o in outputs if len(o.metrics.acceptance) > i]
        for i in range(longest)
    ]
    return " ".join(f"{statistics.mean(column):.2f}" for column in columns)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--format", default="int8", help="as decode.py takes it")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, metavar="FILE.jsonl")
    parser.add_argument("--count", type=int, default=10, help="prompts, from all files in turn")
    parser.add_argument("--keep", nargs="*", default=[], help="layers of a setting")
    parser.add_argument("--groups", default="", help="routed groups of the settings: 0,1,2")
    parser.add_argument("--width", type=int, default=1, help="most children of a node")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with LLM(args.model, **options_of(args.format), kv_memory="1GiB") as llm:
        every = f"0-{llm.model.config.layers - 1}"
        groups = [int(g) for g in args.groups.split(",") if g] or [None]
        settings = [Setting(k, g, args.width) for k in args.keep or [every] for g in groups]
        run(llm, settings, args)
    return 0


def run(llm: LLM, settings: list[Setting], args: argparse.Namespace) -> None:
    made: dict[str, Model] = {s.title: s.model(llm.model) for s in settings}
    asked = {}
    for s in settings:
        # a drafter that has no name: put where the engine looks for one that is made already
        key = Speculation(drafter="model", model=s.title, nodes=0)
        drafter = ModelDraft(
            made[s.title], BorrowedKV(llm._kv), probs_at, s.groups, s.width, only_best=only_best
        )
        llm._drafters[key] = drafter
        asked[s.title] = key.model_copy(update={"nodes": args.nodes})
    timed = {s.title: (made[s.title], s.groups) for s in settings}
    costs = forward_ms({"plain": (llm.model, None), **timed}, 101)
    outputs: dict[str, list[Output]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    differ = 0
    for prompt in prompts_of(args.prompts, args.count):
        plain = answer(llm, prompt, args.tokens, "off")
        for title, speculation in asked.items():
            out = answer(llm, prompt, args.tokens, speculation)
            differ += out.token_ids != plain.token_ids
            outputs[title].append(out)
            ratios[title].append(out.metrics.tokens_per_second / plain.metrics.tokens_per_second)
    table = Table("setting", "layers", "tokens/step", "kept", "by position", "forward", "x plain")
    for s in settings:
        metrics = [o.metrics for o in outputs[s.title]]
        table.add_row(
            s.title,
            str(len(layers_of(s.layers))),
            f"{statistics.mean(m.tokens_per_step for m in metrics):.2f}",
            f"{sum(m.accepted for m in metrics) / max(1, sum(m.drafted for m in metrics)):.2f}",
            by_position(outputs[s.title]),
            f"{costs[s.title] / costs['plain']:.2f}",
            f"{statistics.median(ratios[s.title]):.2f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(f"a plain forward: {costs['plain']:.2f} ms; answers that differ: {differ}")


if __name__ == "__main__":
    sys.exit(main())
