"""Every drafter on a device against plain decoding there: the same tokens, and the same law."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fastslow.draft.registry import DRAFTERS, split_names
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.models.locate import resolve_model
from fastslow.output import Completion
from fastslow.tools.check_device.families import write_random
from fastslow.tools.check_device.finding import CheckPlan, Finding
from fastslow.tools.prompts import read_prompts
from fastslow.tools.train_head.train import first_weights
from fastslow.tools.tune.candidates import default_drafters, grid

TARGET, DRAFT = "abacus", "abacus-draft"
COMBINED = ("ngram+self", "suffix+model", "suffix|head", "ngram|model")
OVER_STATES = ("mtp", "ngram", "suffix", "suffix|mtp")
BATCHES = (1, 3, 8, 64)
LAW = "David starts with"
DEVIATION = 5.0  # standard deviations; by chance once in a million


def exactness(plan: CheckPlan) -> Finding:
    """Greedy answers of all drafters, in batches of several sizes, against plain answers alone."""
    found = Finding("exact: every drafter against plain decoding")
    if plan.model is not None:
        with LLM(plan.model, device=plan.device, dtype=plan.dtype, remember=False) as llm:
            _compare(found, plan, llm, grid(default_drafters(llm), (4, None)))
        return found
    settings = drafters(write_head(resolve_model(TARGET), plan.folder / "head.safetensors"))
    with _loaded(plan, TARGET) as llm:
        _compare(found, plan, llm, settings)
        law = law_deviation(plan, llm)
    found.figures["law_deviation"] = law
    found.lines.insert(
        3, f"sampled with drafts: {law:.1f} sigma from the law without (limit {DEVIATION:g})"
    )
    found.passed &= law < DEVIATION
    return found


def recurrent(plan: CheckPlan) -> Finding:
    """The same of a random model with gated delta nets, whose own layer drafts, too."""
    found = Finding("recurrent: drafts over running states against plain decoding")
    each: list[dict[str, Any]] = [{"drafter": name} for name in OVER_STATES]
    fewer = {"drafter": "self", "layers": (0, 2, 3)}
    settings = [Speculation(**how, nodes=4) for how in (*each, fewer, {**each[0], "width": 2})]
    with _loaded(plan, write_recurrent(plan.folder / "recurrent")) as llm:
        _compare(found, plan, llm, settings)
    return found


def _loaded(plan: CheckPlan, model: str | Path) -> LLM:
    how: dict[str, Any] = {"device": plan.device, "dtype": plan.dtype, "kv_memory": "256MiB"}
    return LLM(model, **how, remember=False, progress=False)


def _compare(found: Finding, plan: CheckPlan, llm: LLM, settings: Sequence[Speculation]) -> None:
    """Note what drafts changed."""
    few = 3 if plan.quick else 8
    shipped = resolve_model(TARGET) / "calibration.jsonl"
    prompts = read_prompts(plan.prompts) if plan.prompts else read_prompts(shipped, few)
    sampling = SamplingParams(max_tokens=16 if plan.quick else 48, logprobs=2)
    slack = plan.slack(llm.model.dtype)
    wanted = {
        (n, mode): llm.chat(prompt, sampling, mode=mode, speculation="off").choices[0]
        for mode in ("fast", "deep")
        for n, prompt in enumerate(prompts)
    }
    jobs = [(setting, *asked) for setting in settings for asked in wanted]
    random.Random(0).shuffle(jobs)
    near, wrong, tally = 0, list[str](), Counter[str]()
    first, sizes = 0, cycle(BATCHES)
    while first < len(jobs):
        some = jobs[first : first + next(sizes)]
        first += len(some)
        used, asked, modes = map(list, zip(*some))
        talks = [prompts[n] for n in asked]
        answers = llm.chat(talks, sampling, mode=modes, speculation=used, progress=False)
        for (setting, n, mode), answer in zip(some, answers):
            given = answer.choices[0]
            tally["drafted"] += given.metrics.drafted
            tally["accepted"] += given.metrics.accepted
            gap = parted(given, wanted[n, mode])
            if gap is not None and gap <= slack and slack > 0:
                near += 1
            elif gap is not None:
                wrong.append(f"{setting.drafter}, {mode}, {prompts[n]}: {gap:.3g}")
    found.figures = {"answers": len(jobs), "near_ties": near, "slack": slack, "wrong": wrong}
    found.figures |= tally
    equal = len(jobs) - near - len(wrong)
    found.lines = [
        f"{len(jobs)} answers by {len(settings)} drafters, fast and deep, batches of 1 to 64",
        f"{equal} equal, {near} parted at a near tie (best logits within {slack:g}), {len(wrong)} wrong",
        f"{tally['accepted']} of {tally['drafted']} drafted tokens accepted",
        *(f"wrong: {x}" for x in wrong[:5]),
    ]
    found.passed = not wrong and tally["accepted"] > 0
    found.advice = (
        "run it again with --dtype float32. If that passes, kernels of this dtype round by batch more "
        "than the limit; if not, decode plainly (--drafter off) and report this file"
    )


def drafters(head: Path) -> list[Speculation]:
    """Every drafter that has a name, chains and trees, and combinations."""
    fields: dict[str, dict[str, Any]] = {"head": {"head": str(head)}, "model": {"model": DRAFT}}

    def made(drafter: str, width: int = 1) -> Speculation:
        more: dict[str, Any] = {
            k: v for name in split_names(drafter) for k, v in fields.get(name, {}).items()
        }
        return Speculation(drafter=drafter, nodes=4, width=width, **more)

    own = [name for name in DRAFTERS if name != "mtp"]  # the small model has no such layer
    return [*map(made, own), *map(made, COMBINED), made("head", 2)]


def parted(given: Completion, wanted: Completion) -> float | None:
    """Return the gap of the two best log-probabilities where an answer left the plain one; None: it did not."""
    if given.token_ids == wanted.token_ids:
        return None
    pairs = zip(given.token_ids, wanted.token_ids)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), -1)
    if place < 0 or wanted.logprobs is None:
        return float("inf")  # one ended early
    best, second, *_ = sorted(wanted.logprobs[place].values(), reverse=True)
    return best - second


def law_deviation(plan: CheckPlan, llm: LLM) -> float:
    """Measure how far drafts move the law of two sampled tokens, in standard deviations."""
    drafted = Speculation(drafter="self", nodes=2, accept="token")
    how: dict[str, Any] = {"max_tokens": 3, "temperature": 1.5, "n": 128, "ignore_eos": True}
    counts = []
    for speculation in ("off", drafted):
        seen = Counter[tuple[int, ...]]()
        for seed in range(1 if plan.quick else 4):
            many = SamplingParams(**how, seed=1000 * seed)
            for choice in llm.generate(LAW, many, speculation=speculation).choices:
                seen.update((tuple(choice.token_ids[1:]), tuple(choice.token_ids[1:2])))
        counts.append(seen)
    one, other = counts
    common = [x for x in one.keys() | other.keys() if one[x] + other[x] >= 10]
    return max((abs(one[x] - other[x]) / (one[x] + other[x]) ** 0.5 for x in common), default=0.0)


def write_head(target: Path, path: Path) -> Path:
    """A head with random weights: what it drafts is seldom right, and must not matter."""
    config = ModelConfig.from_folder(target)
    tokens = torch.arange(config.vocab_size, dtype=torch.int32)
    shape, table = first_weights(target, (0, len(config.layers) - 1), tokens)
    save_file(table, path, shape.metadata())
    return path


def write_recurrent(folder: Path) -> Path:
    """A random model with gated delta nets that goes mostly by a text's last token, as its layer that drafts does: so
    some drafts are right."""
    path = write_random(folder, "Qwen3_5ForCausalLM") / "model.safetensors"
    shutil.copy(resolve_model(TARGET) / "tokenizer.model", folder)
    table = load_file(path)
    for name, weight in table.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            weight *= 0.01
    table["mtp.fc.weight"] = torch.eye(*table["mtp.fc.weight"].shape, dtype=torch.bfloat16)
    save_file(table, path, metadata={"format": "pt"})
    return folder
