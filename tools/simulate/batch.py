"""Requests that decode together: sums in place of lists, so that a step costs the same whatever their number."""

from __future__ import annotations

import heapq
import math

from fastslow.tools.simulate.answer import AnswerState

NEVER = 1 << 62


class DecodingBatch:
    """Requests of one kind, which all run in the same steps.

    Attributes:
        clock: steps in which each of them ran so far.
        rows: of a step, by mode.
        growth: tokens that they all get from a step.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.rows: dict[str, float] = {}
        self.growth = 0.0
        self._heap: list[tuple[float, int, AnswerState]] = []  # by their last step
        self._length = 0.0  # of all texts, when the clock was 0
        self._private = 0.0  # of these, in pages of their own
        self._count = 0
        self._modes: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, answer: AnswerState) -> None:
        """An answer has its first token, or goes on."""
        answer.begun, answer.base = self.clock, answer.made
        steps = math.ceil((answer.request.answer_tokens - answer.made) / answer.rate - 1e-9)
        answer.ends = self.clock + steps
        heapq.heappush(self._heap, (answer.ends, answer.age, answer))
        self._count_in(answer, 1)

    def remove(self, answer: AnswerState) -> int:
        """It leaves before its end; returns the tokens that it has."""
        made = self.made(answer)
        self._heap = [entry for entry in self._heap if entry[2] is not answer]
        heapq.heapify(self._heap)
        self._count_in(answer, -1)
        return made

    def made(self, answer: AnswerState) -> int:
        """Tokens of its answer that are there now."""
        made = answer.base + math.floor(answer.rate * (self.clock - answer.begun) + 1e-9)
        return min(answer.request.answer_tokens, made)

    def advance(self, steps: float) -> None:
        """So many steps have run."""
        self.clock += steps

    def pop_over(self) -> list[AnswerState]:
        """Those that have all their tokens."""
        over = []
        while self._heap and self._heap[0][0] <= self.clock + 1e-6:
            answer = heapq.heappop(self._heap)[2]
            self._count_in(answer, -1)
            over.append(answer)
        return over

    def steps_to_end(self, share: float) -> int:
        """Steps until the next one is over, where each runs in this share of them."""
        if not self._heap:
            return NEVER
        return max(1, math.ceil((self._heap[0][0] - self.clock) / share - 1e-6))

    def answers(self) -> list[AnswerState]:
        """All of them."""
        return [entry[2] for entry in self._heap]

    def clear(self) -> list[AnswerState]:
        """All of them, which are then gone."""
        found = self.answers()
        self._heap = []
        for answer in found:
            self._count_in(answer, -1)
        return found

    def context(self) -> float:
        """Tokens of all texts now."""
        return self._length + self.growth * self.clock

    def pages(self, clock: float, page: int) -> float:
        """Pages of their own at a later step; each may have one that is not full."""
        if not self._count:
            return 0.0
        return (self._private + self.growth * clock) / page + self._count

    def _count_in(self, answer: AnswerState, sign: int) -> None:
        mode = answer.request.mode
        self._count += sign
        self._modes[mode] = self._modes.get(mode, 0) + sign
        if self._modes[mode]:
            self.rows[mode] = self.rows.get(mode, 0.0) + sign * answer.rows
        else:
            del self._modes[mode], self.rows[mode]
        if not self._count:  # no rest of rounding stays
            self.growth = self._length = self._private = 0.0
            return
        self.growth += sign * answer.rate
        before = answer.rate * answer.begun
        self._length += sign * (answer.request.prompt_tokens + answer.base - before)
        self._private += sign * (answer.private - before)
