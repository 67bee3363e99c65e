"""What is known of an answer before a step gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastslow.engine.types import TARGET, Tree


@dataclass(slots=True)
class KnownAnswer:
    """The parts of an answer that no step has to find: tokens that its call brought, and what a probe found ahead.

    Attributes:
        answered: its first tokens, which its call brought.
        unread: those after them, which come once its answer was asked for.
        ahead: what the target said of its next tokens.
    """

    answered: tuple[int, ...] = ()
    unread: Sequence[int] = ()
    ahead: list[int] = field(default_factory=list)

    def draft(self, nodes: int) -> Tree:
        """Return what the target said of the next tokens, as a draft of at most so many nodes."""
        tokens = self.ahead[:nodes]
        return replace(Tree.chain(tokens), drafter_names=[TARGET] * len(tokens))

    def passed(self, tokens: list[int]) -> bool:
        """The answer has these tokens now. Returns whether the target had said something of them."""
        if not self.ahead:
            return False
        self.ahead = self.ahead[len(tokens) :] if self.ahead[: len(tokens)] == tokens else []
        return True
