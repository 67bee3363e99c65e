"""Requests that wait for a replica, in the engine's order."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

from fastslow.engine.core.scheduler import OVERTAKEN
from fastslow.tools.simulate.answer import AnswerState

Rank = tuple[bool, int, int]


class WaitingQueue:
    """Those with a target first, then by priority, then the oldest. After so many that overtook it in a row
    the oldest is the most urgent of those without a target."""

    def __init__(self) -> None:
        self._ranked: list[tuple[Rank, int, AnswerState]] = []
        # the oldest of the quick ones, and of the deep ones
        self._ages: tuple[list[tuple[int, int, AnswerState]], ...] = ([], [])
        self._here: dict[int, AnswerState] = {}  # by age; the heaps also have some that started
        self._entries = itertools.count()
        self._modes: Counter[str] = Counter()
        self._overtakes = 0

    def __len__(self) -> int:
        return len(self._here)

    @property
    def first(self) -> AnswerState | None:
        """Who starts next."""
        oldest = self.oldest
        if oldest is None:
            return None
        while self._ranked[0][2].age not in self._here:
            heapq.heappop(self._ranked)
        best = self._ranked[0][2]
        if self._overtakes >= OVERTAKEN and best.target is None and oldest.target is None:
            return oldest
        return best

    @property
    def oldest(self) -> AnswerState | None:
        """Who came first."""
        found = [one for one in map(self.oldest_of, (False, True)) if one is not None]
        return min(found, key=lambda one: one.age, default=None)

    def oldest_of(self, deep: bool) -> AnswerState | None:
        """Who came first, of the deep ones or of all others."""
        ages = self._ages[deep]
        while ages and ages[0][0] not in self._here:
            heapq.heappop(ages)
        return ages[0][2] if ages else None

    def waiting(self) -> list[AnswerState]:
        """All that wait, in no order."""
        return list(self._here.values())

    def by_mode(self) -> dict[str, int]:
        """How many wait."""
        return {mode: n for mode, n in self._modes.items() if n}

    def add(self, answer: AnswerState) -> None:
        """It waits from now on."""
        rank = answer.target is None, answer.request.priority, answer.age
        entry = next(self._entries)
        heapq.heappush(self._ranked, (rank, entry, answer))
        heapq.heappush(self._ages[answer.request.deep], (answer.age, entry, answer))
        self._here[answer.age] = answer
        self._modes[answer.request.mode] += 1

    def take(self, answer: AnswerState) -> None:
        """It starts."""
        oldest = self.oldest
        assert oldest is not None
        if answer is oldest:
            self._overtakes = 0
        else:
            self._overtakes += answer.request.priority < oldest.request.priority
        del self._here[answer.age]
        self._modes[answer.request.mode] -= 1
