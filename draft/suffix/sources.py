"""Where earlier text is looked up: in the request's own text, and in the newest answers of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fastslow.engine.kv.storage import lazy_zeros

LONGEST = 32  # tokens of a match that are told apart; longer ones count as equally long
MOST = 8  # places that a source looks at


class SuffixMatch(NamedTuple):
    """What followed the longest end of a text wherever it stood before."""

    length: int = 0  # tokens that match, at most LONGEST
    runs: Sequence[Sequence[int]] = ()  # tokens that came next, for each place that was looked at
    whole: bool = True  # False: there are more such places


NOTHING = SuffixMatch()


class Source(Protocol):
    """Text in which the longest match is looked up."""

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """Where the longest end of `recent`, the last tokens of a text, stood before: MOST places
        at most, and up to `ahead` tokens that followed at each."""


SIZES = (12, 5, 2)  # tokens that are looked up, in this order; the last is the shortest match
WALK = 32  # links followed before the search gives up: common short runs have no end of them

LARGE = 2**16  # below that the heap is asked, which fills what it gives


class ChainPlaces(NamedTuple):
    """Before which the longest end of a text stood."""

    length: int = 0  # tokens that match
    places: Sequence[int] = ()  # newest first
    whole: bool = True  # False: there are more


class Chains:
    """The index of a sliding window, as in LZ77 coders (Deutsch 1996, "DEFLATE", section 4).

    A *place* counts every token there ever was; a text keeps the newest `size` of them, the token
    of place p at index p % size. Nothing is ever removed: links that lead out of the window end.

    Args:
        size: places that are remembered, a power of two. Memory is 48 bytes each, taken as they come.

    Raises:
        ValueError: size is no power of two.
    """

    def __init__(self, size: int) -> None:
        if size < 1 or size & (size - 1):
            raise ValueError(f"size={size} must be a power of two")
        self.size = size
        self._mask = size - 1
        # of places plus one: 0 is none
        self._heads = [_untouched(size) for _ in SIZES]
        self._links = [_untouched(size) for _ in SIZES]

    def add(self, text: Sequence[int], place: int) -> None:
        """Note what stands before `place`; its own token is known, too."""
        mask = self._mask
        end = place & mask
        for n, heads, links in zip(SIZES, self._heads, self._links):
            if n <= end:
                slot = hash(tuple(text[end - n : end])) & mask
                links[end] = heads[slot]
                heads[slot] = place + 1

    def find(self, text: Sequence[int], recent: list[int], oldest: int) -> ChainPlaces:
        """The longest ends of `recent` in the window.

        Args:
            text: the window.
            recent: the tokens to match, the last one last.
            oldest: first place of the window.
        """
        for n, heads, links in zip(SIZES, self._heads, self._links):
            if n > len(recent):
                continue
            tail = recent[-n:]
            place = heads[hash(tuple(tail)) & self._mask] - 1
            best, places, whole = 0, [], True
            for _ in range(WALK):
                if place < oldest or place < 0:
                    break
                end = place & self._mask
                if text[end - n : end] == tail:
                    length = _common(text, end, recent, n)
                    if length > best:
                        best, places = length, [place]
                    elif length == best:
                        places.append(place)
                later, place = place, links[end] - 1
                if place >= later:  # the link was written over: what it led to is gone
                    break
            else:
                whole = False
            if places:
                return ChainPlaces(best, places[:MOST], whole and len(places) <= MOST)
        return ChainPlaces()


def _untouched(size: int) -> memoryview:
    """int64 zeros, of many only those that are written take memory; a view, which gives Python's ints."""
    if size < LARGE:
        return np.zeros(size, dtype=np.int64).data
    return lazy_zeros((size,), torch.int64, "cpu").numpy().data


def _common(text: Sequence[int], end: int, recent: list[int], known: int) -> int:
    """Tokens before index `end` that are the last of `recent`, of which `known` are."""
    most = min(len(recent), end)
    if text[end - most : end] == recent[-most:]:
        return most
    while text[end - 1 - known] == recent[-1 - known]:
        known += 1
    return known


FIRST_SIZE = 1024


class OwnText:
    """Indexes one text as it grows."""

    def __init__(self) -> None:
        self._tokens: Sequence[int] = ()
        self._read = 1  # places below it are indexed
        self._chains = Chains(FIRST_SIZE)

    def read(self, tokens: list[int]) -> None:
        """Take the text as it is now: all that there was, and perhaps more.

        The place at its very end is left out: nothing follows it yet.
        """
        self._tokens = tokens
        if len(tokens) > self._chains.size:
            # Sizes double, so a token is indexed again a few times at most.
            self._chains = Chains(1 << (len(tokens) - 1).bit_length())
            self._read = 1
        for place in range(self._read, len(tokens)):
            self._chains.add(tokens, place)
        self._read = max(self._read, len(tokens))

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Source.find`. A run that reaches the end of the text goes on as a loop would."""
        length, places, whole = self._chains.find(self._tokens, recent, 1)
        return SuffixMatch(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        run = list(self._tokens[place : place + ahead])
        if len(run) < ahead:
            run = (run * (ahead // len(run) + 1))[:ahead]
        return run


END = -1  # in the ring: the answer before it is over
SMALLEST = 256


class Earlier:
    """A ring of answers: the oldest make room for new ones.

    Answers of all requests lie side by side, so a draft may hold words of another request's
    answer. They max_len a caller only if the target itself says them.

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

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Source.find`."""
        oldest = self._next - self._size
        length, places, whole = self._chains.find(self._ring, recent, oldest)
        return SuffixMatch(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        index = place % self._size
        run = self._ring[index : index + ahead]
        return run[: run.index(END)] if END in run else run
