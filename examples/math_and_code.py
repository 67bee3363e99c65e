"""Sums and small programs: fast against deep with a thinking budget, and what lies between, graded.

Run: python examples/math_and_code.py [MODEL] [--count N]

MODEL is best one that can think, such as the built-in `abacus`.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from fastslow import LLM, Escalation, Mode, Output

NUMBER = re.compile(r"-?\d+")
BUDGET = 160
SHOWN = 3  # tasks whose thoughts are shown


def tasks(count: int, seed: int = 1) -> Iterator[tuple[str, int]]:
    """Questions with their answers: the kinds that the built-in model was made for."""
    draws = random.Random(seed)
    for number in range(count):
        digits = draws.choice((1, 2, 2, 3))
        a, b = (draws.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        small, times = draws.randrange(2, 10), draws.randrange(2, 5)
        kind = number % 4
        if kind == 0:
            yield f"{a} + {b} =", a + b
        elif kind == 1:
            yield f"{max(a, b)} - {min(a, b)} =", max(a, b) - min(a, b)
        elif kind == 2:
            yield f"What is {a} * {small}?", a * small
        else:
            lines = [f"x = {a}", f"for i in range({times}):", f"    x = x + {small}", "print(x)"]
            asked = "What does this program print?\n" + "\n".join(lines)
            yield asked, a + times * small


def modes() -> dict[str, str | Mode]:
    """What is compared."""
    doubt = Escalation(below=0.9, window=4, how="restart")
    return {
        "fast": "fast",
        "fast, again if unsure": Mode(name="unsure", base="fast", escalate=doubt),
        "auto": "auto",
        f"deep, at most {BUDGET} tokens": Mode(name="deep", base="deep", thinking_budget=BUDGET),
    }


def right(out: Output, answer: int) -> bool:
    """By the last number said."""
    said = NUMBER.findall(out.text)
    return bool(said) and int(said[-1]) == answer


def seconds(out: Output) -> float:
    """From the call to the last token."""
    return out.metrics.ttft + out.metrics.tpot * max(0, out.metrics.tokens - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="abacus", help="a folder or a name")
    parser.add_argument("--count", type=int, default=24, help="tasks (24)")
    options = parser.parse_args()
    console = Console(highlight=False, markup=False)
    asked = list(tasks(options.count))
    found: dict[str, list[Output]] = {name: [] for name in modes()}
    with LLM(options.model) as llm:
        for question, _ in asked:
            for name, mode in modes().items():
                found[name].append(llm.chat(question, mode=mode))
    table = Table("", "right", "ms a task", "tokens", "thoughts", "in deep")
    for name, outs in found.items():
        count = len(outs)
        graded = sum(right(out, answer) for out, (_, answer) in zip(outs, asked))
        table.add_row(
            name,
            f"{graded} of {count}",
            f"{1000 * sum(map(seconds, outs)) / count:.0f}",
            f"{sum(o.metrics.tokens for o in outs) / count:.0f}",
            f"{sum(o.metrics.thinking_tokens for o in outs) / count:.0f}",
            str(sum(o.metrics.mode.startswith("deep") for o in outs)),
        )
    console.print(table)
    deep = list(found.values())[-1]
    for (question, answer), out, why in zip(asked[:SHOWN], deep, found["auto"]):
        console.print(f"\n{question}", style="bold")
        console.print(out.reasoning.strip() or "(no thought)", style="dim")
        judged = "right" if right(out, answer) else f"wrong, it is {answer}"
        console.print(f"{out.text.strip()}  ({judged})")
        console.print(f"auto says {why.metrics.decision}", style="dim")


if __name__ == "__main__":
    main()
