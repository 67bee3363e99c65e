"""All places of many texts, sorted by what stands before them.

Texts are kept back to front, each ended by -1, so that what stands before a place is a run
tokens[place:] and the token that comes next is tokens[place - 1]. Runs are compared as the bytes
of little-endian int32: any order serves a search, and bytes compare at once.

The sort doubles the depth to which places are told apart (Manber and Myers 1993, "Suffix arrays"),
and goes on only with those that are not yet told apart (Larsson and Sadakane 1999).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.found import LONGEST

END = -1  # in `tokens`: the text before it is over
KEY_BITS = 63  # of an int64 that is not negative


def depths(vocab_size: int) -> list[int]:
    """The depths that a sort reaches, round by round, until LONGEST tokens are told apart."""
    found = [KEY_BITS // vocab_size.bit_length()]
    while found[-1] < LONGEST:
        found.append(2 * found[-1])
    return found


def sort_places(
    tokens: NDArray[np.int32], vocab_size: int, rounds: Iterable[int]
) -> NDArray[np.int64]:
    """Places int64 [N] of `tokens` int32 [N], by the run of LONGEST tokens that begins there.

    Args:
        tokens: ids below `vocab_size`, or END.
        rounds: `depths(vocab_size)`, perhaps with a bar around it. One takes about as long as
            sorting N numbers, the later ones less; memory is about 40 bytes a token.
    """
    order: NDArray[np.int64] = np.zeros(0, np.int64)
    rank: NDArray[np.int64] = order
    shared = np.zeros(0, np.bool_)
    before = 0
    for depth in rounds:
        if not before:
            keys = _first_keys(tokens, vocab_size, depth)
            order = np.argsort(keys, kind="stable")
            rank = np.empty(len(tokens), np.int64)
            shared = _rank(rank, order, keys[order], np.arange(len(tokens)))
        else:
            slots = np.flatnonzero(shared)
            places = order[slots]
            # A place near the end is told apart by the END it meets, wherever that is clipped to.
            after = rank[np.minimum(places + before, len(tokens) - 1)]
            keys = rank[places] * len(tokens) + after
            turn = np.argsort(keys, kind="stable")
            order[slots] = places[turn]
            shared[slots] = _rank(rank, places[turn], keys[turn], slots)
        before = depth
    return order


def byte_order(vocab_size: int) -> NDArray[np.int64]:
    """Ids in the order of their bytes, int64 [V]."""
    return np.argsort(np.arange(vocab_size, dtype="<u4").byteswap(), kind="stable")


def _first_keys(tokens: NDArray[np.int32], vocab_size: int, depth: int) -> NDArray[np.int64]:
    """The first `depth` tokens of each place in one number."""
    bits = vocab_size.bit_length()
    rank = np.empty(vocab_size + 1, np.int64)
    rank[byte_order(vocab_size)] = np.arange(vocab_size)
    rank[END] = vocab_size  # all bytes 255: after every id
    ranked = np.full(len(tokens) + depth, vocab_size, np.int64)
    ranked[: len(tokens)] = rank[tokens]
    keys = np.zeros(len(tokens), np.int64)
    for i in range(depth):
        keys <<= bits
        keys |= ranked[i : i + len(tokens)]
    return keys


def _rank(
    rank: NDArray[np.int64],
    places: NDArray[np.int64],
    keys: NDArray[np.int64],
    slots: NDArray[np.int64],
) -> NDArray[Any]:
    """Give places of equal keys the slot of their first as rank; returns who shares one."""
    new = np.ones(len(keys) + 1, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
    rank[places] = np.maximum.accumulate(np.where(new[:-1], slots, 0))
    return ~(new[:-1] & new[1:])
