"""The next step of a simulated replica: who runs in it, and how many such steps follow each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastslow.engine.core.latency_budget import LEAST, PATIENCE
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.costs import ReplicaCosts

SLOW = max(1, LEAST // (PATIENCE + 1))  # prompt rows of a step that has no room for them


@dataclass(slots=True)
class ComposedStep:
    """A step in the making.

    Attributes:
        costs: of the replica.
        limit: seconds that it may take for the sake of a target; None = any.
        left: rows of text that it still takes.
        decode, prompt: rows by mode.
        chunks: prompt rows of each request.
        share: of such steps, in which each decoding request without a target runs.
    """

    costs: ReplicaCosts
    limit: float | None
    left: int
    decode: dict[str, float] = field(default_factory=dict)
    prompt: dict[str, float] = field(default_factory=dict)
    chunks: list[tuple[AnswerState, int]] = field(default_factory=list)
    share: float = 1.0

    def add_quick(self, rows: Mapping[str, float], requests: int) -> None:
        """Decoding requests with a target: they run in each step."""
        self.decode |= rows
        self.left -= requests

    def add_others(self, rows: Mapping[str, float], requests: int) -> None:
        """Decoding requests without one: where there is no room for all they take turns."""
        if self.limit is not None and rows:
            fits, wanted = self._fits(*rows), sum(rows.values())
            if wanted > fits:
                self.share = max(fits / wanted, 1 / requests)
        for mode, count in rows.items():
            self.decode[mode] = self.decode.get(mode, 0.0) + self.share * count
        self.left -= requests

    def room(self, answer: AnswerState) -> int:
        """Rows that the prompt of a request may have.

        Where the limit leaves none to one without a target the engine reads a few after it was patient for some
        steps; here that is their share of each step.
        """
        if self.limit is None or answer.target is not None or self.left <= 0:
            return self.left
        return min(self.left, self._fits(answer.request.mode) or (0 if self.chunks else SLOW))

    def read(self, answer: AnswerState, most: int) -> None:
        """The prompt of a request has so many rows, or all that are left of it."""
        rows, mode = min(answer.left, most), answer.request.mode
        self.chunks.append((answer, rows))
        self.prompt[mode] = self.prompt.get(mode, 0.0) + rows
        self.left -= rows

    def run(self, start: float) -> StepRun:
        """One such step."""
        return StepRun(start, 1, self.costs.step(self.decode, self.prompt), 0.0, self)

    def _fits(self, *modes: str) -> int:
        """Rows of some modes that fit beside those that run in it already."""
        assert self.limit is not None
        rows = sum(self.decode.values()) + sum(self.prompt.values())
        dearest = self.costs.most_rows((*modes, *self.decode, *self.prompt), self.limit)
        return max(0, dearest - math.ceil(rows - 1e-9))


@dataclass(slots=True)
class StepRun:
    """Some equal steps, one after the other.

    Attributes:
        start: seconds.
        steps: how many.
        first, more: seconds of the first one, and how much longer each is than the one before.
        step: who runs in them.
    """

    start: float
    steps: int
    first: float
    more: float
    step: ComposedStep

    def end(self, steps: int) -> float:
        """When so many of them are over."""
        return self.start + steps * self.first + self.more * (steps * (steps - 1) // 2)

    def over_at(self, time: float) -> int:
        """The fewest steps that end at this time or later."""
        elapsed = time - self.start
        if elapsed <= 0:
            return 0
        if self.more <= 1e-12 * self.first:
            steps = math.ceil(elapsed / self.first)
        else:
            half = self.first - self.more / 2
            root = math.sqrt(half * half + 2 * self.more * elapsed)
            steps = math.ceil((root - half) / self.more)
        while steps > 0 and self.end(steps - 1) >= time:
            steps -= 1
        while self.end(steps) < time:
            steps += 1
        return steps
