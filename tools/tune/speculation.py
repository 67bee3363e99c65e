"""Tuning speculation: a search for the fastest setting, a look at batch sizes, a few answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.text.detokenizer import Detokenizer
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.llm import LLM
from fastslow.tools.machine import circumstances
from fastslow.tools.progress import Report
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, check_limits, is_plain, label
from fastslow.tools.tune.halving import SuccessiveHalving
from fastslow.tools.tune.runner import TuneRunner, shuffled
from fastslow.tools.tune.sample import Cell, Sample

SIZES = (1, 2, 4, 8)
ROUNDS = 8  # more change little


class BatchSizes:
    """What batch sizes do to a setting.

    Args:
        setting: is compared with plain decoding; if it is plain decoding, that runs alone.
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
        runner: TuneRunner,
        prompts: Sequence[Conversation],
        seconds: float,
        report: Report,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure in rounds, each on other prompts, for about `seconds`; at least one round."""
        started, last = now(), 0.0
        largest = max(cell.batch for cell in self.samples)
        for round in range(ROUNDS):
            before = now()
            if round and before + last / 2 > started + seconds:
                return
            report(min(1.0, (before - started) / seconds), f"batch sizes up to {largest}")
            for cell in shuffled(list(self.samples), round):
                some = [prompts[(round * largest + i) % len(prompts)] for i in range(cell.batch)]
                self.samples[cell].append(runner.run(cell, some, round, 0))
            last = now() - before


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text and the drafter that proposed it; None = the model computed it."""

    text: str
    origin: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was asked, and what came."""

    question: str
    tokens: list[Token]
    tokens_per_step: float


def watch_answer(llm: LLM, cell: Cell, prompt: Conversation, sampling: SamplingParams) -> Answer:
    """Answer a prompt and note which tokens were drafted: in each step those that were accepted, and
    then one is the model's own."""
    out = llm.chat(prompt, sampling, mode=cell.mode, speculation=cell.setting)
    drafter = None if is_plain(cell.setting) else cell.setting.drafter
    origins: list[str | None] = []
    for accepted in out.metrics.runs:
        origins += [drafter] * accepted + [None]
    assert llm.tokenizer is not None  # it answered text
    texts = token_texts(llm.tokenizer, out.token_ids)
    tokens = [Token(*token) for token in zip(texts, origins)]
    return Answer(prompt[-1]["content"], tokens, out.metrics.tokens_per_step)


def token_texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token; that of half a character comes with its other half."""
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push([token]) for token in ids]
    if texts:
        texts[-1] += detokenizer.finish()
    return texts


SEARCHING, SIZING = 0.72, 0.23  # shares of the time; what is left is for the answers
ANSWERS = 3


@dataclass(slots=True)
class TuneResult:
    """What tuning knows so far. Empty parts were not measured."""

    model: str
    batch: int
    mode: str
    prompts: int
    sampling: SamplingParams
    best: Speculation = PLAIN
    samples: dict[Speculation, list[Sample]] = field(default_factory=dict)
    finalists: list[Speculation] = field(default_factory=list)
    sizes: dict[Cell, list[Sample]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    stopped: bool = False  # by Ctrl-C
    seconds: float = 0.0
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    @property
    def plain_rate(self) -> float:
        """Tokens a second of plain decoding."""
        return stats.rate(self.samples[PLAIN])

    def ratio(self, setting: Speculation) -> float:
        """How many times plain, on the prompts that both ran; nan if there are none."""
        return stats.ratio(self.samples[setting], self.samples[PLAIN])

    def rate(self, setting: Speculation) -> float:
        """Tokens a second, estimated for all prompts from those that a setting ran: its ratio
        to plain there, times plain's rate everywhere."""
        return self.ratio(setting) * self.plain_rate

    @property
    def measured(self) -> list[Speculation]:
        """Settings with figures, the furthest and fastest first."""
        there = [s for s in self.samples if isfinite(self.ratio(s))]
        return sorted(there, key=lambda s: (len(self.samples[s]), self.ratio(s)), reverse=True)

    def figures(self) -> dict[str, Any]:
        """For the settings file: rates in tokens a second, and under which circumstances."""
        return {
            "tokens_per_second": self.rate(self.best),
            "plain_tokens_per_second": self.plain_rate,
            "ratio": self.ratio(self.best),
            "tokens_per_step": stats.tokens_per_step(self.samples[self.best]),
            "acceptance": stats.accepted_share(self.samples[self.best]),
            "acceptance_by_position": stats.acceptance(self.samples[self.best]),
            **{name: getattr(self, name) for name in ("batch", "mode", "prompts")},
            "sampling": self.sampling.model_dump(mode="json", exclude_defaults=True),
            "stopped_early": self.stopped,
            "seconds": round(self.seconds, 1),
            "settings": {
                label(s): {"ratio": self.ratio(s), "samples": len(self.samples[s])}
                for s in self.measured
            },
            **self.circumstances,
        }


def tune_speculation(
    llm: LLM,
    model: str,
    prompts: Sequence[Conversation],
    candidates: Sequence[Speculation],
    *,
    batch: int = 1,
    mode: str = "deep",
    sampling: SamplingParams,
    minutes: float = 10.0,
    report: Report,
) -> TuneResult:
    """Find the fastest setting for these prompts.

    Args:
        llm: the model; see `TuneRunner`.
        prompts: of the user; they are run in an order of their own.
        candidates: settings to choose from.
        minutes: for everything; a slow model may need more for the first run of each candidate.

    Returns:
        What was found. After Ctrl-C what was found until then.

    Raises:
        ValueError: batch or minutes out of range, too few prompts, a candidate or a prompt does not
            fit the model, no answer is longer than a token.
        KeyboardInterrupt: before anything was measured.
    """
    check_limits(minutes)
    if not 1 <= batch <= len(prompts):
        raise ValueError(f"batch={batch} is outside 1..{len(prompts)}, the number of prompts")
    order = list(prompts)
    random.Random(0).shuffle(order)  # a file is often sorted by kind
    started, seconds = time.monotonic(), 60 * minutes
    runner = TuneRunner(llm, sampling)
    search = SuccessiveHalving(candidates, batch, mode)
    parts = [order[i * batch : (i + 1) * batch] for i in range(len(order) // batch)]
    found = TuneResult(model, batch, mode, len(order), sampling, samples=search.samples)
    try:
        runner.check(prompts, [mode])
        runner.warm_up([Cell(s, batch, mode) for s in search.samples], order[0])
        left = started + seconds * SEARCHING - time.monotonic()
        search.run(runner, parts, max(left, 1.0), lambda s, text: report(s * SEARCHING, text))
        sizes = BatchSizes(search.fastest_draft, mode, {*SIZES, batch}, len(order))
        found.sizes = sizes.samples
        left = started + seconds * (SEARCHING + SIZING) - time.monotonic()
        sizes.run(
            runner, order, max(left, 1.0), lambda s, text: report(SEARCHING + s * SIZING, text)
        )
        report(SEARCHING + SIZING, "sample answers")
        for prompt in order[:ANSWERS]:
            cell = Cell(search.fastest_draft, 1, mode)
            found.answers.append(watch_answer(llm, cell, prompt, sampling))
    except KeyboardInterrupt:
        if not search.samples[PLAIN]:
            raise
        found.stopped = True
    if not any(sample.tokens for sample in search.samples[PLAIN]):
        raise ValueError("every answer ended at its first token: there is nothing to measure")
    found.best, found.finalists = search.best, search.alive
    found.seconds = time.monotonic() - started
    return found
