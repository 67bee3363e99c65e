"""The gain from `auto` and its drafters on recorded answers, at given costs: nothing is timed or random.

    python benchmarks/replay.py --model smollm2 --prompts gsm8k.jsonl sum.jsonl --limit 24
    python benchmarks/replay.py --prompts gsm8k.jsonl --steps 6,6.1,6.2,6.4 --head other.safetensors

The target answers once, greedily, and says what it saw; drafters and the adaptive length then work on that text,
alone in their batch, and a step takes what `--steps` says. Ratios are to plain decoding (in brackets: tokens a step,
nodes that ran, how often the head was asked); worst: of an answer longer than 64 tokens. For changes to drafting that
are smaller than a machine's moods; what they come to in the end `fastslow bench` measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from figures import options, show
from rich.progress import track

from fastslow import LLM, SamplingParams
from fastslow.draft.head.draft import HeadDraft
from fastslow.draft.head.runner import HeadRunner, load_head
from fastslow.draft.router import DrafterRouter
from fastslow.draft.several import AdaptiveDrafter
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.drafters import own_head
from fastslow.engine.params import Speculation
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.types import AcceptResult, DraftCall, StepTiming
from fastslow.models.locate import resolve_model
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.step_cost import StepCostCurve
from fastslow.policies.speculation.tuning import SpeculationTuning
from fastslow.tools.prompts import read_prompts
from fastslow.tools.train_head.answers import TrainText
from fastslow.tools.train_head.features import HiddenStates, look

STEPS = "8.7,9.0,9.3,10.3,11.3,12.7,15,17.2,18.8,20.3,22.1,23.9,26.4,28.9,31.5,34"  # a Zen 3, bf16
SETTINGS = Speculation()
TUNING = SpeculationTuning(most_nodes=16)
WIDTH = 3
LONG = 64  # tokens: a shorter answer says little of its own speed
Seen = Sequence[HiddenStates]


@dataclass(slots=True)
class Costs:
    """Milliseconds: of steps by their rows, of asking, of what the head takes besides, and of features."""

    steps: list[float]
    suffix: float
    head: float
    besides: float
    watching: float
    now: float = 0.0  # seconds

    def controller(self) -> SpeculationController:
        rows = range(1, len(self.steps) + 1)
        seconds = [ms / 1e3 for ms in self.steps]
        return SpeculationController(lambda groups: StepCostCurve(rows, seconds), TUNING)


class CostedDrafter:
    """A drafter that moves the time when it is asked."""

    def __init__(self, inner: Any, costs: Costs, ms: float) -> None:
        self._inner, self._costs, self._ms = inner, costs, ms
        self.asked = 0
        self.commit, self.release, self.forget = inner.commit, inner.release, inner.forget
        self.wants, self.read = inner.wants, inner.read
        self.features: tuple[int, ...] = inner.features

    def propose(self, batch: Any, nodes: Sequence[int]) -> Any:
        if any(nodes):
            self.asked += 1
            self._costs.now += self._ms / 1e3
        return self._inner.propose(batch, nodes)


@dataclass(slots=True)
class Total:
    """Sums over all answers of a set. seconds: with drafts."""

    tokens: int = 0
    steps: int = 0
    nodes: int = 0
    asked: int = 0
    seconds: float = 0.0
    worst: float = inf  # ratio of an answer

    def cell(self, plain: float) -> str:
        n = max(self.steps, 1)
        shares = f"{self.tokens / n:.2f}, {self.nodes / n:.1f}, {self.asked / n:.0%}"
        return f"{self.ratio(plain):.3f}, worst {self.worst:.3f} ({shares})"

    def ratio(self, plain: float) -> float:
        return self.tokens * plain / 1e3 / self.seconds


def replay(texts: Seen, name: str, runner: HeadRunner, costs: Costs) -> Total:
    """A set's answers, one after the other, with what was learnt from those before."""
    controller, total = costs.controller(), Total()
    suffix = CostedDrafter(SuffixDraft(), costs, costs.suffix)
    trees = HeadDraft(runner, probs_at, WIDTH, only_best=only_best, marginal_value=controller.value)
    head = CostedDrafter(trees, costs, costs.head)
    both: Any = [suffix, head]
    several = AdaptiveDrafter(both, controller.selection(2, SETTINGS), lambda: costs.now)
    chosen: Any = {"suffix": suffix, "head": head, "auto": several}[name]
    drafter = DrafterRouter({SETTINGS: chosen})
    for number, text in enumerate(texts):
        tokens, seconds = total.tokens, total.seconds
        answer(number, text, drafter, head, controller, costs, total)
        if (made := total.tokens - tokens) > LONG:
            alone = made * costs.steps[0] / 1e3 / (total.seconds - seconds)
            total.worst = min(total.worst, alone)
        drafter.release([number])
    total.asked = head.asked
    return total


