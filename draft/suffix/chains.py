"""Hash chains: where the last few tokens of a text stood before, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastslow.draft.suffix.found import MOST
from fastslow.engine.kv.storage import lazy_zeros

SIZES = (12, 5, 2)  # tokens that are looked up, in this order; the last is the shortest match
WALK = 32  # links followed before the search gives up: common short runs have no end of them

LARGE = 2**16  # below that the heap is asked, which fills what it gives


class Places(NamedTuple):
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

    def find(self, text: Sequence[int], recent: list[int], oldest: int) -> Places:
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
                return Places(best, places[:MOST], whole and len(places) <= MOST)
        return Places()


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
