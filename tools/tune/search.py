"""Finds the fastest of many settings: all run on the same prompts, beside plain decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite, log2

from fastslow.engine.host.progress import Report
from fastslow.engine.params import Speculation
from fastslow.tools.prompts import Conversation
from fastslow.tools.tune.candidates import PLAIN, is_plain, label
from fastslow.tools.tune.runner import TuneRunner, say_fits, shuffled
from fastslow.tools.tune.sample import Cell, Sample, error, ratio, whole_runs

PASSES = 10  # times that a prompt is run at most
TIE = 0.02  # closer than this the adaptive length wins: it holds at other loads, too
ENOUGH = 3  # runs beside plain decoding that carry a verdict
LOSS = 0.05  # that a verdict for plain decoding may cost
WARM = 0.3  # of a run, that warming up takes

Parts = Sequence[Sequence[Conversation]]


class SpeculationSearch:
    """Each part of the prompts is run by all settings for which there is time, and by plain decoding, in changing
    order. Settings are judged by their ratio to plain on the same parts. Plain decoding may win."""

    def __init__(self, candidates: Sequence[Speculation], batch: int, mode: str) -> None:
        self._batch, self._mode = batch, mode
        drafts = [setting for setting in candidates if not is_plain(setting)]
        self.samples: dict[Speculation, list[Sample]] = {s: [] for s in (PLAIN, *drafts)}
        # first those that win most often, which are tried where time is short: the adaptive length, then about four
        self.tried = sorted(
            drafts, key=lambda s: (s.nodes is not None, abs(log2(s.nodes or 4) - 2))
        )

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
        self._measure(runner, PLAIN, parts, 0)
        one = now() - before
        self._choose(one, end - now())
        runner.warm_up(map(self._cell, self.tried), parts[0][0])
        for visit in range(PASSES * len(parts)):
            report(min(1.0, (now() - started) / seconds), self._summary())
            for setting in shuffled([PLAIN, *self.tried], visit):
                if is_plain(setting) and not visit:
                    continue  # it ran already
                if now() + one > end:
                    return
                self._measure(runner, setting, parts, visit)

    def score(self, setting: Speculation) -> float:
        """Return the speed as a multiple of plain decoding's; nan before the first run."""
        return ratio(self.samples[setting], self.samples[PLAIN])

    def error(self, setting: Speculation) -> float:
        """Standard error of the score, as a share of it; infinite before two runs."""
        return error(self.samples[setting], self.samples[PLAIN])

    @property
    def fastest_draft(self) -> Speculation:
        """The fastest draft; plain decoding before anything was measured."""
        scores = {s: self.score(s) for s in self.tried}
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
        every = len(self.tried)
        fits = next((n for n in range(every, 0, -1) if _runs(n) * run <= left), 0)
        if every and not fits:
            raise ValueError(
                f"minutes leave {max(0.0, left):.0f} s to measure in, and a verdict on one setting takes "
                f"{_runs(1) * run:.0f} s: give more, or fewer --tokens"
            )
        say_fits(fits, every, "settings")
        self.tried = self.tried[:fits]

    def _cell(self, setting: Speculation) -> Cell:
        return Cell(setting, self._batch, self._mode)

    def _measure(self, runner: TuneRunner, setting: Speculation, parts: Parts, visit: int) -> None:
        turn, part = divmod(visit, len(parts))
        sample = runner.run(self._cell(setting), parts[part], part, turn)
        self.samples[setting].append(sample)

    def _summary(self) -> str:
        best = self.best
        at = "" if is_plain(best) else f" at {self.score(best):.2f} x plain"
        return f"{len(self.tried)} settings, best so far {label(best)}{at}"


def _runs(count: int) -> float:
    """Runs that a verdict on `count` settings takes."""
    return WARM * count + ENOUGH * (count + 1)
