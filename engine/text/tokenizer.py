"""What the engine asks of a tokenizer, and the choice of one for a checkpoint folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from fastslow.engine.heap import give_back
from fastslow.engine.text.settings import read_settings


class Tokenizer(Protocol):
    """Text to ids and back."""

    vocab_size: int  # number of ids; a model's logits may have more columns
    bos_id: int | None  # begins a text; None: the model has no such token
    eos_ids: frozenset[int]  # each of them ends an answer
    special_ids: frozenset[int]  # marks, not text; decode leaves them out by default
    leading_spaces: int  # spaces at the start of a text that decode drops

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Ids of `text`. Special tokens written out in it are read as such.

        `add_special`: also add what the tokenizer's own files put around a text, in most models
        a bos in front; a bos that the text already begins with is not doubled.
        Raises ValueError if `text` is not valid Unicode (a lone surrogate).
        """

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`, without special tokens if `skip_special`. Ids outside the vocabulary have
        no text; invalid UTF-8 becomes U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id adds to a text, perhaps a part of a character."""

    def token_id(self, piece: str) -> int | None:
        """Id of exactly this piece, None if there is none."""

    def piece(self, token_id: int) -> str | None:
        """Piece of this id, None if there is none."""

    def vocab(self) -> dict[str, int]:
        """Every piece with its id."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: `tokenizer.json` if there is one, else the
    SentencePiece `tokenizer.model`. Only data is read: no pickle, no code from the folder.

    Raises ValueError if there is neither, or if a file is broken.
    """
    found = _load(Path(folder))
    give_back()  # of a large vocabulary more was made on the way than is kept
    return found


def _load(folder: Path) -> Tokenizer:
    # Imported here: a run needs one of the two libraries.
    if (path := folder / "tokenizer.json").is_file():
        from fastslow.engine.text.hf import HfTokenizer

        return HfTokenizer(path, read_settings(folder))
    if (path := folder / "tokenizer.model").is_file():
        from fastslow.engine.text.spm import SpmTokenizer

        return SpmTokenizer(path, read_settings(folder))
    raise ValueError(f"{folder} has neither tokenizer.json nor tokenizer.model")


def same_vocabulary(a: Tokenizer, b: Tokenizer) -> str | None:
    """None if both have the same pieces with the same ids, else one sentence that says where they
    differ. A draft model's tokens mean the same to its target only then."""
    if a.vocab_size != b.vocab_size:
        return f"the vocabularies have {a.vocab_size} and {b.vocab_size} ids"
    for number in range(a.vocab_size):
        if (ours := a.piece(number)) != (theirs := b.piece(number)):
            return f"token id {number} is {ours!r} in one vocabulary, {theirs!r} in the other"
    return None
