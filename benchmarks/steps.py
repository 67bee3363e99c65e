"""Steps with drafts of a model of random weights, and the share of accepted tokens from which they pay.

    python benchmarks/steps.py --model qwen35-4b.gguf --accept 0.8 --rows 1,2,4,8,16 --widths 1,3 -o steps.json
    python benchmarks/steps.py --model qwen35-4b.gguf --accept 0 --claim 0.9 --rows adaptive --repeat 5
    python benchmarks/steps.py --model dense-4b.gguf --accept 0.8

Nobody accepts what such a model's layer for multi-token prediction (MTP) drafts. So a drafter that knows the answers
of a plain run drafts their next token first in the share `--accept` of all places, which a seed decides, and second in
that share of the others. The model's MTP layer and its head run all the same, and what they say is replaced. A model
without one shows what rows take alone; `--head` is an assistant that drafts in its place. Tokens are compared with
those of the plain run.

A step of n rows verifies n - 1 drafted tokens, as a chain (width 1) or a tree. All settings take turns, `--batch`
requests run at once. A cell is the least time of a step in ms, that of drafting among it, tokens a step, and times
plain. A chain pays from the acceptance in the last column on. `--claim` is the probability that the layer gives its
first token, if not the share: how sure it is, right or wrong, is what the adaptive length goes by.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from figures import numbers, options, show, write

from fastslow import LLM, Output, SamplingParams, Speculation
from fastslow.draft.base import BaseDrafter
from fastslow.draft.head.growing import Growth
from fastslow.draft.mtp.assistant import AssistantDraft, AssistedText
from fastslow.draft.mtp.draft import MtpDraft
from fastslow.draft.registry import DRAFTERS, DrafterDeps, DrafterKind
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import MtpModel
from fastslow.engine.rows import Rows
from fastslow.engine.types import Drafter, Features, ModelOutput, RequestView, Tree
from fastslow.tools.tune.candidates import PLAIN, is_plain
from fastslow.tools.tune.runner import shuffled

NAME, SILENT = "table", "silent"


@dataclass
class AcceptanceTable:
    """The tokens of plain runs by place and token before, and which are drafted first. share: of them; claim: the
    probability that they are given."""

    share: float
    claim: float
    seed: int = 0

    def __post_init__(self) -> None:
        self._next: dict[tuple[int, int], int] = {}

    def learn(self, output: Output) -> None:
        text = [*output.prompt_token_ids, *output.token_ids]
        self._next.update(
            {(n, token): after for n, (token, after) in enumerate(itertools.pairwise(text))}
        )

    def choices(self, place: int, token: int, size: int) -> tuple[int, int]:
        """The first and the second token after one."""
        right = self._next.get((place, token), 0)
        first, second = np.random.default_rng((self.seed, place)).random(2) < self.share
        other, third = (right + 1) % size, (right + 2) % size
        return (right, other) if first else (other, right if second else third)

    def logits(self, rows: Rows, size: int, depth: int) -> torch.Tensor:
        """[M, V] of the rows with outputs. depth: of their tokens after the places that the rows have."""
        at, claim = rows.outputs, min(max(self.claim, 1e-6), 1 - 1e-6)
        chances = claim, claim * (1 - claim), (1 - claim) ** 2 / size
        found = torch.full((len(at), size), log(chances[2]))
        places = (rows.positions[at] + depth).tolist()
        for row, place, token in zip(found, places, rows.tokens[at].tolist()):
            for choice, chance in zip(self.choices(place, token, size), chances):
                row[choice] = log(chance)
        return found


class TableLayer:
    """An MTP layer that says what is in a table. inner: the model's own, which runs; None: nothing runs."""

    def __init__(self, table: AcceptanceTable, inner: MtpModel | None, size: int) -> None:
        self._table, self._inner, self._size = table, inner, size
        self.heads = 1 if inner is None else inner.heads
        self.depth = 0  # of the tokens that an assistant runs

    def states(self, features: Features) -> torch.Tensor:
        return torch.as_tensor(features) if self._inner is None else self._inner.states(features)

    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        logits, best = (
            self._table.logits(rows, self._size, self.depth),
            np.full(len(rows.outputs), -1),
        )
        if self._inner is None:
            assert rows.inputs is not None
            return ModelOutput(logits, rows.inputs[rows.feature_rows], best)
        return ModelOutput(logits, self._inner.forward(rows, kv, head).seen, best)


class TableAssistant(AssistantDraft):
    """All its rows have the place of the text's last token."""

    _layer: TableLayer

    def _run(self, texts: Sequence[AssistedText]) -> torch.Tensor:
        self._layer.depth = 0
        return super()._run(texts)

    def step(self, *args: Any) -> torch.Tensor:
        self._layer.depth += 1
        return super().step(*args)


class SilentDrafter(BaseDrafter):
    """Stands for `suffix` in a text that repeats nothing: answers of random weights repeat themselves."""

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        return [Tree()] * len(batch)


def silent_kind() -> DrafterKind:
    cause = "it never drafts"
    return DrafterKind(lambda settings, deps: SilentDrafter(), "nothing", cause)


