"""How many groups, or experts, the fast mode needs: agreement with all of them, and time, for each number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.model.config import RoutedUnits
from fastslow.engine.params import Mode, SamplingParams
from fastslow.engine.types import Rows
from fastslow.llm import LLM
from fastslow.tools.forward import chain
from fastslow.tools.machine import circumstances
from fastslow.tools.progress import Report
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, check_limits

CHUNK = 128  # rows of text read at a time
ROUNDS = 30  # single steps for each number, interleaved
ENOUGH_SAVED = 0.97  # of the time of all: a smaller saving is not enough
ENOUGH_PLACES = 1000  # tokens compared: with fewer the agreement is off by more than 1 to 2%


@dataclass(slots=True)
class GroupsRow:
    """One number of groups or experts, against all of them."""

    count: int
    agreement: float = 0.0  # share of places where the likeliest token is the same
    divergence: float = 0.0  # mean KL(all || these) of the next token, nats
    seconds: float = 0.0  # a token at batch 1, median


@dataclass(slots=True)
class GroupsFound:
    """What was measured, the fewest groups or experts first, all of them last."""

    model: str
    units: RoutedUnits
    rows: list[GroupsRow]
    places: int  # tokens that were compared
    prompts: int
    keep: float
    stopped: bool = False  # by Ctrl-C
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    @property
    def all(self) -> GroupsRow:
        """All of them."""
        return self.rows[-1]

    @property
    def proposed(self) -> GroupsRow:
        """For the fast mode: the fewest that agree with all of them at `keep` of the places; all of them
        if that saves next to no time."""
        fewest = next(row for row in self.rows if row.agreement >= self.keep or row is self.all)
        return fewest if fewest.seconds <= ENOUGH_SAVED * self.all.seconds else self.all

    def record(self) -> dict[str, Any]:
        """For the settings file."""
        noun = self.units.name
        rows = [{noun if k == "count" else k: v for k, v in asdict(x).items()} for x in self.rows]
        counts = {"prompts": self.prompts, "places": self.places, "keep": self.keep}
        return {**counts, noun: rows, **self.circumstances}

    def headline(self) -> str:
        """What is proposed, in a sentence."""
        row, every, noun = self.proposed, self.all, self.units.name
        if row is every:
            return (
                f"On {self.prompts} prompts, no smaller number of {noun} keeps {self.keep:.0%} and "
                f"saves time: the fast mode should run all {every.count}."
            )
        few = "" if self.places >= ENOUGH_PLACES else ", which is few: more prompts make it surer"
        return (
            f"{row.count} of {every.count} {noun}: the same next token at {row.agreement:.0%} of "
            f"places, {1 - row.seconds / every.seconds:.0%} less "
            f"time for a token. It rests on {self.places:,} token places{few}."
        )

    def table(self) -> Table:
        """All numbers; the proposed one is bold."""
        noun, every = self.units.name, self.all
        table = Table(noun, "same next token", "KL, nats", "ms a token", "of the time")
        for row in self.rows:
            table.add_row(
                str(row.count),
                f"{row.agreement:.1%}",
                f"{row.divergence:.3f}",
                f"{1000 * row.seconds:.2f}",
                f"{row.seconds / every.seconds:.0%}",
                style="bold" if row is self.proposed else None,
            )
        return table


def tune_groups(
    llm: LLM,
    model: str,
    prompts: Sequence[Conversation],
    *,
    sampling: SamplingParams,
    keep: float = 0.9,
    minutes: float = 10.0,
    report: Report,
) -> GroupsFound:
    """Compare numbers of groups, or of experts in a model without groups, with all of them on the user's
    prompts.

    The model answers each prompt with all of them, without thinking. The same texts are then read with
    fewer, and the probabilities of each next token compared. ValueError: a dense model, something out of
    range, a prompt that does not fit. KeyboardInterrupt: before a prompt was compared.
    """
    units = RoutedUnits.of(llm.model.config)
    if not units.most:
        raise ValueError(f"{model} is dense: it has no routed experts to choose from")
    check_limits(minutes, keep)
    started = time.monotonic()
    found = GroupsFound(model, units, [GroupsRow(n) for n in units.steps], 0, 0, keep)
    texts = TextReader(llm)
    try:
        _time(texts, found, llm, prompts[0], sampling)
        for number, prompt in enumerate(prompts):
            share = (time.monotonic() - started) / (60 * minutes)
            if number and share > 1:
                break
            report(min(1.0, max(share, number / len(prompts))), f"prompt {number + 1}")
            _compare(texts, found, llm, prompt, sampling)
    except KeyboardInterrupt:
        if not found.places:
            raise
        found.stopped = True
    for row in found.rows:
        row.agreement /= max(1, found.places)
        row.divergence /= max(1, found.places)
    return found


class TextReader:
    """Reads texts with the model of an idle `LLM`, on its own pages."""

    def __init__(self, llm: LLM) -> None:
        self.model = llm.model
        self._kv: KVCache | None = None

    def logprobs(self, text: Sequence[int], first: int, count: int) -> torch.Tensor:
        """Log-probabilities f32 [len(text) - first, V] of the tokens from place `first` on, where so
        many groups or experts run."""
        found = []
        for start in range(0, len(text) - 1, CHUNK):
            stop = min(start + CHUNK, len(text) - 1)
            wanted = [i - start for i in range(max(start, first - 1), stop)]
            out = self._run(text, start, stop, count, outputs=wanted)
            if wanted:
                found.append(torch.log_softmax(out, dim=-1))
        return torch.cat(found)

    def step(self, text: Sequence[int], count: int) -> float:
        """Seconds of the last token's row alone; the text before it was read."""
        started = time.perf_counter()
        self._run(text, len(text) - 1, len(text), count, outputs=[0], only_best=True)
        return time.perf_counter() - started

    def _run(
        self, text: Sequence[int], start: int, stop: int, count: int, **how: Any
    ) -> torch.Tensor:
        if self._kv is None or self._kv.pages * self._kv.page_size < len(text):
            self._kv = kv_cache_for(self.model, -(-len(text) // 16), prefix_caching=False)
        how["groups"] = None if count == self.model.config.chosen else count
        rows = Rows.of([chain(text, np.arange(len(text)), start, stop, **how)])
        return self.model.forward(rows, self._kv.storage).logits.float()


def _answer(llm: LLM, prompt: Conversation, sampling: SamplingParams) -> tuple[list[int], int]:
    """Prompt and answer as tokens, and where the answer begins."""
    mode = Mode(name="all", thinking="off")
    out = llm.generate(prompt, sampling, mode=mode, speculation=PLAIN)
    return [*out.prompt_token_ids, *out.token_ids], len(out.prompt_token_ids)


def _time(
    texts: TextReader, found: GroupsFound, llm: LLM, prompt: Conversation, sampling: SamplingParams
) -> None:
    text, first = _answer(llm, prompt, sampling)
    texts.logprobs(text, first, found.all.count)
    taken: dict[int, list[float]] = {row.count: [] for row in found.rows}
    for turn in range(ROUNDS):
        for row in found.rows if turn % 2 else reversed(found.rows):
            taken[row.count].append(texts.step(text, row.count))
    for row in found.rows:
        row.seconds = median(taken[row.count])


def _compare(
    texts: TextReader, found: GroupsFound, llm: LLM, prompt: Conversation, sampling: SamplingParams
) -> None:
    text, first = _answer(llm, prompt, sampling)
    all_TV = texts.logprobs(text, first, found.all.count)
    sums = []
    for row in found.rows:
        these_TV = texts.logprobs(text, first, row.count)
        same = (these_TV.argmax(-1) == all_TV.argmax(-1)).sum()
        divergence = (all_TV.exp() * (all_TV - these_TV)).sum(-1).clamp_min(0).sum()
        sums.append((float(same), float(divergence)))
    for row, (same_count, total) in zip(found.rows, sums):  # at once: Ctrl-C may come between
        row.agreement += same_count
        row.divergence += total
    found.places += len(text) - first
    found.prompts += 1
