"""Exactness on a real model: whatever drafts and whatever runs beside it, plain decoding's tokens.

    python benchmarks/exact.py --model PATH --prompts FILE.jsonl... [--draft-model PATH]

Prompts are put through the chat template; the files are read in turn. The reference is plain greedy decoding, one
request alone. Against it run every drafter in every mode alone, and batches of 8 that mix modes and drafters: as they
come, with prompts read in small chunks, with prompts found in the prefix cache, and with too few KV pages, so that
requests are preempted. Every other request drafts as much as pays on this machine, the others a fixed length. The
pages are checked after each step. Exit code 1 for an error, or if a case did not bring about what it is for.

Where an answer differs, the position is recomputed in float64 and counted as a near tie or as an error. Two answers
may differ from a near tie on only. Either the two tokens' logits are closer in float64 than the rounding error
measured at that place, or two scores of the router are: then nudging the float64 router to the other choice must lead
from one answer's token to the other's. The CPU kernels round alike in every batch: no tie is an excuse there.

--sweep N instead runs every drafter at batch 1 and 8, with each of --threads, prompts whole and in chunks, every
combination on one prompt in N; N = 1 is the whole matrix.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from figures import chat_encoder, options, prompts_of, show, write
from rich.progress import track
from torch import Tensor

from fastslow import LLM, Mode, Output, SamplingParams, Speculation
from fastslow.engine.backends.loader import load_model
from fastslow.engine.backends.torch.decoder import Decoder
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.ffn import experts
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import ExpertChoice, choose
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.rows import Rows
from fastslow.models.locate import resolve_model
from fastslow.tools.forward import chain

BATCH = 8
NODES = 6
COUNTS = ("answers", "equal", "ties", "errors", "drafted", "accepted", "cached", "preempted")
COUNTS_OF = {"tie": "ties", "error": "errors"}
PAGE = 16
SLACK = 8.0  # times its measured median that rounding may be
LAST = 16  # rows whose logits measure the rounding
TRIES = 32  # router ties that are tried, the closest first


@dataclass(frozen=True)
class Job:
    """A prompt to answer, the mode, and the drafter."""

    prompt: int
    mode: str
    drafter: str


@dataclass(frozen=True)
class Case:
    """A way to run jobs. `warm`: their prompts were read before, in their own mode and another; `few`: the pages do
    not hold the batch. threads: None = as the run says."""

    name: str
    jobs: list[Job]
    batch: int = BATCH
    prompt_rows: int = 512
    warm: bool = False
    few: bool = False
    threads: int | None = None


def cases(modes: Sequence[str], drafters: Sequence[str], count: int) -> list[Case]:
    """The plain reference first, then all that must equal it."""
    shifts = range(len(modes))
    mixed = ("off", *drafters)
    found = []
    for name in mixed:
        every = [Job(i, modes[(i + s) % len(modes)], name) for s in shifts for i in range(count)]
        found.append(Case(f"{'plain' if name == 'off' else name}, alone", every, batch=1))
    kinds: dict[str, dict[str, Any]] = {
        "mixed batch": {}, "mixed, chunks of 23": {"prompt_rows": 23},
        "mixed, prefix hit": {"warm": True}, "mixed, preempted": {"few": True},
    }  # fmt: skip
    for (kind, fields), shift in product(kinds.items(), shifts):
        some = [
            Job(i, modes[(i + shift) % len(modes)], mixed[(i // len(modes) + shift) % len(mixed)])
            for i in range(count)
        ]
        found.append(Case(f"{kind}, shift {shift}", some, **fields))
    return [case for case in found if case.jobs]


def sweep(
    modes: Sequence[str], drafters: Sequence[str], count: int, share: int, threads: Sequence[int]
) -> list[Case]:
    """Every drafter at batch 1 and 8, with each number of threads, prompts whole and in chunks.

    Every combination takes one prompt in `share`, not the same; a prompt has one mode.
    """
    plain = [Job(i, modes[i % len(modes)], "off") for i in range(count)]
    found = [Case("plain, alone", plain, batch=1, threads=threads[0])]
    combined = product((1, BATCH), threads, (512, 23), drafters)
    for n, (batch, count_threads, rows, name) in enumerate(combined):
        jobs = [Job(i, modes[i % len(modes)], name) for i in range(n % share, count, share)]
        chunks = "whole" if rows == 512 else f"chunks of {rows}"
        label = f"{name}, batch {batch}, {count_threads} threads, {chunks}"
        found.append(Case(label, jobs, batch, rows, threads=count_threads))
    return [case for case in found if case.jobs]


class Nudge(NamedTuple):
    """A router logit to raise: `margin` is what it lacks to be chosen."""

    margin: float
    layer: int  # among the routed layers
    row: int
    expert: int


class Finding(NamedTuple):
    """`kind`: "tie" (explained by rounding) or "error". `gap` and `allowed` are logits."""

    kind: str
    why: str
    gap: float = 0.0
    allowed: float = 0.0


class Judge:
    """Compares a model with itself in float64, which is loaded from `folder` when it is first needed."""

    def __init__(self, folder: Path, model: Decoder) -> None:
        self._folder = folder
        self._low = model
        self._high: Decoder | None = None

    def judge(
        self, prefix: Sequence[int], ours: int, theirs: int, groups: int | None, most: int
    ) -> Finding:
        """After `prefix` plain decoding went on with `ours`, another run with `theirs`; the text may grow to `most`
        tokens."""
        if self._high is None:
            high = load_model(self._folder, dtype="float64", device=self._low.device)
            assert isinstance(high, Decoder)
            self._high = high
        low_LV, low_scores = _run(self._low, prefix, groups, most)
        high_LV, high_scores = _run(self._high, prefix, groups, most)
        best = int(high_LV[-1].argmax())
        gap = float((high_LV[-1, ours] - high_LV[-1, theirs]).abs())
        rounding = (low_LV.double() - high_LV).abs().amax(-1).median()
        allowed = SLACK * float(rounding)
        if gap <= allowed and float(high_LV[-1, best] - high_LV[-1, ours]) <= allowed:
            return Finding("tie", "two logits", gap, allowed)
        for nudge in self._nudges(low_scores, high_scores, groups):
            moved_LV, _ = _run(self._high, prefix, groups, most, nudge)
            moved = int(moved_LV[-1].argmax())
            if {best, moved} == {ours, theirs}:
                why = f"two router scores {nudge.margin:.1e} apart at row {nudge.row}"
                return Finding("tie", why, gap, allowed)
        return Finding("error", "no near tie explains it", gap, allowed)

    def _nudges(self, low: list[Tensor], high: list[Tensor], groups: int | None) -> list[Nudge]:
        """List the router's choices that rounding could change, the closest first."""
        assert self._high is not None
        ffns = (layer.ffn for layer in self._high.weights.layers)
        mixtures = [ffn for ffn in ffns if isinstance(ffn, ExpertsModule)]
        scales = [x.weights.scale for x in mixtures if x.weights.scale is not None]
        all_groups = RoutedUnits.of(self._high.config).most
        found: list[Nudge] = []
        for n, (low_TE, high_TE) in enumerate(zip(low, high, strict=True)):
            allowed = SLACK * float((low_TE - high_TE).abs().amax(-1).median())
            size = high_TE.shape[1] // all_groups
            grouped_TGE = high_TE.view(len(high_TE), all_groups, size)
            top = grouped_TGE.topk(min(2, size), -1)
            first = torch.arange(all_groups) * size
            if size > 1:
                margins = top.values[..., 0] - top.values[..., 1]
                for row, g in (margins <= allowed).nonzero().tolist():
                    expert = int(first[g] + top.indices[row, g, 1])
                    found.append(Nudge(float(margins[row, g]), n, row, expert))
            if groups:
                best = first + top.indices[..., 0]
                weights = top.values[..., 0] + scales[n][best].log()
                order = weights.argsort(dim=-1, descending=True, stable=True)
                kept, cut = order[:, groups - 1 : groups], order[:, groups : groups + 1]
                lacks = (weights.gather(1, kept) - weights.gather(1, cut))[:, 0]
                for row in (lacks <= allowed).nonzero()[:, 0].tolist():
                    expert = int(best[row, int(cut[row])])
                    found.append(Nudge(float(lacks[row]), n, row, expert))
        return sorted(found)[:TRIES]


