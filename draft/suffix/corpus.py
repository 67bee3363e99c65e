"""Stored answers, searched where they lie: a sealed file, mapped into memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.found import LONGEST, MOST, NOTHING, Found
from fastslow.draft.suffix.order import END
from fastslow.draft.suffix.sealed import Sealed
from fastslow.draft.suffix.stored import load

WIDTH = 4  # bytes of a token


class Corpus:
    """Answers of the past and, for any end of a text, what followed it in them.

    A lookup is one binary search among places sorted by what stands before them (a suffix array of
    the reversed text; Manber and Myers 1993): it finds the longest match at once.

    Attributes:
        documents, tokens: how many answers, and their tokens with what is kept before them.
        path: the file.
    """

    def __init__(self, path: Path, sealed: Sealed) -> None:
        """See `open`."""
        arrays = sealed.arrays
        self.path = path
        self.documents = len(arrays["sizes"])
        self.tokens = len(arrays["tokens"])
        self._arrays = arrays
        self._memory = sealed.memory
        self._base = sealed.offsets["tokens"]
        # A memoryview gives Python ints, several times faster than an array gives its scalars.
        self._text = arrays["tokens"].data
        self._order = arrays["order"].data
        self._buckets = arrays["buckets"].data

    @classmethod
    def open(cls, path: str | Path, vocab: Mapping[str, int]) -> Corpus:
        """Map a corpus after checking all of it.

        Args:
            path: a file that `save` wrote.
            vocab: the vocabulary of the model that will be drafted for, piece -> id.

        Raises:
            ValueError: no such file, damaged, not a corpus, or of another vocabulary.
        """
        return cls(Path(path), load(Path(path), vocab))

    def find(self, recent: list[int]) -> Found:
        """See `Source.find`. Of more than MOST places, MOST are taken in equal steps."""
        last = recent[-1]
        if not 0 <= last < len(self._buckets):
            return NOTHING
        low, high = self._buckets[last, 0], self._buckets[last, 1]
        if low == high:
            return NOTHING
        recent = recent[-LONGEST:]
        key = array("i", recent[::-1]).tobytes()
        order = self._order
        at = bisect_left(order, key, low, high, key=self._reader(len(key)))
        near = [self._common(key, order[i]) for i in (at - 1, at) if low <= i < high]
        length = max(near)
        first, end = self._around(key[: length * WIDTH], low, at, high)
        count = end - first
        if count <= MOST:
            places = order[first:end].tolist()
        else:
            places = [order[first + i * count // MOST] for i in range(MOST)]
        return Found(length, places, count <= MOST)

    def run(self, place: int, ahead: int) -> list[int]:
        """See `Source.run`."""
        run: list[int] = self._text[max(0, place - ahead) : place].tolist()
        run.reverse()
        return run[: run.index(END)] if END in run else run

    def unpack(self) -> Documents:
        """All answers, to add to them."""
        return Documents(self._arrays["tokens"], self._arrays["sizes"])

    def _around(self, key: bytes, low: int, at: int, high: int) -> tuple[int, int]:
        """The slots in low..high whose places have `key` before them; they touch `at`."""
        order, read = self._order, self._reader(len(key))
        # In growing steps: mostly they are few, where low..high may be a share of the corpus.
        step, inside, first = 1, at, low
        while inside - step >= low:
            if read(order[inside - step]) != key:
                first = inside - step + 1
                break
            inside -= step
            step *= 2
        first = bisect_left(order, key, first, inside, key=read)
        step, inside, end = 1, at, high
        while inside + step <= high:
            if read(order[inside + step - 1]) != key:
                end = inside + step - 1
                break
            inside += step
            step *= 2
        return first, bisect_right(order, key, inside, end, key=read)

    def _reader(self, size: int) -> Any:
        """place -> the `size` bytes of what stands before it."""
        memory, base = self._memory, self._base

        def read(place: int) -> bytes:
            begin = base + WIDTH * place
            return memory[begin : begin + size]

        return read

    def _common(self, key: bytes, place: int) -> int:
        """How many tokens before `place` are those of `key`."""
        there = self._reader(len(key))(place)
        differ = int.from_bytes(key, "little") ^ int.from_bytes(there, "little")
        if not differ:
            return len(key) // WIDTH
        return ((differ & -differ).bit_length() - 1) // (8 * WIDTH)
