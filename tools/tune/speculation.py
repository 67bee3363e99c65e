"""Tuning speculation: the fastest drafter and length for the user's own prompts."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from rich.table import Table

from fastslow.engine.host.progress import Report
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.llm import LLM
from fastslow.tools.machine import circumstances
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune import sample as stats
from fastslow.tools.tune.candidates import PLAIN, family, is_plain, label
from fastslow.tools.tune.runner import TuneRunner
from fastslow.tools.tune.sample import Sample
from fastslow.tools.tune.search import ENOUGH, SpeculationSearch

NOISY = 1 / 3  # share of disturbed runs from which on the report warns
COLUMNS = ("setting", "x plain", "tokens/s", "tokens/step", "step time", "accepted", "runs", "")


@dataclass(slots=True)
class TuneResult:
    """Results of tuning. A setting without samples was not measured."""

    model: str
    batch: int
    mode: str
    prompts: int
    sampling: SamplingParams
    samples: dict[Speculation, list[Sample]]
    best: Speculation = PLAIN
    carried: bool = True  # whether the samples carry a verdict
    stopped: bool = False  # by Ctrl-C
    seconds: float = 0.0
    circumstances: dict[str, Any] = field(default_factory=circumstances)

    @property
    def plain_rate(self) -> float:
        """Tokens a second of plain decoding."""
        return stats.rate(self.samples[PLAIN])

    def ratio(self, setting: Speculation) -> float:
        """Return the speed as a multiple of plain decoding's, on the prompts that both ran; nan if there are none."""
        return stats.ratio(self.samples[setting], self.samples[PLAIN])

    def rate(self, setting: Speculation) -> float:
        """Tokens a second on all prompts: the ratio on those that it ran, times plain's rate."""
        return self.ratio(setting) * self.plain_rate

    @property
    def measured(self) -> list[Speculation]:
        """Settings with figures: the best one, then the fastest."""
        there = [s for s in self.samples if isfinite(self.ratio(s))]
        return sorted(there, key=lambda s: (s == self.best, self.ratio(s)), reverse=True)

    @property
    def disturbed(self) -> tuple[int, int]:
        """Runs beside other programs, and runs of which that is known."""
        every = [s for some in self.samples.values() for s in some if s.others is not None]
        return sum(s.disturbed for s in every), len(every)

    def figures(self) -> dict[str, Any]:
        """For the settings file: rates in tokens a second, and under which circumstances."""
        best = self.samples[self.best]
        return {
            "tokens_per_second": self.rate(self.best),
            "plain_tokens_per_second": self.plain_rate,
            "ratio": self.ratio(self.best),
            "tokens_per_step": stats.tokens_per_step(best),
            "acceptance": stats.accepted_share(best),
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

    def headline(self) -> str:
        """Say which setting is best, and how much faster than plain decoding; or why there is no verdict."""
        noisy, known = self.disturbed
        if not self.carried:
            why = f"the runs are fewer than {ENOUGH}, or scatter too much to say what is faster"
            if noisy > NOISY * known:
                why = f"other programs took much of the machine in {noisy} of {known} runs"
            return (
                f"No verdict: {why}. No file is written: give more --minutes, or a quieter machine."
            )
        beside = (
            f" Other programs took much of the machine in {noisy} of {known} runs."
            if noisy > NOISY * known
            else ""
        )
        if is_plain(self.best):
            tried = len([s for s in self.measured if not is_plain(s)])
            return (
                f"On {self.prompts} prompts, none of {tried} drafting settings is surely faster than plain "
                f"decoding with {self.plain_rate:.1f} tokens/s.{beside}"
            )
        name, nodes = family(self.best), self.best.nodes
        action = f"drafting up to {nodes} token{'s' if nodes != 1 else ''} a step with {name}"
        if nodes is None:
            action = f"drafting with {name}, as far as pays,"
        return (
            f"On {self.prompts} prompts, {action} is {self.ratio(self.best):.2f} times as fast as "
            f"plain decoding: {self.rate(self.best):.1f} instead of {self.plain_rate:.1f} tokens/s.{beside}"
        )

    def table(self) -> Table:
        """All settings, the best one first."""
        table = Table(*COLUMNS)
        for setting in self.measured:
            table.add_row(*self._row(setting), style="bold" if setting == self.best else None)
        return table

    def _row(self, setting: Speculation) -> list[str]:
        samples, share = self.samples[setting], stats.accepted_share(self.samples[setting])
        return [
            label(setting),
            f"{self.ratio(setting):.2f}",
            f"{self.rate(setting):.1f}",
            f"{stats.tokens_per_step(samples):.2f}",
            f"{stats.step_cost(samples, self.samples[PLAIN]):.2f} x",
            "-" if share is None else f"{share:.0%}",
            str(len(samples)),
            "not surely faster" if self.ratio(setting) > self.ratio(self.best) else "",
        ]


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
    """Find the fastest of the candidates for these prompts, which are run in a shuffled order.

    minutes: for everything; the log says before how many candidates fit into them. ValueError: too few minutes,
    batch out of range, too few prompts, a candidate or a prompt does not fit the model, no
    answer is longer than a token. KeyboardInterrupt: before anything was measured.
    """
    if not 1 <= batch <= len(prompts):
        raise ValueError(f"batch={batch} is outside 1..{len(prompts)}, the number of prompts")
    order = list(prompts)
    random.Random(0).shuffle(order)  # a file is often sorted by kind
    started, seconds = time.monotonic(), 60 * minutes
    runner = TuneRunner(llm, sampling)
    search = SpeculationSearch(candidates, batch, mode)
    parts = [order[i * batch : (i + 1) * batch] for i in range(len(order) // batch)]
    found = TuneResult(model, batch, mode, len(order), sampling, samples=search.samples)
    try:
        runner.check(prompts, [mode])
        search.run(runner, parts, started + seconds - time.monotonic(), report)
    except KeyboardInterrupt:
        if not search.samples[PLAIN]:
            raise
        found.stopped = True
    if not any(sample.tokens for sample in search.samples[PLAIN]):
        raise ValueError("every answer ended at its first token: there is nothing to measure")
    found.best, found.carried = search.best, search.carried
    found.seconds = time.monotonic() - started
    return found
