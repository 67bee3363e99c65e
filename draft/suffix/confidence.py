"""How far a match of so many tokens can be trusted to go on: learnt while drafting."""

from __future__ import annotations

from fastslow.draft.suffix.sources import LONGEST

WEIGHT = 8.0  # the prior counts as much as this many tokens that were seen
MEMORY = 512.0  # tokens after which older ones count half


class MatchConfidence:
    """For each length of a match, the share of next tokens that followed one of its runs.

    It starts at length / (length + 1.5): a longer match errs less.
    """

    def __init__(self) -> None:
        self._seen = [WEIGHT] * (LONGEST + 1)
        self._right = [WEIGHT * n / (n + 1.5) for n in range(LONGEST + 1)]

    def of(self, length: int) -> float:
        """The share, in 0..1, for a match of `length` tokens."""
        length = min(length, LONGEST)
        return self._right[length] / self._seen[length]

    def learn(self, length: int, right: bool) -> None:
        """The token after a match of `length` tokens was, or was not, among what followed it."""
        length = min(length, LONGEST)
        self._seen[length] += 1
        self._right[length] += right
        if self._seen[length] > MEMORY:
            self._seen[length] /= 2
            self._right[length] /= 2
