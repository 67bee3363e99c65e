"""Stored answers, searched in a sealed file that is mapped into memory and checked before use."""

from __future__ import annotations

import ctypes
import hashlib
import json
from array import array
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.draft.suffix.documents import Documents
from fastslow.draft.suffix.sealed import Sealed, read_sealed, write_sealed
from fastslow.draft.suffix.sources import END, MAX_MATCH, MAX_PLACES, SuffixMatch
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.host.files import shown

FORMAT = "fastslow-corpus-1"
WIDTH = 4  # bytes of a token
NO_MATCH = SuffixMatch()


class Corpus:
    """Answers of the past and, for any end of a text, what came next in them.

    Places are sorted by the tokens before them (a suffix array of the reversed text; Manber and Myers 1993): the kernels
    find the longest match at once, by binary search.

    path: a file that `save` wrote. vocab: the vocabulary of the model that will be drafted for, piece -> id.
    find: see `Source.find`; of more than MAX_PLACES places, some in equal steps are taken. For one thread at a time.
    ValueError: no such file, damaged, not a corpus, or of another vocabulary.
    """

    def __init__(self, path: str | Path, vocab: Mapping[str, int]) -> None:
        sealed = _load(Path(path), vocab)
        self.largest = int(sealed.arrays["tokens"].max())  # of its token ids
        made = KernelSearch if library.available() else ArraySearch
        self.find = made(sealed).find


def save(path: str | Path, documents: Documents, vocab: Mapping[str, int]) -> None:
    """Index answers and write them to `path`, whole or not at all; ValueError where there is no answer.
    `vocab` is of the tokenizer that made the ids."""
    if not len(documents):
        raise ValueError(f"{path} would hold no answer")
    facts = {
        "format": FORMAT,
        "vocabulary": vocabulary_digest(vocab),
        "vocab_size": str(vocab_size(vocab)),
        "documents": str(len(documents)),
        "tokens": str(documents.tokens),
    }
    write_sealed(Path(path), documents.index(vocab_size(vocab)), facts)


def unpack(path: Path, vocab: Mapping[str, int]) -> Documents:
    """All answers of a corpus, to add to them; checked as by `Corpus`."""
    arrays = _load(path, vocab).arrays
    return Documents(arrays["tokens"], arrays["sizes"])


def describe(path: str | Path) -> dict[str, str | int]:
    """Check a corpus's seal, and give its format, vocabulary (a digest), vocab_size, documents and tokens.
    ValueError where it is damaged or no corpus."""
    facts = _read(Path(path)).facts
    digits = {name for name, value in facts.items() if value.isdecimal() and len(value) < 20}
    return {name: int(value) if name in digits else value for name, value in facts.items()}


def vocab_size(vocab: Mapping[str, int]) -> int:
    """The largest id of a vocabulary plus one."""
    return max(vocab.values(), default=0) + 1


def vocabulary_digest(vocab: Mapping[str, int]) -> str:
    """SHA-256 of all pieces and ids, in the order of the ids."""
    pairs = sorted((number, piece) for piece, number in vocab.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _load(path: Path, vocab: Mapping[str, int]) -> Sealed:
    sealed = _read(path)
    if sealed.facts.get("vocabulary") != vocabulary_digest(vocab):
        raise ValueError(
            f"{path} was made with another vocabulary of "
            f"{sealed.facts.get('vocab_size')!s:.20} ids; build it again with this model"
        )
    _check(path, sealed.arrays, vocab_size(vocab))
    return sealed


def _read(path: Path) -> Sealed:
    sealed = read_sealed(path)
    if (found := sealed.facts.get("format")) != FORMAT:
        raise ValueError(f"{path} has format {shown(found)}, which is not {FORMAT!r}")
    return sealed


def _check(path: Path, arrays: Mapping[str, NDArray[Any]], ids: int) -> None:
    """A seal shows that nothing changed since, not that it was right: no place may lead outside."""
    names = ("tokens", "sizes", "order", "buckets")
    if set(arrays) != set(names):
        raise ValueError(f"{path} holds tensors {shown(sorted(arrays))}, which are not a corpus's")
    tokens, sizes, order, buckets = (arrays[name] for name in names)
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


class KernelSearch:
    """A search that is one call of the kernels. Between two drafts a model's weights pass through the caches, so
    each Python line and object of a lookup comes from memory again: they are few, and memory is reused."""

    def __init__(self, sealed: Sealed) -> None:
        self._sealed = sealed  # holds the memory at the addresses
        arrays = sealed.arrays
        given = [
            library.address(name, arrays[name], library.INT32, arrays[name].size)
            for name in ("tokens", "order", "buckets")
        ]
        counts = len(arrays["tokens"]), len(arrays["order"])
        places = structures.CPlaces(*given, *counts, int(arrays["tokens"].max()) + 1)
        self._find = library.kernels().fs_find_runs
        self._places = ctypes.byref(places)
        self._make_room(0)

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        if ahead > self._ahead:
            self._make_room(ahead)
        text = array("i", recent)
        address, size = text.buffer_info()
        self._find(self._places, address, size, MAX_MATCH, MAX_PLACES, ahead, self._address)
        found = self._found
        length, count = found[0], found[1]
        if not length:
            return NO_MATCH
        taken = min(count, MAX_PLACES)
        begin = 2 + taken
        runs = []
        for size in found[2:begin]:
            runs.append(found[begin : begin + size])  # most of its numbers are never looked at
            begin += size
        return SuffixMatch(length, runs, count == taken)

    def _make_room(self, ahead: int) -> None:
        """Make room for runs of `ahead` tokens."""
        self._ahead = ahead
        self._found = array("i", bytes(WIDTH * (2 + MAX_PLACES + MAX_PLACES * ahead)))
        self._address = self._found.buffer_info()[0]


class ArraySearch:
    """The same without kernels: of the places after the last token those are kept that match one token more, and one
    more. The file may be written over while it is mapped: as in the kernels, no number of it leads outside."""

    def __init__(self, sealed: Sealed) -> None:
        self._text, self._order = sealed.arrays["tokens"], sealed.arrays["order"]
        self._buckets = sealed.arrays["buckets"]
        self._ids = int(self._text.max()) + 1

    def find(self, recent: list[int], ahead: int) -> SuffixMatch:
        if not 0 <= recent[-1] < self._ids:
            return NO_MATCH
        last = len(self._text) - 1
        low, high = np.clip(self._buckets[recent[-1]], 0, len(self._order))
        places, length = np.clip(self._order[low:high], 0, last), 0
        for token in recent[: -MAX_MATCH - 1 : -1]:
            more = places[self._text[np.minimum(places + length, last)] == token]
            if not len(more):
                break
            places, length = more, length + 1
        if not length:
            return NO_MATCH
        count = len(places)
        if count > MAX_PLACES:
            places = places[np.arange(MAX_PLACES) * count // MAX_PLACES]
        runs = [self._run(place, ahead) for place in places.tolist()]
        return SuffixMatch(length, runs, count <= MAX_PLACES)

    def _run(self, place: int, ahead: int) -> array[int]:
        """Up to `ahead` tokens that came next at a place, until its text ends."""
        run = self._text[max(0, place - ahead) : place][::-1].tolist()
        return array("i", takewhile(lambda token: 0 <= token < self._ids, run))  # END is -1
