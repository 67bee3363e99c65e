"""Stored answers, searched where they lie: a sealed file, mapped into memory, checked before it is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.documents import END, Documents
from fastslow.draft.suffix.sealed import Sealed, read_sealed, write_sealed
from fastslow.draft.suffix.search import best_search
from fastslow.draft.suffix.sources import SuffixMatch

FORMAT = "fastslow-corpus-1"


def load(path: Path, vocab: Mapping[str, int]) -> Sealed:
    """Map a corpus after checking all of it; see `Corpus.open`."""
    sealed = _read(path)
    if sealed.facts.get("vocabulary") != vocabulary_digest(vocab):
        raise ValueError(
            f"{path} was made with another vocabulary of "
            f"{sealed.facts.get('vocab_size')} ids; build it again with this model"
        )
    _check(path, sealed.arrays, vocab_size(vocab))
    return sealed


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


def unpack(path: Path, vocab: Mapping[str, int]) -> Documents:
    """All answers of a corpus, to add to them; checked as by `Corpus.open`."""
    arrays = load(path, vocab).arrays
    return Documents(arrays["tokens"], arrays["sizes"])


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
        self.path = path
        self.documents = len(sealed.arrays["sizes"])
        self.tokens = len(sealed.arrays["tokens"])
        self._search = best_search(sealed)

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

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        """See `Source.find`. Of more than MOST places, MOST are taken in equal steps. For one
        thread at a time."""
        return self._search.find(recent, ahead)
