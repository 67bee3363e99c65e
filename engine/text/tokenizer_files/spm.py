"""Tokenizers of the `sentencepiece` library: a tokenizer.model, or one made from a GGUF header.

The latter is written in the wire format of protocol buffers, of which a model needs four forms. The field numbers
are those of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from fastslow.engine.text.tokenizer_files.config import (
    PREFIX,
    GgufVocabulary,
    Settings,
    numbers_of,
    read_data,
)
from fastslow.engine.text.vocabulary import (
    SPACE,
    Tokenizer,
    check_unicode,
    is_mark,
    is_unicode,
    stop_ids,
)

EVERY = 2**31  # spaces: more than any text starts with


class SpmTokenizer(Tokenizer):
    """A SentencePiece model, with the pieces that tokenizer_config.json adds to it."""

    @classmethod
    def read(cls, path: Path, settings: Settings) -> SpmTokenizer:
        """Raises ValueError if the file at `path` is not a SentencePiece model."""
        try:
            return cls(read_data(path), settings)
        except (RuntimeError, UnicodeDecodeError) as error:  # it reads pieces that are no text
            raise ValueError(f"{path} is not a SentencePiece model: {error}") from None

    def __init__(self, file: bytes, settings: Settings) -> None:
        """Raises RuntimeError or UnicodeDecodeError for bytes that are not a SentencePiece model."""
        library = sentencepiece.SentencePieceProcessor()
        library.LoadFromSerializedProto(file)
        pieces = [library.id_to_piece(number) for number in range(library.piece_size())]
        ids = {piece: number for number, piece in enumerate(pieces)}
        added = {p: number for p, number in settings.added.items() if number >= len(pieces)}
        control = {
            piece
            for number, piece in enumerate(pieces)
            if library.is_control(number) or library.is_unknown(number)
        }
        data = {
            number: bytes([int(piece[3:5], 16)])
            if library.is_byte(number)
            else piece.replace(SPACE, " ").encode()
            for number, piece in enumerate(pieces)
        }
        data |= {number: piece.encode() for piece, number in added.items()}
        ids |= added
        marks = control | {piece for piece in ids if piece in settings.special or is_mark(piece)}
        super().__init__(
            data, {ids[piece] for piece in marks}, _prefix(library, pieces), added.values()
        )
        self._library = library
        self._added = added
        self._added_pieces = {number: piece for piece, number in added.items()}
        # User-defined pieces are found by the library itself, the rest of the special ones are not.
        split = control | set(added) | (settings.special & ids.keys())
        longest_first = sorted(split, key=len, reverse=True)
        self._apart = {piece: ids[piece] for piece in split}
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        own_bos: int = library.bos_id()
        named = ids.get(settings.bos_token) if settings.bos_token is not None else None
        self.bos_id = named if named is not None else own_bos if own_bos >= 0 else settings.bos_id
        self._add_bos = settings.add_bos is not False
        own_eos: int = library.eos_id()
        self.eos_ids = stop_ids(self, settings) | ({own_eos} if own_eos >= 0 else set())

    def vocab(self) -> dict[str, int]:
        own = range(self._library.piece_size())
        return {self._library.id_to_piece(number): number for number in own} | self._added

    def token_id(self, piece: str) -> int | None:
        if piece in self._added:
            return self._added[piece]
        if not is_unicode(piece):
            return None
        found: int = self._library.piece_to_id(piece)
        return found if self.piece(found) == piece else None  # else it is the unknown piece's

    def piece(self, token_id: int) -> str | None:
        if 0 <= token_id < self._library.piece_size():
            found: str = self._library.id_to_piece(token_id)
            return found
        return self._added_pieces.get(token_id)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """A bos is added unless `add_bos_token` is false.

        Text between special tokens is encoded by itself, each part with the model's own prefix space."""
        check_unicode(text)
        ids: list[int] = []
        for index, part in enumerate(self._split.split(text)):
            # re.split with a group: the odd parts are the separators.
            ids += [self._apart[part]] if index % 2 else self._library.encode(part)
        wanted = add_special and self._add_bos and not self.begins_with(text, self.bos_id)
        return [self.bos_id, *ids] if wanted and self.bos_id is not None else ids


def _prefix(library: sentencepiece.SentencePieceProcessor, pieces: Sequence[str]) -> int:
    """Count the leading spaces that the decoder drops: it is asked to decode a piece that begins with one."""
    spaced = min((piece for piece in pieces if piece.startswith(SPACE)), key=len, default=None)
    if spaced is None:
        return 0
    number = library.piece_to_id(spaced)
    once, thrice = library.decode([number]), library.decode([number] * 3)
    if once.startswith(" "):
        return 0
    return EVERY if spaced == SPACE and not thrice else 1


BPE = 2  # a model whose pieces are merged by their scores
NORMAL, UNKNOWN = 1, 2
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of the model
PIECE, SCORE, TYPE = 1, 2, 3  # of a piece
MODEL_TYPE, BYTE_FALLBACK = 3, 35  # of the trainer
IDS = {"unknown_token_id": 40, "bos_token_id": 41, "eos_token_id": 42, "padding_token_id": 43}
CHARSMAP, DUMMY_PREFIX, FEWER_SPACES, ESCAPED = 2, 3, 4, 5  # of the normalizer
NOTHING = 2**64 - 1  # -1, for an id that is not there
BYTE = 6


def build_spm(vocabulary: GgufVocabulary) -> bytes:
    """A tokenizer.model. ValueError for a header whose scores do not fit."""
    count = len(vocabulary.tokens)
    scores = numbers_of(vocabulary.fields, "scores", count, np.floating)
    pieces = b"".join(
        _part(PIECES, _part(PIECE, token.encode()) + _float(SCORE, score) + _number(TYPE, kind))
        for token, score, kind in zip(vocabulary.tokens, scores.tolist(), vocabulary.types)
    )
    ids = {name: vocabulary.id_of(name) for name in IDS}
    if ids["unknown_token_id"] is None and UNKNOWN in vocabulary.types:
        ids["unknown_token_id"] = vocabulary.types.index(UNKNOWN)
    trainer = _number(MODEL_TYPE, BPE) + _number(BYTE_FALLBACK, BYTE in vocabulary.types)
    for name, field in IDS.items():
        number = ids[name]
        trainer += _number(field, NOTHING if number is None else number)
    flag = vocabulary.flag
    spaces = _number(DUMMY_PREFIX, flag("add_space_prefix", True))
    spaces += _number(FEWER_SPACES, flag("remove_extra_whitespaces", False)) + _number(ESCAPED, 1)
    table = vocabulary.fields.get(f"{PREFIX}precompiled_charsmap")
    if isinstance(table, np.ndarray) and table.dtype.itemsize == 1:
        spaces = _part(CHARSMAP, table.tobytes()) + spaces
    return pieces + _part(TRAINER, trainer) + _part(NORMALIZER, spaces)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _part(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
