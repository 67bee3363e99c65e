"""Streams of tasks: what is trained on, and what is held out.

    python examples/abacus/tasks.py --count 1000 --seed 7 > graded.jsonl

prints held-out tasks, one JSON object a line: prompt, answer, kind, steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abacus.kinds import chain, difference, product, program, story, total
from abacus.task import Task

# Shares of sizes 1 to 6. As it is with what people ask, four tasks in five can be done in the head.
SIZES = (18, 12, 3, 2, 1, 1)
LARGEST = len(SIZES)
TRIES = 300  # for a held-out task of a kind and size, which one in 32 is: where that fails, hardly any is left
Kind = Callable[[Random, int], Task]
# kind -> its share
KINDS: dict[Kind, int] = {total: 4, difference: 4, product: 3, chain: 3, story: 3, program: 3}


def draw(rng: Random, size: int = LARGEST, shares: Sequence[int] = SIZES) -> Task:
    """One task of the mix, held out or not; `size` bounds how hard it is, for a curriculum."""
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    (own,) = rng.choices(range(1, LARGEST + 1), shares)
    return kind(rng, min(own, size))


def held_out(seed: int) -> Iterator[Task]:
    """Endless tasks that no training stream has, each once, in the shares of the mix: where a kind has
    no more of a size, another kind has."""
    rng, seen = Random(f"held out {seed}"), set[str]()
    while True:
        (size,) = rng.choices(range(1, LARGEST + 1), SIZES)
        while (task := _unseen(rng, size, seen)) is None:
            pass
        seen.add(task.prompt)
        yield task


def _unseen(rng: Random, size: int, seen: set[str]) -> Task | None:
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    for _ in range(TRIES):
        task = kind(rng, size)
        if task.held_out and task.prompt not in seen:
            return task
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="tasks to print (default 1000)")
    parser.add_argument("--seed", type=int, default=7, help="of the numbers drawn (default 7)")
    options = parser.parse_args()
    for task in islice(held_out(options.seed), options.count):
        print(json.dumps(asdict(task), ensure_ascii=False))


if __name__ == "__main__":
    main()
