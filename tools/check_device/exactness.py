"""Every drafter on a device against plain decoding there: the same tokens, and the same law."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastslow.draft.registry import DRAFTERS
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.models.locate import resolve_model
from fastslow.output import Completion
from fastslow.tools.check_device.report import CheckPlan, Finding
from fastslow.tools.prompts import read_prompts
from fastslow.tools.train_head.untrained import first_weights

TARGET, DRAFT = "abacus", "abacus-draft"
COMBINED = ("ngram+self", "suffix+model", "suffix|head", "ngram|model")
WIDE = ("head", "self", "model")  # those that draft trees
BATCHES = (1, 3, 8, 64)
LAW = "David starts with"
DEVIATION = 5.0  # standard deviations; by chance once in a million


@dataclass(frozen=True, slots=True)
class DraftedJob:
    """One prompt in one mode with one drafter."""

    prompt: str
    mode: str
    speculation: Speculation


def exactness(plan: CheckPlan) -> Finding:
    """Greedy answers of all drafters, in batches of several sizes, against plain answers alone."""
    found = Finding("exact: every drafter against plain decoding")
    head = write_head(plan.folder)
    prompts = [str(x) for x in read_prompts(_calibration(), 3 if plan.quick else 8)]
    sampling = SamplingParams(max_tokens=16 if plan.quick else 48, logprobs=2)
    with LLM(
        TARGET,
        device=plan.device,
        dtype=plan.dtype,
        kv_memory="256MiB",
        remember=False,
        progress=False,
    ) as llm:
        slack = plan.slack(llm.model.dtype)
        settings = drafters(head)
        modes = ("fast", "deep")
        plain = {
            (prompt, mode): llm.chat(prompt, sampling, mode=mode, speculation="off").choices[0]
            for mode in modes
            for prompt in prompts
        }
        jobs = [DraftedJob(p, m, s) for s in settings for m in modes for p in prompts]
        random.Random(0).shuffle(jobs)
        near, wrong, tally = 0, list[str](), Counter[str]()
        first, sizes = 0, cycle(BATCHES)
        while first < len(jobs):
            some = jobs[first : first + next(sizes)]
            first += len(some)
            plan.say(first / len(jobs), f"{first} of {len(jobs)} answers")
            answers = llm.chat(
                [job.prompt for job in some],
                sampling,
                mode=[job.mode for job in some],
                speculation=[job.speculation for job in some],
                progress=False,
            )
            for job, answer in zip(some, answers):
                given, wanted = answer.choices[0], plain[job.prompt, job.mode]
                tally["drafted"] += given.metrics.drafted
                tally["accepted"] += given.metrics.accepted
                gap = parted(given, wanted)
                if gap is None:
                    continue
                if gap <= slack and slack > 0:
                    near += 1
                else:
                    wrong.append(f"{named(job.speculation)}, {job.mode}, {job.prompt!r}: {gap:.3g}")
        seeded, law = _sampled(plan, llm, settings, prompts)
    found.figures = {
        "answers": len(jobs),
        "near_ties": near,
        "slack": slack,
        "wrong": wrong,
        **tally,
        "seeded_differ": seeded,
        "law_deviation": law,
    }
    equal = len(jobs) - near - len(wrong)
    found.lines = [
        f"{len(jobs)} answers by {len(settings)} drafters, fast and deep, batches of 1 to 64",
        f"{equal} equal, {near} parted at a near tie (best logits within {slack:g}), {len(wrong)} wrong",
        f"{tally['accepted']} of {tally['drafted']} drafted tokens accepted",
        f"sampled: {seeded} seeded answers differ; {law:.1f} sigma from the law (limit {DEVIATION:g})",
        *(f"wrong: {x}" for x in wrong[:5]),
    ]
    allowed = 0 if slack == 0 else len(prompts)
    found.passed = not wrong and tally["accepted"] > 0 and law < DEVIATION and seeded <= allowed
    found.advice = (
        "run it again with --dtype float32. If that passes, kernels of this dtype round by batch more "
        "than the limit; if not, decode plainly (--drafter off) and report this file"
    )
    return found


def drafters(head: Path) -> list[Speculation]:
    """Every drafter that has a name, chains and trees, and combinations."""
    fields: dict[str, dict[str, Any]] = {"head": {"head": str(head)}, "model": {"model": DRAFT}}

    def made(drafter: str, width: int = 1) -> Speculation:
        names = drafter.replace("|", "+").split("+")
        more: dict[str, Any] = {k: v for name in names for k, v in fields.get(name, {}).items()}
        return Speculation(drafter=drafter, nodes=4, width=width, **more)

    wide = [name for name in WIDE if name in DRAFTERS]
    return [*map(made, DRAFTERS), *map(made, COMBINED), *(made(name, 2) for name in wide)]


def named(speculation: Speculation) -> str:
    return speculation.drafter + (" trees" if speculation.width > 1 else "")


def parted(given: Completion, wanted: Completion) -> float | None:
    """How far apart the two best tokens were where an answer left the plain one; None: it did not."""
    if given.token_ids == wanted.token_ids:
        return None
    pairs = zip(given.token_ids, wanted.token_ids)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
    if place < 0 or wanted.logprobs is None:
        return float("inf")  # one ended early
    best, second, *_ = sorted(wanted.logprobs[place].values(), reverse=True)
    return best - second


def _sampled(
    plan: CheckPlan, llm: LLM, settings: list[Speculation], prompts: list[str]
) -> tuple[int, float]:
    """How many seeded answers a drafter changes; how far drafts move the law of two tokens."""
    seeded = SamplingParams(max_tokens=12, temperature=0.8, seed=7)
    plain = [llm.chat(p, seeded, speculation="off").token_ids for p in prompts]
    differ = 0
    for one in settings:
        answers = llm.chat(list(prompts), seeded, speculation=one, progress=False)
        differ += sum(x.token_ids != y for x, y in zip(answers, plain))
    counts = []
    for speculation in ("off", Speculation(drafter="self", nodes=2, accept="token")):
        seen = Counter[tuple[int, ...]]()
        for round_ in range(1 if plan.quick else 4):
            many = SamplingParams(
                max_tokens=3, temperature=1.5, n=128, seed=1000 * round_, ignore_eos=True
            )
            answer = llm.generate(LAW, many, speculation=speculation)
            seen.update(tuple(c.token_ids[1:]) for c in answer.choices)
            seen.update(tuple(c.token_ids[1:2]) for c in answer.choices)
        counts.append(seen)
    alone, drafted = counts
    deviations = [
        abs(alone[x] - drafted[x]) / (alone[x] + drafted[x]) ** 0.5
        for x in alone.keys() | drafted.keys()
        if alone[x] + drafted[x] >= 10
    ]
    return differ, max(deviations, default=0.0)


def write_head(folder: Path) -> Path:
    """A head with random weights for the target: what it drafts is seldom right, and must not matter."""
    target = resolve_model(TARGET)
    config = ModelConfig.from_folder(target)
    tokens = torch.arange(config.vocab_size, dtype=torch.int32)
    shape, table = first_weights(target, (0, config.layers - 1), tokens)
    path = folder / "head.safetensors"
    save_file(table, path, shape.metadata())
    return path


def _calibration() -> Path:
    return resolve_model(TARGET) / "calibration.jsonl"