def table_kind(table: AcceptanceTable, head: str | None) -> DrafterKind:
    def make(settings: Speculation, deps: DrafterDeps) -> Drafter:
        config: Any = deps.target.config
        own: Any = deps.target.mtp if head is None else deps.load_head(Path(head))
        layer = TableLayer(table, own, config.vocab_size)
        target: Any = SimpleNamespace(config=config, mtp=layer)
        growth = Growth(settings.width, deps.marginal_value, 16)
        if head is not None:
            return TableAssistant(layer, deps.target, deps.cache, growth)
        return MtpDraft(target, deps.cache, growth)

    return DrafterKind(make, "the answers of a plain run", "the answers are others now")


@dataclass(frozen=True)
class Steps:
    """A run. step, drafting: seconds of each."""

    step: float
    drafting: float
    tokens: float
    rate: float
    same: bool


def steps_of(outputs: Sequence[Output], plain: Sequence[Output]) -> Steps:
    every = [output.metrics for output in outputs]
    steps, tokens = sum(m.steps for m in every), sum(m.tokens for m in every)
    seconds = sum(m.tpot * (m.tokens - 1) for m in every)
    return Steps(
        seconds / max(steps - len(every), 1),
        sum(m.draft_seconds for m in every) / steps,
        tokens / steps,
        (tokens - len(every)) / seconds,
        all(a.token_ids == b.token_ids for a, b in zip(outputs, plain, strict=True)),
    )


def break_even(nodes: int, times: float) -> float:
    """The acceptance from which a chain in a step that takes so many plain steps pays; above 1: never."""
    shares = np.linspace(0, 1, 1001)
    made = np.sum([shares**n for n in range(nodes + 1)], axis=0)
    return float(shares[np.searchsorted(made, times)]) if made[-1] >= times else np.inf


def main() -> None:
    usual = {"tokens": 96, "repeat": 3, "dtype": "auto", "quantization": "auto"}
    parser = options(__doc__, "model", "out", **usual)
    parser.add_argument("--head", help="an assistant, in place of the model's MTP layer")
    parser.add_argument("--accept", type=float, default=0.8)
    parser.add_argument("--claim", type=float, help="if not the same")
    parser.add_argument("--rows", default="2,4,8,16", help="of a step; or adaptive")
    parser.add_argument("--widths", default="1,3")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=64, help="tokens of a prompt")
    args = parser.parse_args()
    claim = args.accept if args.claim is None else args.claim
    table = AcceptanceTable(args.accept, claim)
    DRAFTERS[NAME], DRAFTERS[SILENT] = table_kind(table, args.head), silent_kind()
    free = args.rows == "adaptive"
    lengths = [None] if free else [rows - 1 for rows in numbers(args.rows) if rows > 1]
    name, widths = (f"{SILENT}|{NAME}", [1]) if free else (NAME, numbers(args.widths))
    drafted = [Speculation(drafter=name, nodes=n, width=w) for w in widths for n in lengths]
    sampling = SamplingParams(max_tokens=args.tokens, temperature=0, ignore_eos=True)
    runs: dict[Speculation, list[Steps]] = {setting: [] for setting in (PLAIN, *drafted)}
    load = {"dtype": args.dtype, "quantization": args.quantization, "max_running": args.batch}
    load["max_model_len"] = args.context + args.tokens
    with LLM(args.model, remember=False, **load) as llm:
        draws = np.random.default_rng(0).integers(
            5, llm.model.config.vocab_size, (args.batch, args.context)
        )
        prompts = draws.tolist()
        plain = llm.generate(prompts, sampling, speculation=PLAIN, progress=False)
        for output in plain:
            table.learn(output)
        for turn in range(args.repeat):
            for setting in shuffled([PLAIN, *drafted], turn):
                outputs = llm.generate(prompts, sampling, speculation=setting, progress=False)
                runs[setting].append(steps_of(outputs, plain))
    del DRAFTERS[NAME], DRAFTERS[SILENT]
    best = {
        setting: min(some, key=lambda run: run.step / run.tokens) for setting, some in runs.items()
    }
    rows = []
    for setting, run in best.items():
        nodes, chain = setting.nodes or 0, setting.width == 1 and not free
        pays = break_even(nodes, run.step / best[PLAIN].step)
        rows.append([
            "plain" if is_plain(setting) else "adaptive" if free else f"{nodes + 1}",
            "chain" if chain else "tree", f"{1e3 * run.step:.2f}", f"{1e3 * run.drafting:.2f}",
            f"{run.tokens:.2f}", f"{run.rate / best[PLAIN].rate:.2f}", f"{pays:.2f}" if chain and nodes else "",
        ])  # fmt: skip
    notes = [
        f"OTHER TOKENS: {setting}"
        for setting, some in runs.items()
        if not all(r.same for r in some)
    ]
    titles = [
        "rows",
        "shape",
        "step ms",
        "drafting ms",
        "tokens a step",
        "times plain",
        "pays from",
    ]
    show(
        titles, rows, *notes, title=f"{args.model}, batch {args.batch}, acceptance {args.accept:g}"
    )
    cells = [
        {**s.model_dump(mode="json"), "runs": [asdict(r) for r in some]} for s, some in runs.items()
    ]
    write(
        args.out, model=args.model, accept=args.accept, claim=claim, batch=args.batch, cells=cells
    )


if __name__ == "__main__":
    main()
