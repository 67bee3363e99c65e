"""The gain from drafters: tokens a step and speed against plain decoding, by prompt set, batch, length.

    python benchmarks/drafting.py --model smollm2 --prompts gsm8k.jsonl qa.jsonl \
        --drafters suffix,auto --batch 1,8 --temperatures 0,0.7 --limit 16 -o drafting.json
    python benchmarks/drafting.py --model smollm2 --prompts gsm8k.jsonl qa.jsonl --drafters auto \
        --lengths 1,2,4,8,adaptive --batch 1,2,4,8,16,32 --temperatures 0 --mixed
    python benchmarks/drafting.py --model smollm2 --prompts qa.jsonl --drafters self:4 --batch 1 \
        --keep 0-29 0-14 0-4,5-25/2,25-29
    python benchmarks/drafting.py --model smollm2 --prompts kinds/*.jsonl --drafters auto --each --quantization int4

All settings and plain decoding answer the same prompts in turns. `head:4` has a fixed length of four, `head/3` trees
with three children a node; `--lengths` gives every drafter each of the lengths. Drafter `self` runs the model with
`--keep` some of its layers (a-b, both run, or a-b/s, every s-th) or `--groups` some of its groups. Of `--mixed` sets
one prompt of each follows the other.

A cell is times plain (tokens a step, share of drafted tokens that is kept, share of the time that drafting takes);
with `self` the last tells what a forward of some layers costs.

`--each` answers every prompt by itself, plain and drafted in turns, `--repeat` times: does anybody lose? A prompt's
figure is its best rate over plain's best, of answers longer than 64 tokens, and tokens are compared. A cell is the mean
of a set and its worst prompt (tokens a step, what a step takes in plain ones).

`batch` requests run at once, of at least twice as many prompts: where one ends the next begins. Prompts are read
before timing begins (prefix cache), by the same setting: a drafter that looks at text sees it, as it does in a
prompt's first answer, if it can keep all of them until they are asked for (a head 16,384 rows). A rate is taken from
the first token of all to the moment when the last request begins, so that all places are taken.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import nan
from statistics import fmean, median
from typing import Any

from figures import numbers, options, prompts_of, show, write
from rich.progress import track

from fastslow import LLM, Output, SamplingParams, Speculation
from fastslow.engine.host.machine import Watch
from fastslow.output import Metrics
from fastslow.tools.prompts import Conversation, read_prompts
from fastslow.tools.tune.candidates import PLAIN, grid, is_plain, label, read_lengths
from fastslow.tools.tune.runner import shuffled

WARM = 8  # tokens
LONG = 64  # tokens: a shorter answer says little of its own speed
KV = "2GiB"  # a share of memory would hold no more texts than run at once: prompts were read again


@dataclass(frozen=True, slots=True)
class Run:
    """A run of all prompts. rate: tokens a second. kept: share of the drafted tokens. drafting: share of the time.
    others: share of the machine that other processes took."""

    rate: float
    tokens_per_step: float
    kept: float
    drafting: float
    others: float | None


Runs = Mapping[Speculation, Sequence[Run]]


def run_of(metrics: Sequence[Metrics], others: float | None = None) -> Run:
    """Sum up the answers, which were all asked for at the same time. ValueError: they all began at once, so that
    nothing flowed."""
    first, last = min(m.ttft for m in metrics), max(m.ttft for m in metrics)
    if last <= first:
        raise ValueError("all answers began at once: give more prompts than run at a time")
    made = sum(_made(m, last) for m in metrics)
    tokens, steps = sum(m.tokens for m in metrics), sum(m.steps for m in metrics)
    kept = sum(m.accepted for m in metrics) / max(sum(m.drafted for m in metrics), 1)
    drafting = sum(m.draft_seconds for m in metrics)
    drafting /= drafting + sum(m.verify_seconds for m in metrics)
    return Run(made / (last - first), tokens / max(steps, 1), kept, drafting, others)


def _made(m: Metrics, until: float) -> float:
    """Tokens of an answer up to a time after the call."""
    if m.tpot <= 0:
        return float(m.tokens if m.ttft < until else 0)
    return min(max((until - m.ttft) / m.tpot, 0.0), float(m.tokens))


def measure(
    args: argparse.Namespace, batch: int, prompts: list[Conversation], heat: float,
    settings: Sequence[Speculation],
) -> Runs:  # fmt: skip
    """Every setting `--repeat` times, `batch` requests at once, each time in another order."""
    if len(prompts) < 2 * batch:
        raise ValueError(f"batch {batch} needs at least {2 * batch} prompts, got {len(prompts)}")
    found: dict[Speculation, list[Run]] = {setting: [] for setting in settings}
    jobs = [setting for turn in range(args.repeat) for setting in shuffled(settings, turn)]
    read, few, sampling = (
        SamplingParams(max_tokens=most, temperature=heat) for most in (1, WARM, args.tokens)
    )
    kind = {"dtype": args.dtype, "quantization": args.quantization, "max_running": batch}
    with LLM(args.model, kv_memory=KV, remember=False, **kind) as llm:
        for setting in settings:
            llm.generate(prompts[:1], few, speculation=setting, progress=False)
        for setting in track(jobs, f"batch {batch}"):
            llm.forget_prompts()  # else only the first setting's drafter would see them
            llm.generate(prompts, read, speculation=setting, progress=False)
            watch = Watch()
            outputs = llm.generate(prompts, sampling, speculation=setting, progress=False)
            found[setting].append(run_of([output.metrics for output in outputs], watch.others()))
    return found


@dataclass(frozen=True, slots=True)
class Alone:
    """A prompt by itself. ratio: best rate over plain's best. step: its best seconds a step over plain's. same:
    whether the tokens were plain's each time."""

    ratio: float
    step: float
    tokens: int
    tokens_per_step: float
    drafted: int
    same: bool


