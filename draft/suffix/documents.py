"""Answers that will be a corpus, and the places in them sorted by the tokens before them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.sources import END, MAX_MATCH

MAX_TOKENS = 2**31 - 2  # places are int32
EMPTY = np.zeros(0, np.int32)


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

    def index(self, vocab_size: int) -> dict[str, NDArray[Any]]:
        """The arrays of a corpus: tokens int32 [N] and sizes int32 [D, 2] as above; order int32 [P], the
        places from which an answer continues, sorted by the MAX_MATCH tokens before them as bytes; buckets int32
        [V, 2], where in `order` the places with token v before them begin and end. It takes some 150 bytes a token."""
        tokens = np.frombuffer(self._tokens, np.int32)
        sizes = np.array(self._sizes, np.int32).reshape(-1, 2)
        places = np.flatnonzero(_answers(tokens, sizes))
        padded = np.concatenate([tokens, np.full(MAX_MATCH, END)]).astype("<i4")
        runs = np.ndarray(len(tokens), f"S{4 * MAX_MATCH}", padded, strides=(4,))
        order = places[np.argsort(runs[places])].astype(np.int32)
        first = tokens[order]
        begins = np.flatnonzero(np.diff(first, prepend=END))
        buckets = np.zeros((vocab_size, 2), np.int32)
        buckets[first[begins]] = np.stack([begins, np.append(begins, len(order))[1:]], axis=1)
        return {"tokens": tokens.copy(), "sizes": sizes, "order": order, "buckets": buckets}


def _answers(tokens: NDArray[np.int32], sizes: NDArray[np.int32]) -> NDArray[np.bool_]:
    """True at places that have an answer's token next, and something before them: bool [N]."""
    starts = np.cumsum(sizes[:, 0], dtype=np.int64) - sizes[:, 0]
    step = np.zeros(len(tokens) + 1, np.int32)
    np.add.at(step, starts + 1, 1)
    np.add.at(step, starts + sizes[:, 1] + 1, -1)
    found: NDArray[np.bool_] = (np.cumsum(step[:-1]) > 0) & (tokens != END)
    return found
