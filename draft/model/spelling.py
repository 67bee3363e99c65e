"""What drafting across vocabularies asks of a tokenizer, and of two that are compared."""

from __future__ import annotations

import codecs
from typing import Protocol


class Spelling(Protocol):
    """Tokens and the bytes that they add to a text; the engine's tokenizers are such."""

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]  # marks, not text
    leading_spaces: int  # spaces at the start of a text that are the tokenizer's own

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...
    def token_id(self, piece: str) -> int | None: ...
    def piece(self, token_id: int) -> str | None: ...


class Speller:
    """A tokenizer, asked for tokens in the middle of a text.

    Args:
        tokenizer: of the model that will read the tokens.
    """

    def __init__(self, tokenizer: Spelling) -> None:
        self.tokenizer = tokenizer
        # Of tokens alike the last: where a byte has a token of its own beside the letter's, as in
        # SentencePiece, it stands before it.
        self.ids = {
            data: number
            for number in range(tokenizer.vocab_size)
            if number not in tokenizer.special_ids and (data := tokenizer.token_bytes(number))
        }
        self._longest = max(map(len, self.ids), default=0)

    def start(self) -> list[int]:
        """What stands before every text: a bos, or nothing."""
        begun = self.tokenizer.encode("")[:1]
        return begun if begun == [self.tokenizer.bos_id] else []

    def inside(self, text: str) -> list[int] | None:
        """Tokens that add exactly this to a text before them; None if the tokenizer has no such.

        Some put a space before whatever they encode. So where the bytes are not right, the text is
        encoded behind a line break, and of that the tokens that spell the text are taken.
        """
        data = text.encode()
        for before in ("", "\n"):
            ids = self.tokenizer.encode(before + text, add_special=False)
            if (found := self._ending(ids, data)) is not None:
                return found
        return None

    def bytewise(self, data: bytes) -> list[int] | None:
        """Tokens for the rest of a character, the longest first; None if the tokenizer lacks one."""
        found: list[int] = []
        while data:
            sizes = range(min(len(data), self._longest), 0, -1)
            size = next((n for n in sizes if data[:n] in self.ids), None)
            if size is None:
                return None
            found.append(self.ids[data[:size]])
            data = data[size:]
        return found

    def _ending(self, ids: list[int], data: bytes) -> list[int] | None:
        """The last of these tokens that spell the data."""
        size = 0
        for place in range(len(ids), -1, -1):
            if place < len(ids):
                size += len(self.tokenizer.token_bytes(ids[place]))
            if size >= len(data):
                found = ids[place:]
                spelt = b"".join(map(self.tokenizer.token_bytes, found))
                return found if spelt == data else None
        return None


def marks(here: Spelling, there: Spelling) -> dict[int, int]:
    """Special tokens of one vocabulary -> those of the other that mean the same.

    The same piece, else the same office: to begin a text or to end an answer.
    """
    found: dict[int, int] = {}
    for number in here.special_ids:
        piece = here.piece(number)
        other = None if piece is None else there.token_id(piece)
        if other is not None and other in there.special_ids:
            found[number] = other
    if there.eos_ids:
        for number in here.eos_ids:
            found.setdefault(number, min(there.eos_ids))
    if here.bos_id is not None and there.bos_id is not None:
        found.setdefault(here.bos_id, there.bos_id)
    return found


def whole(data: bytes) -> tuple[str, bytes]:
    """The text of bytes, and what is left of a last character that is not whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def missing(begun: bytes) -> int:
    """Bytes that a character lacks of which these are the first."""
    lead = begun[0]
    return (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) - len(begun)


def inside_character(data: bytes) -> bool:
    """Whether the data begin with what is not the first byte of a character."""
    return bool(data) and data[0] & 0xC0 == 0x80
