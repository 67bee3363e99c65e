"""Pieces, ids and the bytes that each id stands for: what every kind of tokenizer shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterable, Mapping


class Vocabulary(ABC):
    """A table of bytes; decoding is joining the bytes of the ids and reading them as UTF-8.

    Pieces stay in the library that reads text. A second table of them in Python's objects took more
    memory than the library itself: 16 MB for 49,152 pieces.
    """

    def __init__(
        self, data: Mapping[int, bytes], special_ids: Collection[int], leading_spaces: int
    ) -> None:
        """`data`: id -> bytes, for every id that there is.

        `leading_spaces`: how many spaces at the start of a text belong to the tokenizer, not to
        the text (SentencePiece's dummy prefix); decoding drops them.
        """
        self.special_ids = frozenset(special_ids)
        self.leading_spaces = leading_spaces
        self.vocab_size = max(data, default=-1) + 1
        each = [data.get(number, b"") for number in range(self.vocab_size)]
        self._bytes = b"".join(each)
        self._bounds = array("Q", [0])  # id n owns bytes bounds[n] : bounds[n + 1]
        for some in each:
            self._bounds.append(self._bounds[-1] + len(some))

    @abstractmethod
    def vocab(self) -> dict[str, int]:
        """A new dict of every piece, special and added ones too, to its id."""

    @abstractmethod
    def token_id(self, piece: str) -> int | None:
        """The id of exactly this piece, None when there is none (never the unknown token's id)."""

    @abstractmethod
    def piece(self, token_id: int) -> str | None:
        """The piece with this id, None when there is none."""

    def begins_with(self, text: str, token_id: int | None) -> bool:
        """Whether `text` begins with the piece of this id written out."""
        piece = None if token_id is None else self.piece(token_id)
        return piece is not None and text.startswith(piece)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id adds to a text: UTF-8, possibly a part of a character; b"" for an id
        outside the vocabulary, since a model's padded rows may produce one."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        return self._bytes[self._bounds[token_id] : self._bounds[token_id + 1]]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, one for each maximal part of
        a character, as in the Unicode standard (3.9, U+FFFD substitution)."""
        hidden = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(token) for token in ids if token not in hidden)
        text = data.decode("utf-8", "replace")
        prefix = len(text[: self.leading_spaces]) - len(text[: self.leading_spaces].lstrip(" "))
        return text[prefix:]


def check_unicode(text: str) -> None:
    """Raise ValueError if `text` holds half a surrogate pair, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has a lone surrogate at position {error.start}, which is not a character"
        ) from None


def is_unicode(text: str) -> bool:
    """Whether the libraries can be asked about a text: no lone surrogate in it."""
    try:
        check_unicode(text)
    except ValueError:
        return False
    return True
