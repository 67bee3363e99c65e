"""Accuracy, time and tokens of thinking fast and slow, on tasks with known answers.

    python benchmarks/thinking.py --count 1000 --out thinking.json

It asks a built-in model, `abacus` or `--mix atlas`, held-out tasks of its own kind, one at a time, each in every way
before the next task: the presets fast and deep, auto as it learned it (`--auto FILE` of `fastslow tune --modes`) and
by the weights set by hand, fast with escalation to deep, 0 to 8 groups with thinking off and on, deep with thinking
budgets. `--only budgets` and so on measure a part of it.
"""

from __future__ import annotations

import sys
import time
from itertools import islice, product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from figures import options, percentiles, show, write
from rich.progress import track

from fastslow import LLM, Mode
from fastslow.engine.params import Escalation
from fastslow.models.locate import resolve_model
from fastslow.policies.auto import BUILT_IN, checkpoint_selector, read_selector
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.policies.mode_router import ModeRouter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from abacus.task import Task, graded
from abacus.tasks import MIXES

PARTS = ("modes", "groups", "budgets")
BUDGETS = (0, 4, 8, 16, 32, 48, 64, 96, 128, 192)
Way = Mode | str | ModeRouter
DOUBT = Escalation(below=0.6, window=1, how="restart")  # the fast answer is given up for a deep one


class TaskAnswer(NamedTuple):
    """The answer to one task, asked in one way."""

    right: bool
    seconds: float  # from the call to the answer
    tokens: int
    kind: str
    mode: str  # deep where auto or a doubt led there


def figures_of(answers: list[TaskAnswer]) -> dict[str, Any]:
    """Shares, and times in milliseconds."""
    right: dict[str, list[bool]] = {kind: [] for kind in sorted({a.kind for a in answers})}
    for a in answers:
        right[a.kind].append(a.right)
    median, p95, _ = percentiles(1e3 * a.seconds for a in answers)
    return {
        "accuracy": fmean(a.right for a in answers),
        "median_ms": median,
        "p95_ms": p95,
        "mean_ms": fmean(1e3 * a.seconds for a in answers),
        "tokens": fmean(a.tokens for a in answers),
        "deep": fmean(a.mode == "deep" for a in answers),
        "by_kind": {kind: fmean(some) for kind, some in right.items()},
    }


def ways(parts: list[str], between: tuple[str, ...]) -> dict[str, Way]:
    """Name -> mode, of every way of asking that is measured; `between`: the presets that auto takes."""
    found: dict[str, Way] = {}
    if "modes" in parts:
        found |= {name: name for name in ("fast", *between, "deep", "auto")}
        found["auto by hand"] = BUILT_IN
        found["escalation"] = Mode(name="escalation", base="fast", escalate=DOUBT)
    if "groups" in parts:
        kinds, counts = (("fast", "off"), ("deep", "on")), (0, 1, 2, 4, 8)
        for n, (base, thinking) in product(counts, kinds):
            name = f"{n} groups, thinking {thinking}"
            found[name] = Mode(name=name, base=base, groups=n)
    if "budgets" in parts:
        for n in BUDGETS:
            found[f"budget {n}"] = Mode(name=f"budget {n}", base="deep", thinking_budget=n)
    return found


def ask(
    llm: LLM, tasks: list[Task], modes: dict[str, Way], batch: int
) -> dict[str, list[TaskAnswer]]:
    """Every task in every mode, interleaved."""
    found: dict[str, list[TaskAnswer]] = {name: [] for name in modes}
    for place in track(range(0, len(tasks), batch), "asking"):
        some = tasks[place : place + batch]
        for name, mode in modes.items():
            started = time.perf_counter()
            outs = llm.chat([task.prompt for task in some], mode=mode, speculation="off")
            seconds = time.perf_counter() - started
            for task, out in zip(some, outs, strict=True):
                right, m = graded(out.text, task.answer), out.metrics
                found[name].append(TaskAnswer(right, seconds, m.tokens, task.kind, m.mode))
    return found


def main() -> None:
    parser = options(__doc__, "out")
    parser.add_argument("--mix", choices=MIXES, default="abacus", help="which tasks (abacus)")
    parser.add_argument("--model", help="a model that was trained on them; default the shipped one")
    parser.add_argument("--auto", type=Path, help="a settings file whose auto is measured")
    parser.add_argument("--count", type=int, default=1000, help="held-out tasks (1000)")
    parser.add_argument("--seed", type=int, default=7, help="of the tasks (7)")
    parser.add_argument("--batch", type=int, default=1, help="asked at once, for tokens only (1)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()

    tasks = list(islice(MIXES[args.mix].held_out(args.seed), args.count))
    folder = resolve_model(args.model or args.mix)
    router = checkpoint_selector(folder) if args.auto is None else read_selector(args.auto, folder)
    learned = router if isinstance(router, LearnedModeRouter) else None
    with LLM(folder, auto=args.auto) as llm:
        modes = ways(args.only, learned.between if learned else ())
        ask(llm, tasks[:3], modes, args.batch)  # warms up
        measured = ask(llm, tasks, modes, args.batch)
    figures = {name: figures_of(answers) for name, answers in measured.items()}
    rows = []
    for name, row in figures.items():
        times = [f"{row[key]:.1f}" for key in ("median_ms", "p95_ms", "tokens")]
        shares = [f"{share:.1%}" for share in (row["deep"], *row["by_kind"].values())]
        rows.append([name, f"{row['accuracy']:.1%}", *times, *shares])
    kinds = next(iter(figures.values()))["by_kind"]
    show(["", "accuracy", "median ms", "p95 ms", "tokens", "deep", *kinds], rows)
    tasks_of = {"count": args.count, "seed": args.seed}
    write(args.out, model=args.model or args.mix, tasks=tasks_of, figures=figures)


if __name__ == "__main__":
    main()
