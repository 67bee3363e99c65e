"""Measures every cell of a grid on all prompts, several times, interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from loguru import logger

from fastslow.engine.host.machine import CONTENDED
from fastslow.engine.host.progress import bar
from fastslow.engine.params import Speculation
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, label
from fastslow.tools.tune.runner import TuneRunner, shuffled
from fastslow.tools.tune.sample import Cell, Sample, Samples


@dataclass(slots=True)
class Grid:
    """Cells and what was measured of them.

    Plain decoding is among the cells for every batch size and mode.

    Args:
        settings: drafters with their lengths.
        batches: requests at a time.
        modes: names of presets.

    Raises:
        ValueError: a batch size is below 1, or nothing is asked for.
    """

    settings: Sequence[Speculation]
    batches: Sequence[int] = (1,)
    modes: Sequence[str] = ("deep",)
    samples: dict[Cell, list[Sample]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batches or not self.modes:
            raise ValueError("a grid needs at least one batch size and one mode")
        for batch in self.batches:
            if batch < 1:
                raise ValueError(f"batch={batch} must be at least 1")
        for mode in self.modes:
            for batch in self.batches:
                for setting in (PLAIN, *self.settings):
                    self.samples[Cell(setting, batch, mode)] = []

    def parts(self, prompts: Sequence[Conversation]) -> list[Sequence[Conversation]]:
        """The prompts in parts that every batch size divides; what is left over is left out.

        Raises:
            ValueError: there are too few prompts for one part.
        """
        size = math.lcm(*self.batches)
        if len(prompts) < size:
            batches = ", ".join(map(str, self.batches))
            raise ValueError(
                f"batch sizes {batches} need at least {size} prompts; there are {len(prompts)}"
            )
        count = len(prompts) // size
        if left := len(prompts) - count * size:
            logger.info("the last {} prompts are left out: parts have {}", left, size)
        return [prompts[i * size : (i + 1) * size] for i in range(count)]

    def measure(self, runner: TuneRunner, prompts: Sequence[Conversation], repeat: int) -> None:
        """Run every cell on every part, `repeat` times over.

        All cells run on a part before the next part's turn, each time in another order: a machine
        that slows down slows all of them. After Ctrl-C `samples` keeps what was measured.

        Raises:
            ValueError: too few prompts, a prompt or a cell does not fit the model, or repeat is
                below 1.
        """
        if repeat < 1:
            raise ValueError(f"repeat={repeat} must be at least 1")
        parts = self.parts(prompts)
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

    def plain(self, cell: Cell) -> Samples:
        """Plain decoding's samples in the mode and batch size of a cell."""
        return self.samples[cell._replace(setting=PLAIN)]

    def ratio(self, cell: Cell) -> float | None:
        """How many times plain: the median over turns, None before anything was measured."""
        ratios = stats.ratios_by_turn(self.samples[cell], self.plain(cell))
        return median(ratios) if ratios else None

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
                "samples": [_with_rate(sample) for sample in samples],
            }
            for cell, samples in self.samples.items()
        ]


def _with_rate(sample: Sample) -> dict[str, Any]:
    contended = None if sample.others is None else sample.others > CONTENDED
    return {**asdict(sample), "tokens_per_second": sample.rate, "contended": contended}
