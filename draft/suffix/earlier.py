"""The newest answers of an engine, as a source for its next ones."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.draft.suffix.chains import Chains
from fastslow.draft.suffix.found import LONGEST, Found

END = -1  # in the ring: the answer before it is over
SMALLEST = 256


class Earlier:
    """A ring of answers: the oldest make room for new ones.

    Answers of all requests lie side by side, so a draft may hold words of another request's
    answer. They reach a caller only if the target itself says them.

    Args:
        tokens: how many to keep, rounded up to a power of two; about 80 bytes each, taken as
            they come.

    Raises:
        ValueError: fewer than 256 tokens.
    """

    def __init__(self, tokens: int = 2**18) -> None:
        if tokens < SMALLEST:
            raise ValueError(f"tokens={tokens} must be at least {SMALLEST}")
        self._size = 1 << (tokens - 1).bit_length()
        self._ring: list[int] = []  # grows to that
        self._chains = Chains(self._size)
        self._next = 0  # place that is written next

    def add(self, answer: Sequence[int], context: Sequence[int] = ()) -> None:
        """The newest answer; the end of what stood before it is matched, never proposed.

        Of an answer that would take more than a quarter of the ring the end is kept.
        """
        size = self._size
        context = context[-LONGEST:]
        text = [*context, *answer][-(size // 4) :]
        index = self._next % size
        if index + len(text) + 1 > size:  # an answer lies in one piece
            self._next += size - index
            index = 0
        self._ring[index : index + len(text) + 1] = [*text, END]
        first = max(1, len(text) - len(answer))
        for i in range(first, len(text)):
            self._chains.add(self._ring, self._next + i)
        self._next += len(text) + 1

    def find(self, recent: list[int], ahead: int) -> Found:
        """See `Source.find`."""
        oldest = self._next - self._size
        length, places, whole = self._chains.find(self._ring, recent, oldest)
        return Found(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        index = place % self._size
        run = self._ring[index : index + ahead]
        return run[: run.index(END)] if END in run else run
