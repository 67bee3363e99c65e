"""Answers on their way into a corpus, oldest first."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.found import LONGEST
from fastslow.draft.suffix.order import END, byte_order, sort_places

LARGEST = 2**31 - 2  # tokens: places are int32


class Documents:
    """Texts back to front, each ended by END.

    Args:
        tokens: int32 [N] as they are kept.
        sizes: int32 [D, 2]: tokens of each text with END, and how many of them are answer; what
            stands before the answer is matched, but never proposed.
    """

    def __init__(
        self,
        tokens: NDArray[np.int32] | None = None,
        sizes: NDArray[np.int32] | None = None,
    ) -> None:
        self._tokens = array("i", b"" if tokens is None else tokens.tobytes())
        self._sizes: list[tuple[int, int]] = [] if sizes is None else sizes.tolist()

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def tokens(self) -> int:
        """Tokens of all texts, ends included."""
        return len(self._tokens)

    def add(self, answer: Sequence[int], context: Sequence[int] = ()) -> None:
        """The newest answer.

        Args:
            answer: token ids, the end token included.
            context: what stood before it; its last LONGEST tokens are kept.

        Raises:
            ValueError: there is no room for more.
        """
        text = [*context[-LONGEST:], *answer]
        if len(self._tokens) + len(text) + 1 > LARGEST:
            raise ValueError(f"a corpus of more than {LARGEST} tokens cannot be indexed")
        self._tokens.extend(reversed(text))
        self._tokens.append(END)
        self._sizes.append((len(text) + 1, len(answer)))

    def trim(self, most: int) -> int:
        """Drop the oldest texts until at most `most` tokens are left; returns how many went."""
        gone, tokens = 0, len(self._tokens)
        while tokens > most:
            tokens -= self._sizes[gone][0]
            gone += 1
        del self._tokens[: len(self._tokens) - tokens], self._sizes[:gone]
        return gone

    def index(self, vocab_size: int, rounds: Iterable[int]) -> dict[str, NDArray[Any]]:
        """The arrays of a corpus; `rounds` are `depths(vocab_size)`.

        Returns:
            tokens int32 [N] and sizes int32 [D, 2] as above; order int32 [P], the places from
            which an answer goes on, sorted by what stands before them; buckets int32 [V, 2],
            where in `order` those begin and end that have token v before them.
        """
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
    """Which places have an answer's token next, and something before them: bool [N]."""
    starts = np.cumsum(sizes[:, 0], dtype=np.int64) - sizes[:, 0]
    step = np.zeros(len(tokens) + 1, np.int32)
    np.add.at(step, starts + 1, 1)
    np.add.at(step, starts + sizes[:, 1] + 1, -1)
    found: NDArray[np.bool_] = (np.cumsum(step[:-1]) > 0) & (tokens != END)
    return found
