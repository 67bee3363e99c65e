"""Streams of tasks: what is trained on, and what is held out.

    python examples/abacus/tasks.py --count 1000 --seed 7 > graded.jsonl

prints held-out tasks, one JSON object a line: prompt, answer, kind. With `--trained` it prints others, for what
is fitted and then tested on held-out ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abacus.atlas import fact
from abacus.kinds import chain, difference, product, program, story, total
from abacus.task import Task

Kind = Callable[[Random, int], Task]
TRIES = 300  # for a held-out task of a kind and size, which one in 32 is: where that fails, hardly any is left


@dataclass(frozen=True)
class Mix:
    """The tasks that a model is tested on: their kinds, and how often they are of sizes 1, 2, ..."""

    kinds: dict[Kind, int]  # kind -> its share
    sizes: tuple[int, ...]  # shares

    def draw(self, rng: Random, size: int = 0) -> Task:
        """Draw a task, held out or not; `size`: if not as often as it is."""
        (kind,) = rng.choices(list(self.kinds), list(self.kinds.values()))
        (own,) = rng.choices(range(1, len(self.sizes) + 1), self.sizes)
        return kind(rng, size or own)

    def held_out(self, seed: int) -> Iterator[Task]:
        """Endless tasks that no training stream has, each once, in the shares of the mix: where a kind has
        no more of a size, another kind has."""
        rng, seen = Random(f"held out {seed}"), set[str]()
        while True:
            (size,) = rng.choices(range(1, len(self.sizes) + 1), self.sizes)
            while (task := self._unseen(rng, size, seen)) is None:
                pass
            seen.add(task.prompt)
            yield task

    def trained(self, seed: int) -> Iterator[Task]:
        """Endless tasks of the same sizes that training may have had, each once."""
        rng, seen = Random(f"trained {seed}"), set[str]()
        while True:
            if not (task := self.draw(rng)).held_out and task.prompt not in seen:
                seen.add(task.prompt)
                yield task

    def _unseen(self, rng: Random, size: int, seen: set[str]) -> Task | None:
        (kind,) = rng.choices(list(self.kinds), list(self.kinds.values()))
        for _ in range(TRIES):
            task = kind(rng, size)
            if task.held_out and task.prompt not in seen:
                return task
        return None


MIXES = {
    # As it is with what people ask, four tasks in five can be done in the head.
    "abacus": Mix(
        {total: 4, difference: 4, product: 3, chain: 3, story: 3, program: 3}, (18, 12, 3, 2, 1, 1)
    ),
    "atlas": Mix({fact: 1}, (4, 2, 1, 1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mix", choices=MIXES, default="abacus", help="of which model (abacus)")
    parser.add_argument("--count", type=int, default=1000, help="tasks to print (default 1000)")
    parser.add_argument("--seed", type=int, default=7, help="of the numbers drawn (default 7)")
    parser.add_argument("--trained", action="store_true", help="none that is held out")
    options = parser.parse_args()
    mix = MIXES[options.mix]
    stream = mix.trained if options.trained else mix.held_out
    for task in islice(stream(options.seed), options.count):
        print(json.dumps(asdict(task), ensure_ascii=False))


if __name__ == "__main__":
    main()
