"""Stored answers, searched where they lie: a sealed file, mapped into memory."""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.found import LONGEST, MOST, NOTHING, Found
from fastslow.draft.suffix.order import END
from fastslow.draft.suffix.sealed import Sealed, read_sealed, write_sealed

FORMAT = "fastslow-corpus-1"
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
        path = Path(path)
        sealed = _read(path)
        if sealed.facts.get("vocabulary") != vocabulary_digest(vocab):
            raise ValueError(
                f"{path} was made with another vocabulary of "
                f"{sealed.facts.get('vocab_size')} ids; build it again with this model"
            )
        _check(path, sealed.arrays, vocab_size(vocab))
        return cls(path, sealed)

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


def save(
    path: str | Path, documents: Documents, vocab: Mapping[str, int], rounds: Iterable[int]
) -> None:
    """Index answers and write them to `path`, whole or not at all.

    Args:
        documents: at least one.
        vocab: of the tokenizer that made the ids.
        rounds: `depths(vocab_size(vocab))`, perhaps with a bar around it.

    Raises:
        ValueError: there is no answer.
    """
    if not len(documents):
        raise ValueError(f"{path} would hold no answer")
    facts = {
        "format": FORMAT,
        "vocabulary": vocabulary_digest(vocab),
        "vocab_size": str(vocab_size(vocab)),
        "documents": str(len(documents)),
        "tokens": str(documents.tokens),
    }
    write_sealed(Path(path), documents.index(vocab_size(vocab), rounds), facts)


def describe(path: str | Path) -> dict[str, str | int]:
    """Check a corpus's seal, without a vocabulary, and give its format, vocabulary (a digest),
    vocab_size, documents and tokens.

    Raises:
        ValueError: no such file, damaged, or not a corpus.
    """
    facts = _read(Path(path)).facts
    return {name: int(value) if value.isdigit() else value for name, value in facts.items()}


def vocab_size(vocab: Mapping[str, int]) -> int:
    """Ids that a vocabulary reaches."""
    return max(vocab.values(), default=0) + 1


def vocabulary_digest(vocab: Mapping[str, int]) -> str:
    """What tells vocabularies apart: SHA-256 of all pieces and ids, in the order of the ids."""
    pairs = sorted((number, piece) for piece, number in vocab.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _read(path: Path) -> Sealed:
    sealed = read_sealed(path)
    if (found := sealed.facts.get("format")) != FORMAT:
        raise ValueError(f"{path} has format {found!r}, which is not {FORMAT!r}")
    return sealed


def _check(path: Path, arrays: Mapping[str, NDArray[Any]], ids: int) -> None:
    """A seal tells that nothing changed since, not that it was right: no place may lead outside."""
    if set(arrays) != {"tokens", "sizes", "order", "buckets"}:
        raise ValueError(f"{path} holds tensors {sorted(arrays)}, which are not a corpus's")
    tokens, sizes, order, buckets = (arrays[n] for n in ("tokens", "sizes", "order", "buckets"))
    good = (
        all(array.dtype == np.int32 for array in arrays.values())
        and (tokens.ndim, order.ndim) == (1, 1)
        and sizes.shape[1:] == (2,)
        and buckets.shape == (ids, 2)
        and _inside(tokens, END, ids - 1)
        and tokens[-1:].tolist() == [END]
        and _inside(order, 1, len(tokens) - 1)
        and _inside(buckets, 0, len(order))
        and bool((buckets[:, 0] <= buckets[:, 1]).all())
        and bool((sizes[:, 0] > 0).all())
        and int(sizes[:, 0].sum(dtype=np.int64)) == len(tokens)
        and bool(((sizes[:, 1] >= 0) & (sizes[:, 1] < sizes[:, 0])).all())
    )
    if not good:
        raise ValueError(f"{path} holds numbers outside their range; build it again")


def _inside(array: NDArray[Any], low: int, high: int) -> bool:
    return not array.size or bool(low <= array.min() and array.max() <= high)
