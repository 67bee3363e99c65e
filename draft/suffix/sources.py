"""Texts in which suffix matches are looked up: the request's own text, and the engine's latest answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fastslow.engine.host.lazy_memory import lazy_zeros

MAX_MATCH = 32  # tokens of a match that count; longer matches count as equally long
MAX_PLACES = 8  # that a source looks at
SIZES = (12, 5, 2)  # tokens that are looked up, in this order; the last is the shortest match
MAX_LINKS = 32  # tried before the search gives up: common short n-grams have too many
LARGE = 2**16  # entries; smaller arrays come from the heap, which fills what it gives
FIRST_SIZE = 1024
END = -1  # in the ring: the answer before it is over


class SuffixMatch(NamedTuple):
    """The longest end of a text that a source holds, and what came next at each place."""

    length: int = 0  # tokens that match, at most MAX_MATCH
    runs: Sequence[Sequence[int]] = ()  # the tokens that came next, for each place looked at
    whole: bool = True  # False: there are more such places


class Source(Protocol):
    """Text in which the longest match is looked up."""

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """Look up the longest end of `recent`, the last tokens of a text: MAX_PLACES places at most,
        and up to `ahead` tokens that came next at each."""


class HashChains:
    """The index of a sliding window, as in LZ77 coders (Deutsch 1996, "DEFLATE", section 4).

    A *place* counts every token there ever was; the window holds the newest `size`, a power of two, the
    token of place p at index p % size. Links that lead out of the window end. Memory grows with use,
    up to 48 bytes a place.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._mask = size - 1
        # of places plus one: 0 is none
        self._heads = [_zeros(size) for _ in SIZES]
        self._links = [_zeros(size) for _ in SIZES]

    def add(self, text: Sequence[int], place: int) -> None:
        """Index the tokens before `place`."""
        mask = self._mask
        end = place & mask
        for n, heads, links in zip(SIZES, self._heads, self._links):
            if n <= end:
                slot = hash(tuple(text[end - n : end])) & mask
                links[end] = heads[slot]
                heads[slot] = place + 1

    def find(
        self, text: Sequence[int], recent: list[int], oldest: int
    ) -> tuple[int, Sequence[int], bool]:
        """The longest end of `recent` in the window `text` whose first place is `oldest`: how many tokens
        match, the places after them (newest first), and whether these are all."""
        for n, heads, links in zip(SIZES, self._heads, self._links):
            if n > len(recent):
                continue
            tail = recent[-n:]
            place = heads[hash(tuple(tail)) & self._mask] - 1
            best, whole = 0, True
            places: list[int] = []
            for _ in range(MAX_LINKS):
                if place < oldest or place < 0:
                    break
                end = place & self._mask
                if text[end - n : end] == tail:
                    length = _match(text, end, recent, n)
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
                return best, places[:MAX_PLACES], whole and len(places) <= MAX_PLACES
        return 0, (), True


def _zeros(size: int) -> memoryview:
    """int64, of which only written entries take memory; a view gives Python's ints."""
    if size < LARGE:
        return np.zeros(size, dtype=np.int64).data
    return lazy_zeros((size,), torch.int64, "cpu").numpy().data


def _match(text: Sequence[int], end: int, recent: list[int], known: int) -> int:
    """Count the tokens before index `end` that are the last of `recent`; `known` of them surely are."""
    most = min(len(recent), end)
    if text[end - most : end] == recent[-most:]:
        return most
    while text[end - 1 - known] == recent[-1 - known]:
        known += 1
    return known


class OwnText:
    """Indexes one text as it grows."""

    def __init__(self) -> None:
        self._tokens: Sequence[int] = ()
        self._indexed = 1  # places below it
        self._chains = HashChains(FIRST_SIZE)

    def read(self, tokens: list[int]) -> None:
        """Index the text, which begins like the last one, without the place at its very end."""
        self._tokens = tokens
        if len(tokens) > self._chains.size:
            # Sizes double, so a token is indexed again a few times at most.
            self._chains = HashChains(1 << (len(tokens) - 1).bit_length())
            self._indexed = 1
        for place in range(self._indexed, len(tokens)):
            self._chains.add(tokens, place)
        self._indexed = max(self._indexed, len(tokens))

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Source.find`. A run that meets the end of the text repeats as a loop would."""
        length, places, whole = self._chains.find(self._tokens, recent, 1)
        return SuffixMatch(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        run = list(self._tokens[place : place + ahead])
        if len(run) < ahead:
            run = (run * (ahead // len(run) + 1))[:ahead]
        return run


class EarlierAnswers:
    """A ring of answers: the oldest make room for new ones. `tokens`, a power of two, are held; memory grows
    with use, up to some 80 bytes each.

    A draft may hold tokens of another request's answer. They get to a caller only if the target itself
    generates them; but how many are accepted tells that they were said before.
    """

    def __init__(self, tokens: int = 2**18) -> None:
        self._chains = HashChains(tokens)
        self._ring: list[int] = []
        self._next = 0  # place that is written next

    def add(self, answer: Sequence[int], context: Sequence[int] = ()) -> None:
        """Add an answer; the last tokens of the `context` before it are matched but never proposed. Of an
        answer longer than a quarter of the ring only the end is stored."""
        size = self._chains.size
        text = [*context[-MAX_MATCH:], *answer][-(size // 4) :]
        index = self._next % size
        if index + len(text) + 1 > size:  # an answer lies in one piece
            self._next += size - index
            index = 0
        self._ring[index : index + len(text) + 1] = [*text, END]
        for i in range(max(1, len(text) - len(answer)), len(text)):
            self._chains.add(self._ring, self._next + i)
        self._next += len(text) + 1

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Source.find`."""
        oldest = self._next - self._chains.size
        length, places, whole = self._chains.find(self._ring, recent, oldest)
        return SuffixMatch(length, [self._run(place, ahead) for place in places], whole)

    def _run(self, place: int, ahead: int) -> list[int]:
        index = place % self._chains.size
        run = self._ring[index : index + ahead]
        return run[: run.index(END)] if END in run else run


class AnswerMemory:
    """Earlier answers, those of each memory key apart. common: whether requests without a key share answers; False:
    nothing of them is kept. keys: how many keys are known; the least recently used key is forgotten. tokens: of each
    key's answers; those without a key have as much as all keys."""

    def __init__(self, common: bool = True, keys: int = 64, tokens: int = 2**12) -> None:
        self._keys = keys
        self._tokens = tokens
        self._size = 1 << (keys * tokens - 1).bit_length()
        self._has_common = common
        self._common: EarlierAnswers | None = None
        self._by_key: OrderedDict[str, EarlierAnswers] = OrderedDict()

    def of(self, key: str | None) -> EarlierAnswers | None:
        """The answers that a request with this key may be drafted from."""
        if key is None:
            return self._common
        if key in self._by_key:
            self._by_key.move_to_end(key)
        return self._by_key.get(key)

    def add(self, key: str | None, answer: Sequence[int], context: Sequence[int] = ()) -> None:
        """See `EarlierAnswers.add`."""
        if key is None and not self._has_common:
            return
        known = self.of(key)
        if known is None and key is None:
            known = self._common = EarlierAnswers(self._size)
        elif known is None:
            known = self._by_key[str(key)] = EarlierAnswers(self._tokens)
            if len(self._by_key) > self._keys:
                self._by_key.popitem(last=False)
        known.add(answer, context)

    def clear(self) -> None:
        self._common = None
        self._by_key.clear()
