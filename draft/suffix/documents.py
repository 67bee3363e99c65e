"""Answers that will be a corpus, and all of their places sorted by the tokens before them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.sources import END, MAX_MATCH

KEY_BITS = 63  # of an int64 that is not negative
MAX_TOKENS = 2**31 - 2  # places are int32
EMPTY = np.zeros(0, np.int32)


def depths(vocab_size: int) -> list[int]:
    """The depths that a sort reaches, round by round, until MAX_MATCH tokens are sorted."""
    found = [KEY_BITS // vocab_size.bit_length()]
    while found[-1] < MAX_MATCH:
        found.append(2 * found[-1])
    return found


def sort_places(
    tokens: NDArray[np.int32], vocab_size: int, rounds: Iterable[int]
) -> NDArray[np.int64]:
    """Places int64 [N] of `tokens` int32 [N], by the run of MAX_MATCH tokens that begins there. tokens: ids below
    `vocab_size`, or END. rounds: `depths(vocab_size)`, perhaps with a bar around it; memory is about 40 bytes a
    token."""
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
            # A place near the end differs by the END after it, wherever the next rank is read.
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
    """The rank of a place is the first slot with its key; gives which places share one."""
    new = np.ones(len(keys) + 1, np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
    rank[places] = np.maximum.accumulate(np.where(new[:-1], slots, 0))
    return ~(new[:-1] & new[1:])


class Documents:
    """Texts back to front, each ended by END. tokens: int32 [N], as they are stored. sizes: int32 [D, 2]: tokens of
    each text with END, and how many of them are answer; the tokens before the answer are matched, but never proposed.
    """

    def __init__(self, tokens: NDArray[np.int32] = EMPTY, sizes: NDArray[np.int32] = EMPTY) -> None:
        self._tokens = array("i", tokens.tobytes())
        self._sizes: list[tuple[int, int]] = sizes.tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def tokens(self) -> int:
        return len(self._tokens)

    def add(self, answer: Sequence[int], context: Sequence[int] = ()) -> None:
        """Add the newest answer, its end token included; of the tokens before it the last MAX_MATCH are
        stored. ValueError where there is no room."""
        text = [*context[-MAX_MATCH:], *answer]
        if len(self._tokens) + len(text) + 1 > MAX_TOKENS:
            raise ValueError(f"a corpus of more than {MAX_TOKENS} tokens cannot be indexed")
        self._tokens.extend(reversed(text))
        self._tokens.append(END)
        self._sizes.append((len(text) + 1, len(answer)))

    def trim(self, most: int) -> int:
        """Drop the oldest texts until at most `most` tokens are left; gives how many."""
        dropped, tokens = 0, len(self._tokens)
        while tokens > most:
            tokens -= self._sizes[dropped][0]
            dropped += 1
        del self._tokens[: len(self._tokens) - tokens], self._sizes[:dropped]
        return dropped

    def index(self, vocab_size: int, rounds: Iterable[int]) -> dict[str, NDArray[Any]]:
        """The arrays of a corpus: tokens int32 [N] and sizes int32 [D, 2] as above; order int32 [P], the
        places from which an answer continues, sorted by the tokens before them; buckets int32 [V, 2],
        where in `order` the places with token v before them begin and end."""
        tokens = np.frombuffer(self._tokens, np.int32)
        sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        order = sort_places(tokens, vocab_size, rounds)
        order = order[_answers(tokens, sizes)[order]].astype(np.int32)
        counts = np.bincount(tokens[order], minlength=vocab_size)
        ids = byte_order(vocab_size)
        ends = np.empty(vocab_size, np.int64)
        ends[ids] = np.cumsum(counts[ids])
        buckets = np.stack([ends - counts, ends], axis=1).astype(np.int32)
        return {"tokens": tokens.copy(), "sizes": sizes, "order": order, "buckets": buckets}


def _answers(tokens: NDArray[np.int32], sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True at places that have an answer's token next, and something before them: bool [N]."""
    starts = np.cumsum(sizes[:, 0], dtype=np.int64) - sizes[:, 0]
    step = np.zeros(len(tokens) + 1, np.int32)
    np.add.at(step, starts + 1, 1)
    np.add.at(step, starts + sizes[:, 1] + 1, -1)
    found: NDArray[np.bool_] = (np.cumsum(step[:-1]) > 0) & (tokens != END)
    return found
