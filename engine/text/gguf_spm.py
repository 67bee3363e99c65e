"""A SentencePiece model from a GGUF header: the file that the `sentencepiece` library reads.

It is written in the wire format of protocol buffers, of which a model needs four forms. The field numbers are
those of https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct

import numpy as np

from fastslow.engine.text.gguf import PREFIX, GgufVocabulary, numbers_of

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
