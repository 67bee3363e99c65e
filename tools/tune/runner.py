"""Runs cells on the user's prompts and measures them, one by one or as a grid."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from loguru import logger

from fastslow.engine.host.machine import Watch
from fastslow.engine.host.progress import bar
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, label
from fastslow.tools.tune.sample import Cell, Sample, sample_of

T = TypeVar("T")

WARM_TOKENS = 8


class TuneRunner:
    """Measures cells with one model, which nobody else uses and which does not remember answers. The prompts of a
    cell are read before its time is taken, so its figures are those of decoding. A drafter that looks at text has
    them read each time for itself: it sees them, as it does in use."""

    def __init__(self, llm: LLM, sampling: SamplingParams) -> None:
        self._llm = llm
        self._sampling = sampling
        self._since = Watch()
        self._lately: float | None = None

    def check(self, prompts: Sequence[Conversation], modes: Iterable[str]) -> None:
        """ValueError if a prompt does not fit the model in one of the modes; its number is given."""
        for mode in modes:
            for number, prompt in enumerate(prompts, 1):
                try:  # a stream checks its prompt at once, and runs nothing until it is read
                    self._llm.stream(prompt, self._sampling, mode=mode, speculation=PLAIN)
                except ValueError as error:
                    raise ValueError(f"prompt {number}: {error}") from error

    def warm_up(self, cells: Iterable[Cell], prompt: Conversation) -> None:
        """Run a few tokens of each cell, so that what is made on first use is there."""
        few = self._sampling.model_copy(update={"max_tokens": WARM_TOKENS, "min_tokens": 0})
        for cell in cells:
            self._answer(cell, [prompt], few)

    def run(self, cell: Cell, prompts: Sequence[Conversation], part: int, turn: int) -> Sample:
        """Answer the prompts, `cell.batch` at a time. part, turn: number of this part of the user's prompts,
        and which time it is run."""
        read = self._sampling.model_copy(update={"max_tokens": 1, "min_tokens": 0})
        drafter = cell.setting.drafter
        if (
            drafter == "auto" or "head" in drafter
        ):  # what comes from the prefix cache is never shown
            self._llm.forget_prompts()
        self._answer(cell, prompts, read)
        watch = Watch()
        batches = []
        for start in range(0, len(prompts), cell.batch):
            some = slice(start, start + cell.batch)
            outputs = self._answer(cell, prompts[some], self._sampling)
            batches.append([output.metrics for output in outputs])
        return sample_of(batches, part, turn, self._others(watch))

    def _others(self, run: Watch) -> float | None:
        """Return the share that others took in a run; for one too short to tell, in the latest half second and more."""
        if (lately := self._since.others()) is not None:
            self._since, self._lately = Watch(), lately
        return self._lately if (found := run.others()) is None else found

    def _answer(
        self, cell: Cell, prompts: Sequence[Conversation], sampling: SamplingParams
    ) -> list[Output]:
        outputs: list[Output] = self._llm.generate(
            list(prompts), sampling, mode=cell.mode, speculation=cell.setting, progress=False
        )
        return outputs


def say_fits(fits: float, count: int, what: str) -> None:
    """Write one log line: how much of what was asked for there is time for."""
    logger.info("{} of {} {} fit into the time", max(1, min(int(fits), count)), count, what)


def shuffled(cells: Sequence[T], round: int) -> list[T]:
    """Cells (or settings) in another order in each round, so that none always follows the same."""
    order = list(cells)
    random.Random(round).shuffle(order)
    return order


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
        """Run every cell on every part of the prompts, `repeat` times over, in changing order; prompts that
        fill no part, which every batch size divides, are left out. After Ctrl-C `samples` keeps what was
        measured. ValueError: too few prompts, or a prompt or a cell does not fit the model."""
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
        """Return the speed as a multiple of plain decoding's in its mode and batch; None before both were measured."""
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
                "samples": [asdict(sample) for sample in samples],
            }
            for cell, samples in self.samples.items()
        ]
