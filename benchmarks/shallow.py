"""A model that drafts for itself with some of its layers, or some of its groups: does it pay?

    python benchmarks/shallow.py --model smollm2 --prompts FILE.jsonl... --keep 0-29 0-14 0-4,5-25/2,25-29
    python benchmarks/shallow.py --model smollm2-moge --prompts FILE.jsonl... --groups 0,1,2

A setting is the layers that run: a-b, both run, or a-b/s, every s-th. Greedy, batch 1. For each setting:
tokens a step, the share of drafted tokens that is kept, by position, the processor time of a drafting
forward as a share of a plain one (medians, in turns), and tokens a second as a ratio to plain
decoding (medians over prompts, in turns). Answers must be those of plain decoding.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from figures import numbers, options, options_of, prompts_of, show

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows, Segment
from fastslow.output import Output
from fastslow.tools.tune.prompts import Conversation

CONTEXT = 200  # of the forwards that are timed


class Setting(NamedTuple):
    layers: str
    groups: int  # routed groups that run
    width: int

    def title(self, dense: bool) -> str:
        groups = "" if dense else f" groups {self.groups}"
        return f"{self.layers}{groups}{f' width {self.width}' if self.width > 1 else ''}"

    def speculation(self, nodes: int) -> Speculation:
        kept = tuple(layers_of(self.layers))
        return Speculation(
            drafter="self", layers=kept, groups=self.groups, width=self.width, nodes=nodes
        )


def layers_of(text: str) -> list[int]:
    """0-4,5-25/2,25-29 -> the layers."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return sorted(found)


def answer(llm: LLM, prompt: Conversation, tokens: int, speculation: str | Speculation) -> Output:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return llm.chat(prompt, sampling, speculation=speculation)


def forward_ms(models: dict[str, tuple[Model, int | None]], repeat: int) -> dict[str, float]:
    """Milliseconds of processor time of a forward of one row, medians, the models taking turns.

    Of the processor, since others may be at work; the clock would count what they take.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    plain, _ = models["plain"]
    c = plain.config
    kv = plain.storage(  # the others run some of its layers
        layers=c.layers, slots=CONTEXT + 1, kv_heads=c.kv_heads, head_dim=c.head_dim,
        dtype=plain.dtype, device=plain.device,
    )  # fmt: skip
    slots = np.arange(CONTEXT + 1)
    for turn in range(repeat):
        for name, (model, groups) in models.items():
            last = Segment([7], [CONTEXT], [-1], slots[-1:], slots[:-1], groups, [0], CONTEXT + 9)
            rows = Rows.of([last])
            started = time.process_time()
            model.forward(rows, kv)
            if turn:
                spent[name].append(time.process_time() - started)
    return {name: 1000 * statistics.median(times) for name, times in spent.items()}


def by_position(outputs: list[Output]) -> str:
    rows = itertools.zip_longest(*(o.metrics.acceptance for o in outputs))
    known = ([share for share in row if share is not None] for row in rows)
    return " ".join(f"{statistics.mean(row):.2f}" for row in known)


def main() -> None:
    parser = options(__doc__, "prompts", model="smollm2", tokens=64, threads=1)
    parser.add_argument("--format", default="int8", help="as decode.py takes it")
    parser.add_argument("--count", type=int, default=10, help="prompts, from all files in turn")
    parser.add_argument("--keep", nargs="*", default=[], help="layers of a setting")
    parser.add_argument("--groups", default="", help="routed groups of the settings: 0,1,2")
    parser.add_argument("--width", type=int, default=1, help="most children of a node")
    parser.add_argument("--nodes", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with LLM(args.model, kv_memory="1GiB", **options_of(args.format)) as llm:
        config = llm.model.config
        every = f"0-{config.layers - 1}"
        groups = numbers(args.groups) or [config.groups]
        settings = [Setting(k, g, args.width) for k in args.keep or [every] for g in groups]
        compare(llm, {s.title(not config.groups): s for s in settings}, args)


def compare(llm: LLM, settings: dict[str, Setting], args: argparse.Namespace) -> None:
    dense = not llm.model.config.groups
    timed = {
        title: (llm.model.keep(layers_of(s.layers)), None if dense else s.groups)
        for title, s in settings.items()
    }
    costs = forward_ms({"plain": (llm.model, None), **timed}, 101)
    outputs: dict[str, list[Output]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    differ = 0
    for prompt in prompts_of(args.prompts, args.count):
        plain = answer(llm, prompt, args.tokens, "off")
        for title, s in settings.items():
            out = answer(llm, prompt, args.tokens, s.speculation(args.nodes))
            differ += out.token_ids != plain.token_ids
            outputs[title].append(out)
            ratios[title].append(out.metrics.tokens_per_second / plain.metrics.tokens_per_second)
    rows = []
    for title, s in settings.items():
        metrics = [o.metrics for o in outputs[title]]
        rows.append([
            title,
            str(len(layers_of(s.layers))),
            f"{statistics.mean(m.tokens_per_step for m in metrics):.2f}",
            f"{sum(m.accepted for m in metrics) / max(1, sum(m.drafted for m in metrics)):.2f}",
            by_position(outputs[title]),
            f"{costs[title] / costs['plain']:.2f}",
            f"{statistics.median(ratios[title]):.2f}",
        ])  # fmt: skip
    note = f"a plain forward: {costs['plain']:.2f} ms; answers that differ: {differ}"
    show(
        ["setting", "layers", "tokens/step", "kept", "by position", "forward", "x plain"],
        rows,
        note,
    )


if __name__ == "__main__":
    main()