@contextmanager
def _watched(nudge: Nudge | None) -> Iterator[list[Tensor]]:
    """Collects the router's logits, layer by layer, and changes one of them on its way."""
    seen: list[Tensor] = []

    def watching(logits_PE: Tensor, scale_E: Tensor, groups: int, wanted: Tensor) -> ExpertChoice:
        if nudge is not None and nudge.layer == len(seen):
            logits_PE = logits_PE.clone()
            logits_PE[nudge.row, nudge.expert] += 1.01 * nudge.margin + 1e-12
        seen.append(logits_PE.double())
        return choose(logits_PE, scale_E, groups, wanted)

    with patch.object(experts, "choose", watching):
        yield seen


def _run(
    model: Decoder, text: Sequence[int], groups: int | None, most: int, nudge: Nudge | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last rows [LAST, V], and the router's [T, E] of each routed layer."""
    count = len(text)
    kv, slots = kv_cache_for(model, -(-count // PAGE), PAGE, False, 1, 0), np.arange(count)
    outputs = range(max(0, count - LAST), count)
    segment = chain(text, slots, 0, count, groups=groups, outputs=outputs, max_len=most)
    with _watched(nudge) as seen:
        logits = model.forward(Rows.of([segment]), kv.storage).logits
    return logits, [scores[:count].cpu() for scores in seen]


@dataclass
class CaseResult:
    """A line of the table. `idle`: what the case is for and did not bring about."""

    case: str
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    differ: list[dict[str, Any]] = field(default_factory=list)
    idle: str = ""

    def record(self) -> dict[str, Any]:
        counts = {name: self.counts[name] for name in COUNTS}
        own = {"seconds": self.seconds, "differ": self.differ, "idle": self.idle}
        return {"case": self.case, **counts, **own}


class ExactBench:
    """A model with its prompts, and the plain answers known so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.folder = args, resolve_model(args.model)
        self._load = {key: getattr(args, key) for key in ("dtype", "quantization", "kv_dtype")}
        self._asked: dict[str, Any] = {}
        self.llm = LLM(self.folder, **self._load)
        config = self.llm.model.config
        units = RoutedUnits.of(config)
        grouped = units.most if units.name == "groups" else 0
        own = {name: m for name, m in self.llm.modes.items() if not (m.auto or m.escalate)}
        if grouped:
            own["shared"] = Mode(groups=0, thinking="off")
        self.modes = {name: Mode(groups=m.groups, thinking="off") for name, m in own.items()}
        self.drafters = self._drafters(args, grouped, len(config.layers))
        encode = chat_encoder(self.folder)
        self.prompts = [
            {name: encode(talk, mode.thinking)[: args.longest] for name, mode in own.items()}
            for talk in prompts_of(args.prompts, args.limit)
        ]
        self.plain: dict[tuple[int, str], list[int]] = {}
        model = self.llm.model
        self._judge = Judge(self.folder, model) if isinstance(model, Decoder) else None

    def _drafters(
        self, args: argparse.Namespace, groups: int, layers: int
    ) -> Mapping[str, dict[str, Any]]:
        """Fields of each drafter's settings; accepted nodes of a tree may lie apart: then keys and values are moved."""
        every = {} if groups else {"layers": tuple(range(layers))}
        found: dict[str, dict[str, Any]] = {"tree": {"drafter": "self", "width": 2, **every}}
        for name in ("ngram", "suffix", *(("self", "ngram+self") if groups else ())):
            found[name] = {"drafter": name}
        if args.draft_model is not None:
            found["model"] = {"drafter": "model", "model": args.draft_model}
        for name in ("head", "suffix|head") if args.head is not None else ():
            found[name] = {"drafter": name, "head": args.head, "width": 2}
        return found

    def run(self, case: Case) -> list[Output]:
        """All jobs of a case, `batch` at a time."""
        texts = [self.prompts[job.prompt][job.mode] for job in case.jobs]
        self._prepare(case, [len(text) + self._args.tokens for text in texts])
        modes, params = [self.modes[job.mode] for job in case.jobs], SamplingParams(max_tokens=1)
        if case.warm:
            names = list(self.modes)
            after = dict(zip(names, names[1:] + names[:1], strict=True))
            other = [self.modes[after[job.mode]] for job in case.jobs]
            for some in (other, modes):
                self.llm.generate(texts, params, mode=some, speculation="off", progress=False)
        params = SamplingParams(max_tokens=self._args.tokens)
        off = {"drafter": "off"}
        fields = (self.drafters.get(job.drafter, off) for job in case.jobs)
        wishes = [Speculation(nodes=NODES if n % 2 else None, **f) for n, f in enumerate(fields)]
        return self.llm.generate(texts, params, mode=modes, speculation=wishes, progress=False)

    def _prepare(self, case: Case, lengths: list[int]) -> None:
        """The model with the batch, the chunks, the pages and the threads of a case."""
        asked: dict[str, Any] = {"max_running": case.batch, "prompt_rows": case.prompt_rows}
        asked["prefix_caching"] = case.warm or case.few
        if case.few:
            kind, layout = self.llm.model.storage, self.llm.model.config.state_layout
            pages = sorted((-(-(n + NODES) // kind.page_size) for n in lengths), reverse=True)
            count = pages[0] + (sum(pages[: case.batch]) - pages[0]) // 8
            token = kind.token_bytes(layout, self.llm.model.dtype)
            asked["kv_memory"] = int(count * kind.page_size * token * kind.share)
            asked["max_model_len"] = max(lengths)
        threads = case.threads or self._args.threads[0]
        if self._asked != {**asked, "threads": threads}:
            self.llm.close()
            torch.set_num_threads(threads)
            self.llm = LLM(self.folder, **self._load, **asked)
            self._asked = {**asked, "threads": threads}
            core, step = self.llm._core, self.llm._core.step

            def checked() -> None:
                step()
                core.kv.check_integrity()

            core.step = checked  # type: ignore[method-assign]
        self.llm.forget_prompts()

    def compare(self, job: Job, output: Output) -> Finding | None:
        """None if the answer equals the plain one."""
        answer, plain = output.token_ids, self.plain[job.prompt, job.mode]
        if answer == plain:
            return None
        at = next((i for i, (x, y) in enumerate(zip(plain, answer)) if x != y), None)
        if at is None:
            return Finding("error", "one answer continues where the other ends")
        if self._judge is None:
            return Finding("error", f"token {at} differs")
        text = output.prompt_token_ids
        end, groups = len(text) + self._args.tokens - 1, self.modes[job.mode].groups
        return self._judge.judge([*text, *plain[:at]], plain[at], answer[at], groups, end)


def measure(bench: ExactBench, case: Case) -> CaseResult:
    """Run a case, and judge every answer that differs from the plain one."""
    started = time.perf_counter()
    outputs = bench.run(case)
    row = CaseResult(case.name, time.perf_counter() - started)
    for job, output in zip(case.jobs, outputs, strict=True):
        bench.plain.setdefault((job.prompt, job.mode), output.token_ids)
        m, finding = output.metrics, bench.compare(job, output)
        row.counts.update(answers=1, drafted=m.drafted, accepted=m.accepted)
        row.counts.update(cached=m.cached_tokens, preempted=m.preemptions)
        row.counts["equal" if finding is None else COUNTS_OF[finding.kind]] += 1
        if finding is not None:
            row.differ.append({**asdict(job), **finding._asdict()})
    drafts = any(job.drafter != "off" for job in case.jobs)
    wanted = {"accepted": drafts, "cached": case.warm, "preempted": case.few}
    row.idle = ", ".join(f"nothing {x}" for x, due in wanted.items() if due and not row.counts[x])
    return row


def main() -> int:
    usual = {"limit": 100, "tokens": 48, "dtype": "float32", "quantization": "none"}
    parser = options(__doc__, "prompts", "model", "head", out="exact.json", **usual)
    parser.add_argument("--draft-model", help="a small model with the same vocabulary")
    parser.add_argument("--longest", type=int, default=256, help="prompts are cut to this")
    parser.add_argument("--kv-dtype", default="auto", help="auto, int8 or model")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--sweep", type=int, metavar="N", help="each combination on 1 prompt in N")
    args = parser.parse_args()
    bench = ExactBench(args)
    modes, drafters, count = list(bench.modes), list(bench.drafters), len(bench.prompts)
    if args.sweep:
        todo = sweep(modes, drafters, count, args.sweep, args.threads)
    else:
        todo = cases(modes, drafters, count)
    rows: list[CaseResult] = []
    for case in track(todo, "cases"):
        rows.append(measure(bench, case))
        write(args.out, model=bench.folder, rows=[row.record() for row in rows])
    bench.llm.close()
    lines = [
        [r.case, *(str(r.counts[name]) for name in COUNTS), f"{r.seconds:.0f}", r.idle]
        for r in rows
    ]
    answers, ties, errors = (
        sum(r.counts[n] for r in rows[1:]) for n in ("answers", "ties", "errors")
    )
    note = f"{answers} answers: {ties} near ties, {errors} errors; figures in {args.out}"
    show(["case", *COUNTS, "seconds", "not shown"], lines, note)
    return 1 if errors or any(row.idle for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
