"""Stored answers, searched where they lie: a sealed file, mapped into memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastslow.draft.suffix.found import Found
from fastslow.draft.suffix.sealed import Sealed
from fastslow.draft.suffix.search import best_search
from fastslow.draft.suffix.stored import load


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

    def find(self, recent: list[int], ahead: int) -> Found:
        """See `Source.find`. Of more than MOST places, MOST are taken in equal steps. For one
        thread at a time."""
        return self._search.find(recent, ahead)