def alone(
    llm: LLM, prompt: Conversation, sampling: SamplingParams, settings: Sequence[Speculation], repeat: int
) -> dict[Speculation, Alone]:  # fmt: skip
    """Every setting's figures of one prompt; the settings take turns."""
    outputs: dict[Speculation, list[Output]] = {setting: [] for setting in settings}
    for turn in range(repeat):
        for setting in shuffled(settings, turn):
            llm.forget_prompts()  # a head reads the prompt, as in its first answer
            outputs[setting].append(
                llm.generate(prompt, sampling, speculation=setting, progress=False)
            )
    plain = outputs[PLAIN][0].token_ids
    best = {
        setting: max((output.metrics for output in some), key=lambda m: m.tokens_per_second)
        for setting, some in outputs.items()
    }
    usual = best[PLAIN].tpot
    return {
        setting: Alone(
            usual / m.tpot if m.tpot > 0 else nan,
            m.tpot * m.tokens_per_step / usual if m.tpot > 0 else nan,
            *(m.tokens, m.tokens_per_step, m.drafted),
            all(output.token_ids == plain for output in outputs[setting]),
        )
        for setting, m in best.items()
    }


def each(args: argparse.Namespace, settings: Sequence[Speculation]) -> None:
    """All prompts, one by one; prints the table of sets and the prompts that lose."""
    kind = {"dtype": args.dtype, "quantization": args.quantization, "remember": False}
    sampling = SamplingParams(max_tokens=args.tokens, temperature=0)
    named = [(file.stem, p) for file in args.prompts for p in read_prompts(file, args.limit)]
    found: dict[tuple[str, Speculation], list[Alone]] = {}
    cells, notes = [], []
    with LLM(args.model, **kind) as llm:
        for setting in settings:
            few = SamplingParams(max_tokens=WARM, temperature=0)
            llm.generate(named[0][1], few, speculation=setting, progress=False)
        for number, (name, prompt) in enumerate(track(named, "prompts")):
            for setting, got in alone(llm, prompt, sampling, settings, args.repeat).items():
                cells.append(
                    {"set": name, "prompt": number, "label": label(setting), **asdict(got)}
                )
                if not got.same:
                    notes.append(f"OTHER TOKENS: prompt {number} of {name}, {label(setting)}")
                if not is_plain(setting) and got.tokens > LONG:
                    found.setdefault((name, setting), []).append(got)
    drafted = [setting for setting in settings if not is_plain(setting)]
    rows = []
    for name in dict.fromkeys(name for name, _ in named):
        some = {setting: found[name, setting] for setting in drafted if (name, setting) in found}
        rows.append([name, *(_alone_cell(some.get(setting, [])) for setting in drafted)])
    every = [
        [got for (_, s), some in found.items() if s == setting for got in some]
        for setting in drafted
    ]
    rows.append(["all", *map(_alone_cell, every)])
    show(["set", *map(label, drafted)], rows, *notes)
    write(args.out, model=args.model, quantization=args.quantization, cells=cells)


