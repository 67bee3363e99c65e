"""Number of groups, or experts, that the fast mode needs: agreement with all of them, and time, for each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.table import Table

from fastslow.engine.host.machine import CONTENDED, Watch
from fastslow.engine.host.progress import Report
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode, SamplingParams
from fastslow.llm import LLM
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN
from fastslow.tools.tune.runner import say_fits

ROUNDS = 5  # answers whose time counts, for each number, interleaved
TIMED = SamplingParams(max_tokens=16, ignore_eos=True)
READ = SamplingParams(max_tokens=1, prompt_logprobs=1)
ENOUGH_SAVED = 0.97  # of the time of all: a smaller saving is not enough
ENOUGH_PLACES = 1000  # tokens compared: with fewer the agreement is off by more than 1 to 2%


@dataclass(slots=True)
class GroupsRow:
    """Figures of one number of groups or experts, against all of them."""

    count: int
    agreement: float = 0.0  # share of places where the likeliest token is the same
    seconds: float = 0.0  # a token at batch 1, median


@dataclass(slots=True)
class GroupsFound:
    """Measurements, the fewest groups or experts first, all of them last."""

    model: str
    units: RoutedUnits
    rows: list[GroupsRow]
    places: int  # tokens that were compared
    prompts: int
    keep: float
    others: float | None = None  # share of the machine that other programs took while times were
    stopped: bool = False  # by Ctrl-C
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    @property
    def carried(self) -> bool:
        """True where the times carry a proposal."""
        return self.others is None or self.others <= CONTENDED

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
        """Record for the settings file."""
        noun = self.units.name
        rows = [{noun if k == "count" else k: v for k, v in asdict(x).items()} for x in self.rows]
        counts = {"prompts": self.prompts, "places": self.places, "keep": self.keep}
        return {**counts, noun: rows, **self.circumstances}

    def headline(self) -> str:
        """Say what is proposed, or why nothing is."""
        row, every, noun = self.proposed, self.all, self.units.name
        if not self.carried:
            return (
                f"No proposal: other programs took {self.others:.0%} of the machine while times were measured. No file is "
                "written: try again on a quieter machine."
            )
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
        table = Table(noun, "same next token", "ms a token", "of the time")
        for row in self.rows:
            table.add_row(
                str(row.count),
                f"{row.agreement:.1%}",
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
    """Compare numbers of groups, or of experts in a model without groups, with all of them on the user's prompts.

    The model answers each prompt with all of them, without thinking. The same texts are then read with fewer, and the
    likeliest next tokens compared. ValueError: a dense model, something out of range, a prompt that does not fit.
    KeyboardInterrupt: before a prompt was compared.
    """
    units = RoutedUnits.of(llm.model.config)
    if not units.most:
        raise ValueError(f"{model} is dense: it has no routed experts to choose from")
    started, seconds, last = time.monotonic(), 60 * minutes, 0.0
    found = GroupsFound(model, units, [GroupsRow(n) for n in units.steps], 0, 0, keep)
    try:
        _time(found, llm, prompts[0], started + seconds / 2)
        for number, prompt in enumerate(prompts):
            begun = time.monotonic()
            if number and begun + last > started + seconds:
                break
            share = (begun - started) / seconds
            report(min(1.0, max(share, number / len(prompts))), f"prompt {number + 1}")
            _compare(found, llm, prompt, sampling)
            last = time.monotonic() - begun
            if not number:
                say_fits(1 + (started + seconds - time.monotonic()) / last, len(prompts), "prompts")
    except KeyboardInterrupt:
        if not found.places:
            raise
        found.stopped = True
    for row in found.rows:
        row.agreement /= max(1, found.places)
    return found


def _mode(found: GroupsFound, row: GroupsRow) -> Mode:
    return Mode(name="some", thinking="off", **{found.units.name: row.count})  # type: ignore[arg-type]


def _time(found: GroupsFound, llm: LLM, prompt: Conversation, end: float) -> None:
    taken: dict[int, list[float]] = {row.count: [] for row in found.rows}
    begun, watch = time.monotonic(), Watch()
    for turn in range(ROUNDS):
        if turn and (now := time.monotonic()) + (now - begun) / turn > end:
            break
        for row in found.rows if turn % 2 else reversed(found.rows):
            out = llm.generate(prompt, TIMED, mode=_mode(found, row), speculation=PLAIN)
            taken[row.count].append(out.metrics.tpot)
    for row in found.rows:
        row.seconds = median(taken[row.count])
    found.others = watch.others()


def likeliest(llm: LLM, text: list[int], first: int, mode: Mode) -> list[int]:
    """The likeliest token at each place of a text from `first` on, after the tokens before it."""
    read = llm.generate(text[:-1], READ, mode=mode, speculation=PLAIN)
    tables = (read.prompt_logprobs or [])[first:]
    seen = [max(table, key=table.__getitem__) for table in tables if table]
    return [*seen, *read.token_ids]  # what follows the text is made, not read


def _compare(found: GroupsFound, llm: LLM, prompt: Conversation, sampling: SamplingParams) -> None:
    """Add the places of an answer where the likeliest token is that of all groups."""
    out = llm.generate(prompt, sampling, mode=_mode(found, found.all), speculation=PLAIN)
    text, first = [*out.prompt_token_ids, *out.token_ids], len(out.prompt_token_ids)
    guesses = [likeliest(llm, text, first, _mode(found, row)) for row in found.rows]
    for row, guess in zip(found.rows, guesses):  # at once: Ctrl-C may come between
        row.agreement += sum(mine == all_ for mine, all_ in zip(guess, guesses[-1], strict=True))
    found.places += len(text) - first
    found.prompts += 1
