"""Exactness on a real model: whatever drafts and whatever runs beside it, plain decoding's tokens.

    python benchmarks/exact.py --model PATH --prompts FILE.jsonl... [--draft-model PATH]

Prompts are put through the chat template; the files are read in turn. The reference is plain greedy decoding, one
request alone. Against it run every drafter in every mode alone, and batches of 8 that mix modes and drafters: as they
come, with prompts read in small chunks, with prompts found in the prefix cache, and with too few KV pages, so that
requests are preempted. Every other request drafts as much as pays on this machine, the others a fixed length. The
pages are checked after each step. Where an answer differs, the position is recomputed in float64 (see near_tie.py)
and counted as a tie or as an error. Exit code 1 for an error, or if a case did not bring about what it is for.

--sweep N instead runs every drafter at batch 1 and 8, with each of --threads, prompts whole and in chunks, every
combination on one prompt in N; N = 1 is the whole matrix.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch
from figures import chat_encoder, options, prompts_of, show, write
from near_tie import Finding, Judge
from rich.progress import track

from fastslow import LLM, Mode, Output, SamplingParams, Speculation
from fastslow.engine.model.decoder import Decoder
from fastslow.models.locate import resolve_model

BATCH = 8
NODES = 6
COUNTS = ("answers", "equal", "ties", "errors", "drafted", "accepted", "cached", "preempted")
COUNTS_OF = {"tie": "ties", "error": "errors"}


@dataclass(frozen=True)
class Job:
    """Which prompt is answered in which mode, and who drafts."""

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


@dataclass
class CaseResult:
    """One line of the table. `idle`: what the case is for and did not bring about."""

    case: str
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    differ: list[dict[str, Any]] = field(default_factory=list)
    idle: str = ""

    def record(self) -> dict[str, Any]:
        counts = {name: self.counts[name] for name in COUNTS}
        own = {"case": self.case, **counts, "seconds": self.seconds}
        return {**own, "differ": self.differ, "idle": self.idle}


class ExactBench:
    """A model with its prompts, and the plain answers known so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.folder = args, resolve_model(args.model)
        self._load = {key: getattr(args, key) for key in ("dtype", "quantization", "kv_dtype")}
        self._asked: dict[str, Any] = {}
        self.llm = LLM(self.folder, **self._load)
        config = self.llm.model.config
        own = {name: m for name, m in self.llm.modes.items() if not (m.auto or m.escalate)}
        if config.groups:
            own["shared"] = Mode(groups=0, thinking="off")
        self.modes = {name: Mode(groups=m.groups, thinking="off") for name, m in own.items()}
        self.drafters = self._drafters(args, config.groups, config.layers)
        encode = chat_encoder(self.folder)
        self.prompts = [
            {name: encode(talk, mode.thinking)[: args.longest] for name, mode in own.items()}
            for talk in prompts_of(args.prompts, args.limit)
        ]
        self.plain: dict[tuple[int, str], list[int]] = {}
        # the CPU kernels round alike in every batch: no tie is an excuse there
        self._judge = None
        if isinstance(self.llm.model, Decoder):
            self._judge = Judge(self.folder, self.llm.model)

    def _drafters(
        self, args: argparse.Namespace, groups: int, layers: int
    ) -> Mapping[str, dict[str, Any]]:
        """Fields of each drafter's settings. Accepted nodes of a tree need not lie side by side: then their keys and
        values are moved."""
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
            kind, c = self.llm.model.storage, self.llm.model.config
            pages = sorted((-(-(n + NODES) // kind.page_size) for n in lengths), reverse=True)
            count = pages[0] + (sum(pages[: case.batch]) - pages[0]) // 8
            shape = {"layers": c.layers, "kv_heads": c.kv_heads, "head_dim": c.head_dim}
            token = kind.token_bytes(dtype=self.llm.model.dtype, **shape)
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
            return Finding("error", "one answer continues where the other ends", 0.0, 0.0)
        if self._judge is None:
            return Finding("error", f"token {at} differs", 0.0, 0.0)
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
            row.differ.append({**asdict(job), **asdict(finding)})
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
