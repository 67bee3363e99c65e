"""The longest match among sorted places: on the CPU kernels, and in Python where they do not run."""

from __future__ import annotations

import ctypes
from array import array
from bisect import bisect_left, bisect_right
from functools import cache
from typing import Any, Protocol

from loguru import logger

from fastslow.draft.suffix.documents import END
from fastslow.draft.suffix.sealed import Sealed
from fastslow.draft.suffix.sources import LONGEST, MOST, NOTHING, SuffixMatch
from fastslow.engine.backends.cpu import library

WIDTH = 4  # bytes of a token


class Search(Protocol):
    """Looks among the places of a corpus, which are sorted by what stands before them."""

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Corpus.find`."""


def best_search(sealed: Sealed) -> Search:
    """On the kernels where they run. Either finds the same."""
    kernels = _kernels()
    return BisectSearch(sealed) if kernels is None else KernelSearch(sealed, kernels)


class KernelSearch:
    """One call of the kernels a search.

    Between two drafts a model's weights pass through the caches, so every line of Python and every
    object of a lookup comes from memory again, and takes several times longer than the search: they
    are few, and what can be kept is.
    """

    def __init__(self, sealed: Sealed, kernels: ctypes.CDLL) -> None:
        self._sealed = sealed  # keeps the addresses alive
        arrays = sealed.arrays
        names = ("tokens", "order", "buckets")
        places = library.CPlaces(*(arrays[n].ctypes.data for n in names), len(arrays["buckets"]))
        self._find = kernels.fs_find_runs
        self._places = ctypes.byref(places)
        self._make_room(0)

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        if ahead > self._ahead:
            self._make_room(ahead)
        text = array("i", recent)
        address, size = text.buffer_info()
        self._find(self._places, address, size, LONGEST, MOST, ahead, self._address)
        found = self._found
        length, count = found[0], found[1]
        if not length:
            return NOTHING
        taken = min(count, MOST)
        begin = 2 + taken
        runs = []
        for size in found[2:begin]:
            runs.append(found[begin : begin + size])  # most of its numbers are never looked at
            begin += size
        return SuffixMatch(length, runs, count == taken)

    def _make_room(self, ahead: int) -> None:
        """For runs of so many tokens."""
        self._ahead = ahead
        self._found = array("i", bytes(WIDTH * (2 + MOST + MOST * ahead)))
        self._address = self._found.buffer_info()[0]


class BisectSearch:
    """Python's own bisection, with the bytes of what stands before a place as its key."""

    def __init__(self, sealed: Sealed) -> None:
        self._memory = sealed.memory
        self._base = sealed.offsets["tokens"]
        # Memoryviews give Python ints, several times faster than arrays give their scalars.
        self._text = sealed.arrays["tokens"].data
        self._order = sealed.arrays["order"].data
        self._buckets = sealed.arrays["buckets"].data

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        last = recent[-1]
        if not 0 <= last < len(self._buckets):
            return NOTHING
        low, high = self._buckets[last, 0], self._buckets[last, 1]
        if low == high:
            return NOTHING
        key = array("i", recent[: -LONGEST - 1 : -1]).tobytes()
        order = self._order
        at = bisect_left(order, key, low, high, key=self._reader(len(key)))
        near = [self._common(key, order[i]) for i in (at - 1, at) if low <= i < high]
        length = max(near)
        if not length:
            return NOTHING
        first, end = self._around(key[: length * WIDTH], low, at, high)
        count = end - first
        if count <= MOST:
            places = order[first:end].tolist()
        else:
            places = [order[first + i * count // MOST] for i in range(MOST)]
        return SuffixMatch(length, [self._run(place, ahead) for place in places], count <= MOST)

    def _run(self, place: int, ahead: int) -> array[int]:
        """Up to `ahead` tokens that followed at a place, until its text ends."""
        run = self._text[max(0, place - ahead) : place].tolist()
        run.reverse()
        return array("i", run[: run.index(END)] if END in run else run)

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


@cache
def _kernels() -> ctypes.CDLL | None:
    """None where they do not run; one line in the log says what that costs and why."""
    cost = "a corpus is searched in Python instead of by the CPU kernels, several times slower"
    if library.level() == "off":
        logger.info("{}: they are switched off", cost)
        return None
    try:
        return library.kernels()
    except RuntimeError as error:
        logger.warning("{}: {}", cost, error)
        return None
