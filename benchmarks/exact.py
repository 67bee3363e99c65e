"""Exactness on a real model: whatever drafts and whatever runs beside it, plain decoding's tokens.

    python benchmarks/exact.py --model PATH --prompts FILE.jsonl... [--draft-model PATH] [--light]

Prompts are put through the chat template; the files are read in turn. The reference is plain greedy
decoding, one request alone. Against it run every drafter in every mode alone, and batches of 8 that
mix modes and drafters: plain ones, with prompts read in small chunks, with prompts found in the
prefix cache, and with too few KV pages, so that requests are preempted.
Where an answer parts, the position is recomputed in float64 (see near_tie.py) and counted as a tie
or as an error. Exit code 1 for an error, or if a case did not bring about what it is for.

--light gives each prompt one mode instead of all, and each drafter alone a share of the prompts.
--sweep N instead runs every drafter at batch 1 and 8, with each of --threads, prompts whole and in
chunks, every combination on one prompt in N; N = 1 is the whole matrix.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from exact_cases import Case, Job, cases, sweep
from figures import console, options, prompts_of, write
from near_tie import Finding, Judge
from rich.progress import Progress
from rich.table import Table

from fastslow.draft.base import Stateless
from fastslow.draft.build import DrafterDeps, LoadedModel, build_drafter
from fastslow.draft.head.runner import HeadRunner, load_head
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV
from fastslow.draft.router import DrafterRouter
from fastslow.draft.suffix.corpus import Corpus
from fastslow.draft.suffix.sources import EarlierAnswers
from fastslow.engine.backends.loader import load_model
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Request
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.model.decoder import Decoder
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.sampling.probs import only_best, probs_at
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.types import Drafter, Floats, OneHot, Policy, RequestView, Tree
from fastslow.models.locate import resolve_model
from fastslow.policies.modes import load_modes
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.speculation.settings import SpeculationTuning
from fastslow.policies.speculation.step_cost import StepCostCurve

PAGE = 16
NODES = 6


class ForkedDraft(Stateless):
    """A forced tree: at each depth the model's second choice, a leaf, and then its first.

    The accepted path skips a node at each depth, so its keys and values have to be moved.
    """

    def __init__(self, model: Model, cache: KVCache, groups: int | None) -> None:
        self._chain = ModelDraft(model, BorrowedKV(cache), self._note, groups)
        self._second: dict[int, list[int]] = {}

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        self._second = {request.id: [] for request in batch}
        chains = self._chain.propose(batch, [n // 2 for n in nodes])
        return [self._forked(r, chain) for r, chain in zip(batch, chains)]

    def _note(self, logits_V: Any, request: RequestView, drafted: Sequence[int]) -> Floats | OneHot:
        self._second[request.id].append(int(logits_V.topk(2).indices[1]))
        return probs_at(logits_V, request, drafted)

    def _forked(self, request: RequestView, first: Tree) -> Tree:
        pairs = zip(self._second[request.id], first.tokens)
        parents = [2 * depth - 1 for depth in range(len(first.tokens)) for _ in range(2)]
        return Tree(list(chain.from_iterable(pairs)), parents)


@dataclass
class Row:
    """One line of the table."""

    case: str
    answers: int = 0
    equal: int = 0
    ties: int = 0
    errors: int = 0
    drafted: int = 0
    accepted: int = 0
    cached: int = 0
    preempted: int = 0
    seconds: float = 0.0
    parted: list[dict[str, Any]] = field(default_factory=list)
    idle: str = ""  # what the case is for and did not bring about


class Bench:
    """A loaded model with its prompts, and the plain answers known so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder = resolve_model(args.model)
        kind = {
            "dtype": args.dtype,
            "quantization": args.quantization,
            "kv_dtype": args.kv_dtype,
        }
        self.model = load_model(self.folder, **kind)
        self.draft_path = args.draft_model
        self.small = None
        if args.draft_model is not None:
            self.small = load_model(resolve_model(args.draft_model), **kind)
        self.head = None if args.head is None else load_head(args.head, self.folder)
        # every other request drafts as far as this invented machine lets it pay
        self.controller = SpeculationController(
            lambda groups: StepCostCurve([1, 8, 128], [1.0, 1.8, 20.0]),
            SpeculationTuning(most_nodes=NODES),
        )
        self.params = SamplingParams(max_tokens=args.tokens)
        config = self.model.config
        self.modes = load_modes(self.folder, config.groups)
        if config.groups:
            self.modes["shared"] = Mode(name="shared", groups=0, thinking="off")
        self.tokenizer = load_tokenizer(self.folder)
        template = load_template(self.folder, self.tokenizer, config.architecture)
        self.prompts: list[dict[str, list[int]]] = []
        for conversation in prompts_of(args.prompts, args.limit):
            by_mode: dict[str, list[int]] = {}
            for name, mode in self.modes.items():
                rendered = template.render(conversation, mode.thinking)
                ids = self.tokenizer.encode(rendered, template.add_special)
                by_mode[name] = ids[: args.longest]
            self.prompts.append(by_mode)
        self.plain: dict[tuple[int, str], list[int]] = {}
        # the CPU kernels round alike in every batch: no tie is an excuse there
        self.judge = None
        if isinstance(self.model, Decoder):
            self.judge = Judge(self.folder, self.model)

    @property
    def drafters(self) -> tuple[str, ...]:
        names = ["ngram", "tree", "suffix"]
        names += ["self", "ngram+self"] if self.model.config.groups else []
        names += ["model"] if self.small is not None else []
        names += ["head", "suffix|head"] if self.head is not None else []
        return tuple(names)

    def run(self, case: Case, done: Callable[[], None]) -> list[Request]:
        """All jobs of a case, `batch` at a time, the KV checked after every step."""
        requests = [self._request(n, job, self.params) for n, job in enumerate(case.jobs)]
        sizes = sorted((-(-(r.max_len + NODES) // PAGE) for r in requests), reverse=True)
        pages = sum(sizes if case.warm else sizes[: case.batch])
        if case.few:
            pages = sizes[0] + (pages - sizes[0]) // 4
        kv = self._cache(self.model, pages, case.warm or case.few)
        drafter = self._drafter(kv, sum(sizes))
        core = EngineCore(self.model, kv, drafter, case.prompt_rows, case.batch, self.controller)
        if case.warm:
            self._warm(core, case.jobs)
        for request in requests:
            request.listener = lambda r: done() if r.done else None
            core.add(request)
        _drain(core)
        return requests

    def _warm(self, core: EngineCore, jobs: Sequence[Job]) -> None:
        names = list(self.modes)
        for n, job in enumerate(jobs):
            other = names[(names.index(job.mode) + 1) % len(names)]
            for k, mode in enumerate((other, job.mode)):
                once = SamplingParams(max_tokens=1)
                at = len(jobs) * (k + 1) + n
                core.add(self._request(at, Job(job.prompt, mode, "off"), once))
        _drain(core)

    def _request(self, number: int, job: Job, params: SamplingParams) -> Request:
        tokens = self.prompts[job.prompt][job.mode]
        groups = self.modes[job.mode].groups
        end_ids = self.tokenizer.eos_ids | frozenset(self.model.config.eos_ids)
        return Request(
            id=number,
            tokens=list(tokens),
            prompt_length=len(tokens),
            params=params,
            speculation=self._settings(job.drafter),
            policy=self._length(number, job.drafter),
            stopper=Stopper(params, end_ids, params.max_tokens, None),
            groups=groups,
            seed=number,
            max_len=len(tokens) + params.max_tokens - 1,
            end_ids=end_ids,
        )

    def _length(self, number: int, drafter: str) -> Policy:
        nodes = NODES if number % 2 else None
        return self.controller.policy(Speculation(drafter=drafter, nodes=nodes), drafter)

    def _settings(self, drafter: str) -> Speculation:
        path = self.draft_path if "model" in drafter else None
        head = "given" if "head" in drafter else None
        return Speculation(drafter=drafter, nodes=0, model=path, head=head)

    def _drafter(self, kv: KVCache, draft_pages: int) -> Drafter:
        made: dict[Speculation, Drafter] = {}
        means = DrafterDeps(
            target=self.model,
            cache=kv,
            target_probs=probs_at,
            only_best=only_best,
            load_model=lambda _: self._small_model(draft_pages),
            load_head=lambda _: cast(HeadRunner, self.head),
            load_corpus=_no_corpus,
            earlier=EarlierAnswers(),
            has_head=False,
            selection=self.controller.selection,
        )
        for name in self.drafters:
            settings = self._settings(name)
            if name == "tree":
                groups = 0 if self.model.config.groups else None
                made[settings] = ForkedDraft(self.model, kv, groups)
            else:
                made[settings] = build_drafter(settings, means)
        return DrafterRouter(made)

    def _small_model(self, pages: int) -> LoadedModel:
        assert self.small is not None
        return LoadedModel(self.small, self._cache(self.small, pages, True))

    def _cache(self, model: Model, pages: int, prefix_caching: bool) -> KVCache:
        return kv_cache_for(model, pages, PAGE, prefix_caching)

    def compare(self, job: Job, request: Request) -> Finding | None:
        """None if the answer equals the plain one."""
        answer = request.tokens[request.prompt_length :]
        plain = self.plain[job.prompt, job.mode]
        if answer == plain:
            return None
        at = next((i for i, (x, y) in enumerate(zip(plain, answer)) if x != y), None)
        if at is None:
            return Finding("error", "one answer goes on where the other ends", 0.0, 0.0)
        if self.judge is None:
            return Finding("error", f"token {at} differs", 0.0, 0.0)
        prefix = [*request.tokens[: request.prompt_length], *plain[:at]]
        return self.judge.judge(prefix, plain[at], answer[at], request.groups, request.max_len)


def _no_corpus(path: Path) -> Corpus:
    raise ValueError(f"no corpus is asked for, {path} either")


def _drain(core: EngineCore) -> None:
    while not core.idle:
        core.step()
        core.kv.check_integrity()


def measure(bench: Bench, case: Case, done: Callable[[], None]) -> Row:
    """Run a case, and judge every answer that differs from the plain one."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    started = time.perf_counter()
    requests = bench.run(case, done)
    row = Row(case.name, answers=len(requests), seconds=time.perf_counter() - started)
    for job, request in zip(case.jobs, requests, strict=True):
        bench.plain.setdefault((job.prompt, job.mode), request.tokens[request.prompt_length :])
        row.drafted += request.tally.drafted
        row.accepted += request.tally.accepted
        row.cached += request.tally.cached
        row.preempted += request.tally.preemptions
        finding = bench.compare(job, request)
        row.equal += finding is None
        if finding is not None:
            row.ties += finding.kind == "tie"
            row.errors += finding.kind == "error"
            row.parted.append({**asdict(job), **asdict(finding)})
    wanted = {
        "nothing accepted": any(job.drafter != "off" for job in case.jobs) and not row.accepted,
        "no prefix hit": case.warm and not row.cached,
        "no preemption": case.few and not row.preempted,
    }
    row.idle = ", ".join(name for name, missed in wanted.items() if missed)
    return row


def shown(rows: Sequence[Row]) -> Table:
    names = ("answers", "equal", "ties", "errors", "drafted", "accepted", "cached", "preempted")
    table = Table("case", *names, "seconds", "not shown")
    for row in rows:
        figures = [str(getattr(row, name)) for name in names]
        table.add_row(row.case, *figures, f"{row.seconds:.0f}", row.idle)
    return table


def arguments() -> argparse.Namespace:
    parser = options(
        __doc__, "prompts", "model", "head",
        limit=100, tokens=48, dtype="float32", quantization="none", out="exact.json",
    )  # fmt: skip
    parser.add_argument("--draft-model", help="a small model with the same vocabulary")
    parser.add_argument("--longest", type=int, default=256, help="prompts are cut to this")
    parser.add_argument("--kv-dtype", default="auto", help="auto, int8 or model")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--sweep", type=int, metavar="N", help="each combination on 1 prompt in N")
    parser.add_argument("--light", action="store_true", help="about 15 minutes on two cores")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    torch.set_num_threads(args.threads[0])
    bench = Bench(args)
    modes, count = list(bench.modes), len(bench.prompts)
    if args.sweep:
        todo = sweep(modes, bench.drafters, count, args.sweep, args.threads)
    else:
        todo = cases(modes, bench.drafters, count, args.light)
    printer = console()
    rows: list[Row] = []
    with Progress(console=printer) as progress:
        task = progress.add_task("", total=sum(len(case.jobs) for case in todo))
        for case in todo:
            progress.update(task, description=case.name)
            rows.append(measure(bench, case, lambda: progress.advance(task)))
            done = [asdict(row) for row in rows]
            write(args.out, args.threads[0], model=bench.folder, rows=done)
    printer.print(shown(rows))
    answers, ties = sum(r.answers for r in rows[1:]), sum(r.ties for r in rows[1:])
    errors = sum(r.errors for r in rows)
    printer.print(f"{answers} answers: {ties} near ties, {errors} errors; figures in {args.out}")
    return 1 if errors or any(row.idle for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
