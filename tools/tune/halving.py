"""Finds the fastest of many settings: few prompts for all, more for those that do well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite, log2

from loguru import logger

from fastslow.engine.host.progress import Report
from fastslow.engine.params import Speculation
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, is_plain, label
from fastslow.tools.tune.runner import TuneRunner, say_fits, shuffled
from fastslow.tools.tune.sample import Cell, Sample, error, ratio, whole_runs

FINALISTS = 2  # the last round halves no more
PASSES = 3  # times that a round runs a prompt at most
TIE = 0.02  # closer than this the adaptive length wins: it holds at other loads, too
ENOUGH = 3  # runs beside plain decoding that carry a verdict
LOSS = 0.05  # that a verdict for plain decoding may cost
WARM = 0.3  # of a run, that warming up takes

Parts = Sequence[Sequence[Conversation]]


class SuccessiveHalving:
    """After Jamieson and Talwalkar 2016, "Non-stochastic best arm identification".

    Every round has the same time. In it each part of the prompts is run by all settings that are left
    and by plain decoding, in changing order; then the slower half drops out, judged by its ratio to plain
    on the same parts. Plain decoding always runs along, and may win.
    """

    def __init__(self, candidates: Sequence[Speculation], batch: int, mode: str) -> None:
        self._batch, self._mode = batch, mode
        drafts = [setting for setting in candidates if not is_plain(setting)]
        self.samples: dict[Speculation, list[Sample]] = {s: [] for s in (PLAIN, *drafts)}
        # first those that win most often, which are tried where time is short: the adaptive length, then about four
        self.alive = sorted(
            drafts, key=lambda s: (s.nodes is not None, abs(log2(s.nodes or 4) - 2))
        )
        self._visits = 0

    def run(
        self,
        runner: TuneRunner,
        parts: Parts,
        seconds: float,
        report: Report,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Search for `seconds`; the log says before what does not fit. May be interrupted. parts: the prompts,
        `batch` in each. ValueError: there is no time for a verdict on one setting."""
        started, end = now(), now() + seconds
        report(0.0, "plain decoding")
        runner.warm_up([self._cell(PLAIN)], parts[0][0])
        before = now()
        self._measure(runner, PLAIN, parts)
        one = now() - before
        self._choose(one, end - now())
        runner.warm_up(map(self._cell, self.alive), parts[0][0])
        rounds = len(_left(len(self.alive)))
        for number in range(rounds):
            end_of_round = started + seconds * (number + 1) / rounds
            last = 0.0
            for visit in range(PASSES * len(parts)):
                before = now()
                if visit and before + last / 2 > end_of_round:
                    break
                share = min(1.0, (before - started) / seconds)
                report(share, f"round {number + 1} of {rounds}: {self._summary()}")
                for setting in shuffled([PLAIN, *self.alive], self._visits):
                    if is_plain(setting) and not self._visits:
                        continue  # it ran already
                    if now() + one > end:
                        return
                    self._measure(runner, setting, parts)
                self._visits += 1
                last = now() - before
            self._halve()

    def score(self, setting: Speculation) -> float:
        """Return the speed as a multiple of plain decoding's; nan before the first run."""
        return ratio(self.samples[setting], self.samples[PLAIN])

    def error(self, setting: Speculation) -> float:
        """Standard error of the score, as a share of it; infinite before two runs."""
        return error(self.samples[setting], self.samples[PLAIN])

    @property
    def fastest_draft(self) -> Speculation:
        """The fastest draft of those that got furthest; plain decoding before anything was measured."""
        scores = {s: self.score(s) for s in self.alive}
        scores = {s: score for s, score in scores.items() if isfinite(score)}
        if not scores:
            return PLAIN
        top = max(scores, key=lambda s: scores[s])
        least = scores[top] * (1 - max(TIE, self.error(top)))
        close = [s for s, score in scores.items() if score >= least]
        return max(close, key=lambda s: (s.nodes is None, scores[s]))

    @property
    def best(self) -> Speculation:
        """Setting to use: the fastest draft, or plain decoding if that draft is not surely faster."""
        fastest = self.fastest_draft
        return fastest if self.score(fastest) * (1 - self.error(fastest)) > 1 else PLAIN

    @property
    def carried(self) -> bool:
        """True where the runs carry a verdict: enough of the fastest draft's are undisturbed, and it is surely faster
        than plain decoding, or surely not by much."""
        fastest = self.fastest_draft
        sure = self.score(fastest) * (1 + self.error(fastest)) <= 1 + LOSS or fastest == self.best
        return sure and whole_runs(self.samples[fastest], self.samples[PLAIN]) >= ENOUGH

    def _choose(self, run: float, left: float) -> None:
        """Keep as many settings as there is time for, and say so. run: seconds of one run."""
        every = len(self.alive)
        fits = next((n for n in range(every, 0, -1) if _runs(n) * run <= left), 0)
        if every and not fits:
            raise ValueError(
                f"minutes leave {max(0.0, left):.0f} s to measure in, and a verdict on one setting takes "
                f"{_runs(1) * run:.0f} s: give more, or fewer --tokens"
            )
        say_fits(fits, every, "settings")
        self.alive = self.alive[:fits]

    def _cell(self, setting: Speculation) -> Cell:
        return Cell(setting, self._batch, self._mode)

    def _measure(self, runner: TuneRunner, setting: Speculation, parts: Parts) -> None:
        turn, part = divmod(self._visits, len(parts))
        sample = runner.run(self._cell(setting), parts[part], part, turn)
        self.samples[setting].append(sample)

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


def _left(count: int) -> list[int]:
    return [count] if count <= FINALISTS else [count, *_left((count + 1) // 2)]


def _runs(count: int) -> float:
    """Runs that a search among `count` settings takes at least."""
    alive = _left(count)
    visits = alive + alive[-1:] * (ENOUGH - len(alive))
    return WARM * count + sum(settings + 1 for settings in visits)