def _alone_cell(some: Sequence[Alone]) -> str:
    if not some:
        return "-"
    mean, steps, cost = (
        fmean(values) for values in zip(*((a.ratio, a.tokens_per_step, a.step) for a in some))
    )
    return f"{mean:.2f}, worst {min(a.ratio for a in some):.2f} ({steps:.2f}, {cost:.2f})"


def times_plain(found: Runs, setting: Speculation) -> float:
    """A setting's rate over plain decoding's in the same turn; the median over turns."""
    return median(a.rate / b.rate for a, b in zip(found[setting], found[PLAIN], strict=True))


def layers_of(text: str) -> tuple[int, ...]:
    """0-4,5-25/2,25-29 -> the layers."""
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return tuple(sorted(found))


def settings_of(wish: str, args: argparse.Namespace) -> list[Speculation]:
    """From "name/width:length" to settings: of `self` several, by layers and groups."""
    name, _, length = wish.partition(":")
    name, _, width = name.partition("/")
    fields: dict[str, Any] = {"drafter": name}
    fields |= {"nodes": int(length)} if length else {}
    fields |= {"width": int(width)} if width else {}
    if args.head is not None and ("head" in name or name == "auto"):
        fields["head"] = args.head
    if name != "self":
        return [Speculation(**fields)]
    kept = [layers_of(text) for text in args.keep] if args.keep else [None]
    return [
        Speculation(**fields, layers=layers, groups=groups)
        for layers, groups in product(kept, numbers(args.groups))
    ]


def cell(found: Runs, setting: Speculation) -> str:
    runs = found[setting]
    if is_plain(setting):
        return f"{median(run.rate for run in runs):.0f} tok/s"
    steps, kept, share = (
        median(values) for values in zip(*((r.tokens_per_step, r.kept, r.drafting) for r in runs))
    )
    return f"{times_plain(found, setting):.2f} x ({steps:.2f}, {kept:.0%}, {share:.0%})"


def main() -> None:
    usual = {"limit": 16, "tokens": 128, "repeat": 1, "dtype": "auto", "quantization": "auto"}
    parser = options(__doc__, "head", "prompts", "model", "out", **usual)
    parser.add_argument("--drafters", default="suffix,head:4,auto")
    parser.add_argument("--lengths", help="of every drafter, such as 1,2,4,adaptive")
    parser.add_argument("--keep", nargs="*", default=[], help="layers of `self`, such as 0-14")
    parser.add_argument("--groups", default="0", help="routed groups of `self`, such as 0,1,2")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--temperatures", default="0,0.7")
    parser.add_argument("--mixed", action="store_true", help="all sets as one")
    parser.add_argument("--each", action="store_true", help="every prompt by itself, greedy")
    args = parser.parse_args()
    drafters = [s for wish in args.drafters.split(",") for s in settings_of(wish, args)]
    settings = grid(drafters, read_lengths(args.lengths)) if args.lengths else drafters
    settings = [PLAIN, *settings]
    if args.each:
        each(args, settings)
        return
    sets = {path.stem: read_prompts(path, args.limit) for path in args.prompts}
    if args.mixed:
        sets = {"mixed": prompts_of(args.prompts, args.limit * len(args.prompts))}
    rows, notes, cells = [], [], []
    for heat, size in product(map(float, args.temperatures.split(",")), numbers(args.batch)):
        most = max(args.limit, 2 * size)
        found = {n: measure(args, size, some[:most], heat, settings) for n, some in sets.items()}
        facts: dict[str, Any] = {"temperature": heat, "batch": size}
        for setting in settings:
            ratios = {name: times_plain(runs, setting) for name, runs in found.items()}
            texts = [cell(runs, setting) for runs in found.values()]
            mean = f"{fmean(ratios.values()):.2f}"
            rows.append([f"{heat:g}", f"{size}", label(setting), *texts, mean])
            facts |= {"label": label(setting), "speculation": setting.model_dump(mode="json")}
            for name, runs in found.items():
                own = {"times_plain": ratios[name], "runs": [asdict(run) for run in runs[setting]]}
                cells.append({"set": name, **facts, **own})
        for name, runs in found.items() if args.lengths else ():
            fixed = max((times_plain(runs, s), label(s)) for s in settings if s.nodes)
            free = [times_plain(runs, s) for s in settings if s.nodes is None]
            share = f"{max(free, default=nan) / fixed[0]:.2f}"
            notes.append(f"batch {size}, {name}: adaptive / best fixed ({fixed[1]}) {share}")
    show(["temperature", "batch", "drafter", *sets, "mean"], rows, *notes)
    write(args.out, model=args.model, limit=args.limit, cells=cells)


if __name__ == "__main__":
    main()