def answer(
    number: int, text: HiddenStates, drafter: DrafterRouter, head: CostedDrafter,
    controller: SpeculationController, costs: Costs, total: Total,
) -> None:  # fmt: skip
    """Replay one answer; its first step has no draft, since nothing was seen of it, and is not counted."""
    whole, features = text.tokens.tolist(), text.features.float()
    view: Any = SimpleNamespace(
        id=number, tokens=whole[: text.start], prompt_length=text.start, params=SamplingParams(),
        end_ids=frozenset(), max_len=len(whole), groups=None, seed=0, thinking=None, thought_params=None,
        reproducible=False, speculation=SETTINGS, computed=text.start - 1, memory_key=None,
        shared=True, grammar=None, prediction=(),
    )  # fmt: skip
    length = controller.policy(SETTINGS, "drafter")
    (rows,) = drafter.wants([view], [range(text.start - 1)])
    if rows:
        drafter.read([view], [rows], features[rows.start : rows.stop])
    while len(view.tokens) < len(whole):
        first = len(view.tokens) == text.start
        nodes = 0 if first else length.plan(view, 1)
        began, asked = costs.now, head.asked
        offered = drafter.propose([view], [nodes])[0]
        taken = costs.now - began
        kept = controller.nodes_that_pay(
            [view], [length.survival(offered)], [len(offered.tokens)], 1
        )[0]
        tree = offered.only(kept)
        rest = whole[len(view.tokens) :]
        path = tree.match(rest[:-1])
        place, made = len(view.tokens) - 1, len(path) + 1
        view.tokens = view.tokens + rest[:made]
        if not first:
            controller.drafted(DraftCall("drafter", taken, int(nodes > 0), len(offered.tokens)))
            length.record(tree, path)
            total.tokens, total.steps = total.tokens + made, total.steps + 1
            total.nodes += len(tree.tokens)
            step = costs.steps[min(len(tree.tokens), len(costs.steps) - 1)]
            step += costs.besides if head.asked > asked else 0.0
            step = (step + (costs.watching if drafter.features else 0.0)) / 1e3
            total.seconds += step + taken
            timing = StepTiming(1 + len(tree.tokens), step, taken, made, pure=True)
            controller.note([view], timing)
        shown = features[place : place + made] if drafter.features else None
        drafter.commit([view], AcceptResult([path], [rest[:made]]), shown)


def seen_by_target(args: argparse.Namespace, folder: Path, runner: HeadRunner) -> dict[str, Seen]:
    """The answers of every set, and what the target saw at each token."""
    sampling = SamplingParams(max_tokens=args.tokens)
    sets: dict[str, Seen] = {}
    with LLM(folder, dtype=args.dtype, quantization=args.quantization) as llm:
        for file in args.prompts:
            outputs = llm.generate(read_prompts(file, args.limit), sampling, speculation="off")
            pairs = ((o.prompt_token_ids, o.token_ids) for o in outputs)
            texts = [TrainText([*prompt, *answer], len(prompt)) for prompt, answer in pairs]
            named = track(texts, f"what it saw: {file.stem}", transient=True)
            sets[file.stem] = [
                s for text in named for s in look(llm.model, [text], runner.config.layers)
            ]
    return sets


def main() -> None:
    kind = {"dtype": "bfloat16", "quantization": "none"}
    parser = options(__doc__, "head", "model", "prompts", limit=16, tokens=128, **kind)
    parser.add_argument("--drafters", default="suffix,head,auto")
    parser.add_argument("--steps", default=STEPS, help="ms of a step of 1, 2, 3, ... rows")
    parser.add_argument(
        "--asking", default="0.13,0.67,0.2,0.1", help="ms: suffix, head, besides it, features"
    )
    args = parser.parse_args()
    steps, asking = ([float(ms) for ms in t.split(",")] for t in (args.steps, args.asking))
    folder = resolve_model(args.model)
    path = args.head or own_head(folder)
    if path is None:
        parser.error(f"--head: {args.model} comes without a head")
    runner = load_head(path, folder)
    sets, rows = seen_by_target(args, folder, runner), []
    for name in args.drafters.split(","):
        totals = [replay(texts, name, runner, Costs(steps, *asking)) for texts in sets.values()]
        mean = fmean(total.ratio(steps[0]) for total in totals)
        rows.append([name, *(total.cell(steps[0]) for total in totals), f"{mean:.3f}"])
    show(["drafter", *sets, "mean"], rows)


if __name__ == "__main__":
    main()
