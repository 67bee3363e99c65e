"""Pieces, ids and the bytes that each id stands for: what every kind of tokenizer shares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


class Vocabulary:
    """A table of pieces; decoding is joining the bytes of the ids and reading them as UTF-8."""

    def __init__(
        self,
        ids: Mapping[str, int],
        data: Mapping[int, bytes],
        special_ids: Collection[int],
        leading_spaces: int,
    ) -> None:
        """`ids`: piece -> id. `data`: id -> bytes; an id without bytes decodes to nothing.

        `leading_spaces`: how many spaces at the start of a text belong to the tokenizer, not to
        the text (SentencePiece's dummy prefix); decoding drops them.
        """
        self.special_ids = frozenset(special_ids)
        self.leading_spaces = leading_spaces
        self._ids = dict(ids)
        self._data = dict(data)
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        self._pieces = {number: piece for piece, number in self._ids.items()}

    def vocab(self) -> dict[str, int]:
        """A new dict of every piece, special and added ones too, to its id."""
        return dict(self._ids)

    def token_id(self, piece: str) -> int | None:
        """The id of exactly this piece, None when there is none (never the unknown token's id)."""
        return self._ids.get(piece)

    def piece(self, token_id: int) -> str | None:
        """The piece with this id, None when there is none."""
        return self._pieces.get(token_id)

    def begins_with(self, text: str, token_id: int | None) -> bool:
        """Whether `text` begins with the piece of this id written out."""
        piece = None if token_id is None else self.piece(token_id)
        return piece is not None and text.startswith(piece)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id adds to a text: UTF-8, possibly a part of a character; b"" for an id
        outside the vocabulary, since a model's padded rows may produce one."""
        return self._data.get(token_id, b"")

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
