"""Runs cells on the user's prompts and measures them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from fastslow.engine.host.machine import Watch
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.output import Output
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.sample import Cell, Sample, sample_of

T = TypeVar("T")

WARM_TOKENS = 8
STALLED = 0.8  # others may take this share of the machine before a run is made again
TRIES = 2


class TuneRunner:
    """Measures cells with one model.

    The prompts of a cell are read before its time is taken, so its figures are those of decoding. A
    drafter that looks at text has them read each time for itself: it sees them, as it does in use.

    llm: no other caller may use it meanwhile. It should not remember answers (`remember=False`): the same
    prompts are answered again and again.
    """

    def __init__(self, llm: LLM, sampling: SamplingParams) -> None:
        self._llm = llm
        self._sampling = sampling

    def check(self, prompts: Sequence[Conversation], modes: Iterable[str]) -> None:
        """Have all prompts looked at, so that none is refused after minutes of measuring.

        Raises:
            ValueError: one does not fit the model in one of the modes; its number is given.
        """
        for mode in modes:
            for number, prompt in enumerate(prompts, 1):
                try:  # a stream checks its prompt at once, and runs nothing until it is read
                    self._llm.stream(prompt, self._sampling, mode=mode, speculation=PLAIN)
                except ValueError as error:
                    raise ValueError(f"prompt {number}: {error}") from error

    def warm_up(self, cells: Iterable[Cell], prompt: Conversation) -> None:
        """Run a few tokens of each cell, so that what is made on first use is there.

        Raises:
            ValueError: a cell does not fit the model.
        """
        few = self._sampling.model_copy(update={"max_tokens": WARM_TOKENS, "min_tokens": 0})
        for cell in cells:
            self._answer(cell, [prompt], few)

    def run(self, cell: Cell, prompts: Sequence[Conversation], part: int, turn: int) -> Sample:
        """Answer the prompts, `cell.batch` at a time; again if other programs left hardly any of the
        machine. part, turn: number of this part of the user's prompts, and which time it is run."""
        read = self._sampling.model_copy(update={"max_tokens": 1, "min_tokens": 0})
        if _looks(cell.setting):  # what comes from the prefix cache is never shown
            self._llm.forget_prompts()
        self._answer(cell, prompts, read)
        tries: list[Sample] = []
        while len(tries) < TRIES and all(map(_stalled, tries)):
            tries.append(self._measure(cell, prompts, part, turn))
        return min(tries, key=lambda sample: sample.others or 0.0)

    def _measure(self, cell: Cell, prompts: Sequence[Conversation], part: int, turn: int) -> Sample:
        watch = Watch()
        batches = []
        for start in range(0, len(prompts), cell.batch):
            some = slice(start, start + cell.batch)
            outputs = self._answer(cell, prompts[some], self._sampling)
            batches.append([output.metrics for output in outputs])
        return sample_of(batches, part, turn, watch.others())

    def _answer(
        self, cell: Cell, prompts: Sequence[Conversation], sampling: SamplingParams
    ) -> list[Output]:
        outputs: list[Output] = self._llm.generate(
            list(prompts), sampling, mode=cell.mode, speculation=cell.setting, progress=False
        )
        return outputs


def _looks(setting: Speculation) -> bool:
    """Whether its drafters may look at the text of prompts."""
    return setting.drafter == "auto" or "head" in setting.drafter


def _stalled(sample: Sample) -> bool:
    """Whether a run says more about other programs than about itself."""
    return sample.others is not None and sample.others > STALLED


def shuffled(cells: Sequence[T], round: int) -> list[T]:
    """Cells (or settings) in another order in each round, so that none always follows the same."""
    order = list(cells)
    random.Random(round).shuffle(order)
    return order
