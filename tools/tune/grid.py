"""Measures every cell of a grid on all prompts, several times, interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loguru import logger

from fastslow.engine.host.progress import bar
from fastslow.engine.params import Speculation
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, label
from fastslow.tools.tune.runner import TuneRunner, shuffled
from fastslow.tools.tune.sample import Cell, Sample


@dataclass(slots=True)
class Grid:
    """Drafters with their lengths, at several batch sizes, in several modes, each beside plain decoding."""

    settings: Sequence[Speculation]
    batches: Sequence[int] = (1,)
    modes: Sequence[str] = ("deep",)
    samples: dict[Cell, list[Sample]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for mode in self.modes:
            for batch in self.batches:
                for setting in (PLAIN, *self.settings):
                    self.samples[Cell(setting, batch, mode)] = []

    def measure(self, runner: TuneRunner, prompts: Sequence[Conversation], repeat: int) -> None:
        """Run every cell on every part of the prompts, `repeat` times over; prompts that fill no part,
        which every batch size divides, are left out.

        All cells run on a part before the next part's turn, each time in another order: a machine
        that slows down slows all of them. After Ctrl-C `samples` keeps what was measured.

        Raises:
            ValueError: too few prompts, or a prompt or a cell does not fit the model.
        """
        size = math.lcm(*self.batches)
        if len(prompts) < size:
            batches = ", ".join(map(str, self.batches))
            raise ValueError(
                f"batch sizes {batches} need at least {size} prompts; there are {len(prompts)}"
            )
        whole = len(prompts) // size * size
        if left := len(prompts) - whole:
            logger.info("the last {} prompts are left out: parts have {}", left, size)
        parts = [prompts[start : start + size] for start in range(0, whole, size)]
        cells = list(self.samples)
        runner.check(prompts, self.modes)
        runner.warm_up(cells, prompts[0])
        jobs = [
            (turn, number, cell)
            for turn in range(repeat)
            for number in range(len(parts))
            for cell in shuffled(cells, turn * len(parts) + number)
        ]
        for turn, number, cell in bar(jobs, "Measuring"):
            self.samples[cell].append(runner.run(cell, parts[number], number, turn))

    def ratio(self, cell: Cell) -> float | None:
        """How many times plain decoding in its mode and batch size; None before both were measured."""
        found = stats.ratio(self.samples[cell], self.samples[cell._replace(setting=PLAIN)])
        return found if math.isfinite(found) else None

    def record(self) -> list[dict[str, Any]]:
        """For programs: one entry a cell. Rates are tokens a second, times seconds."""
        return [
            {
                "label": label(cell.setting),
                "speculation": cell.setting.model_dump(mode="json"),
                "batch": cell.batch,
                "mode": cell.mode,
                "tokens_per_second": stats.rate(samples),
                "ratio": self.ratio(cell),
                "tokens_per_step": stats.tokens_per_step(samples),
                "acceptance": stats.accepted_share(samples),
                "acceptance_by_position": stats.acceptance(samples),
                "samples": [asdict(sample) for sample in samples],
            }
            for cell, samples in self.samples.items()
        ]
