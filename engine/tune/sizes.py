"""Plain decoding against one setting, at several batch sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from fastslow.engine.params import Speculation
from fastslow.engine.tune.candidates import PLAIN
from fastslow.engine.tune.prompts import Conversation
from fastslow.engine.tune.race import Tell
from fastslow.engine.tune.runner import Runner, shuffled
from fastslow.engine.tune.sample import Cell, Sample

SIZES = (1, 2, 4, 8)
ROUNDS = 8  # more change little


class Sizes:
    """What batch sizes do to a setting.

    Args:
        setting: is compared with plain decoding; if it is plain decoding, that runs alone.
        mode: name of a preset.
        sizes: requests at a time.
        prompts: how many there are; larger batches are left out.
    """

    def __init__(
        self, setting: Speculation, mode: str, sizes: Collection[int], prompts: int
    ) -> None:
        settings = dict.fromkeys((PLAIN, setting))
        self.samples: dict[Cell, list[Sample]] = {
            Cell(s, size, mode): [] for size in sorted(sizes) if size <= prompts for s in settings
        }

    def run(
        self,
        runner: Runner,
        prompts: Sequence[Conversation],
        seconds: float,
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure in rounds, each on other prompts, for about so long; at least one round."""
        started, last = clock(), 0.0
        largest = max(cell.batch for cell in self.samples)
        for round in range(ROUNDS):
            before = clock()
            if round and before + last / 2 > started + seconds:
                return
            tell(min(1.0, (before - started) / seconds), f"batch sizes up to {largest}")
            for cell in shuffled(list(self.samples), round):
                some = [prompts[(round * largest + i) % len(prompts)] for i in range(cell.batch)]
                self.samples[cell].append(runner.run(cell, some, round, 0))
            last = clock() - before
