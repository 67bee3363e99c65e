"""A simulated step: whose rows run in it, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastslow.engine.core.latency_budget import LEAST, PATIENCE
from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.costs import ReplicaCosts

SLOW = max(1, LEAST // (PATIENCE + 1))  # prompt rows of a step that has no room for them


@dataclass(slots=True)
class SimulatedStep:
    """A step in the making.

    Attributes:
        costs: of the replica.
        limit: seconds that it may take for the sake of a target; None = any.
        left: rows of text that it still takes.
        share: of such steps, in which each decoding request without a target runs.
        chunks: prompt rows of each request.
        context: seconds that texts add which were read before.
    """

    costs: ReplicaCosts
    limit: float | None
    left: int
    share: float = 1.0
    chunks: list[tuple[AnswerState, int]] = field(default_factory=list)
    context: float = 0.0
    _decode: dict[str, float] = field(default_factory=dict)  # rows by mode
    _prompt: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """What it takes while no other replica of its machine runs."""
        return self.costs.step(self._decode, self._prompt) + self.context

    def decode(self, answers: Sequence[AnswerState], take_turns: bool) -> None:
        """Requests write. take_turns: where the limit leaves no room for all, each runs in some steps."""
        rows: dict[str, float] = {}
        texts = 0.0
        for one in answers:
            rows[one.mode] = rows.get(one.mode, 0.0) + one.rows
            texts += one.prompt + one.made
        if take_turns and self.limit is not None and rows:
            fits, wanted = self._fits(*rows), sum(rows.values())
            if wanted > fits:
                self.share = max(fits / wanted, 1 / len(answers))
        share = self.share if take_turns else 1.0
        for mode, count in rows.items():
            self._decode[mode] = self._decode.get(mode, 0.0) + share * count
        self.context += self.costs.context_seconds * share * texts
        self.left -= len(answers)

    def room(self, answer: AnswerState) -> int:
        """Rows that the prompt of a request may have.

        Where the limit leaves none to one without a target the engine reads a few after it was patient for some
        steps; here that is their share of each step.
        """
        if self.limit is None or answer.target is not None or self.left <= 0:
            return self.left
        return min(self.left, self._fits(answer.mode) or (0 if self.chunks else SLOW))

    def read(self, answer: AnswerState, most: int) -> None:
        """The prompt of a request has some rows, or all that are left of it."""
        rows = min(answer.left, most)
        self.chunks.append((answer, rows))
        self._prompt[answer.mode] = self._prompt.get(answer.mode, 0.0) + rows
        self.left -= rows
        before = answer.length - answer.left
        self.context += self.costs.attention_seconds * rows * (before + rows / 2)

    def _fits(self, *modes: str) -> int:
        """Rows of some modes that fit beside those that run in it already."""
        assert self.limit is not None
        rows = sum(self._decode.values()) + sum(self._prompt.values())
        most = self.costs.most_rows((*modes, *self._decode, *self._prompt), self.limit)
        return max(0, most - math.ceil(rows - 1e-9))
