"""Finds the fastest of many settings: few prompts for all, more for those that do well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite

from loguru import logger

from fastslow.engine.params import Speculation
from fastslow.tools.progress import Report
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, is_plain, label
from fastslow.tools.tune.runner import TuneRunner, shuffled
from fastslow.tools.tune.sample import Cell, Sample, ratio

FINALISTS = 2  # the last round halves no more
PASSES = 3  # times that a round runs a prompt at most
TIE = 0.02  # closer than this the adaptive length wins: it holds at other loads, too

Parts = Sequence[Sequence[Conversation]]


class SuccessiveHalving:
    """After Jamieson and Talwalkar 2016, "Non-stochastic best arm identification".

    Every round has the same time. In it each part of the prompts is run by all settings that are left
    and by plain decoding, in changing order; then the slower half drops out, judged by its ratio to plain
    on the same parts. Plain decoding always runs along, and may win.
    """

    def __init__(self, candidates: Sequence[Speculation], batch: int, mode: str) -> None:
        self._batch, self._mode = batch, mode
        self.alive = [setting for setting in candidates if not is_plain(setting)]
        self.samples: dict[Speculation, list[Sample]] = {s: [] for s in (PLAIN, *self.alive)}
        self._visits = 0

    def run(
        self,
        runner: TuneRunner,
        parts: Parts,
        seconds: float,
        report: Report,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Search for at most `seconds`, but for each candidate's first run. May be interrupted. parts: the
        prompts, `batch` in each."""
        started = now()
        rounds = self._rounds()
        for number in range(rounds):
            end = started + seconds * (number + 1) / rounds
            last = 0.0
            for visit in range(PASSES * len(parts)):
                before = now()
                if visit and before + last / 2 > end:
                    break
                share = min(1.0, (before - started) / seconds)
                report(share, f"round {number + 1} of {rounds}: {self._summary()}")
                self._visit(runner, parts)
                last = now() - before
            self._halve()

    def score(self, setting: Speculation) -> float:
        """How many times plain; nan before the first run."""
        return ratio(self.samples[setting], self.samples[PLAIN])

    @property
    def fastest_draft(self) -> Speculation:
        """The fastest draft of those that got furthest; plain decoding before anything was measured."""
        scores = {s: self.score(s) for s in self.alive}
        scores = {s: score for s, score in scores.items() if isfinite(score)}
        if not scores:
            return PLAIN
        top = max(scores.values())
        close = [s for s, score in scores.items() if score >= top * (1 - TIE)]
        return max(close, key=lambda s: (s.nodes is None, scores[s]))

    @property
    def best(self) -> Speculation:
        """What to use: the fastest draft, or plain decoding if that is no slower."""
        fastest = self.fastest_draft
        return fastest if self.score(fastest) > 1 else PLAIN

    def _rounds(self) -> int:
        left, rounds = len(self.alive), 1
        while left > FINALISTS:
            left, rounds = (left + 1) // 2, rounds + 1
        return rounds

    def _visit(self, runner: TuneRunner, parts: Parts) -> None:
        turn, part = divmod(self._visits, len(parts))
        order = shuffled([PLAIN, *self.alive], self._visits)
        if not self._visits:  # an early stop has something to compare with
            order.sort(key=lambda setting: not is_plain(setting))
        self._visits += 1
        for setting in order:
            cell = Cell(setting, self._batch, self._mode)
            self.samples[setting].append(runner.run(cell, parts[part], part, turn))

    def _halve(self) -> None:
        if len(self.alive) > FINALISTS:
            scores = {setting: self.score(setting) for setting in self.alive}
            self.alive.sort(key=lambda s: scores[s] if isfinite(scores[s]) else 0.0, reverse=True)
            self.alive = self.alive[: (len(self.alive) + 1) // 2]
            logger.info("{}", self._summary())

    def _summary(self) -> str:
        if not self._visits:
            return f"{len(self.alive)} settings"
        best = self.best
        at = "" if is_plain(best) else f" at {self.score(best):.2f} x plain"
        return f"{len(self.alive)} settings left, best so far {label(best)}{at}"
