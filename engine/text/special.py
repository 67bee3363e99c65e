"""Which pieces are marks rather than text, and which of them end an answer."""

from __future__ import annotations

import re

from fastslow.engine.text.settings import Settings
from fastslow.engine.text.tokenizer import Tokenizer
from fastslow.engine.text.vocabulary import Vocabulary

# openPangu keeps its marks as ordinary user-defined pieces that no file lists as special.
TURN_OPEN, TURN_CLOSE = "[unused9]", "[unused10]"
_MARK = re.compile(r"\[unused\d+\]")


def is_mark(piece: str) -> bool:
    """Whether the piece is one of openPangu's reserved `[unusedN]`."""
    return _MARK.fullmatch(piece) is not None


def is_pangu(vocabulary: Vocabulary | Tokenizer) -> bool:
    """Whether the vocabulary has openPangu's turn marks."""
    return None not in (vocabulary.token_id(TURN_OPEN), vocabulary.token_id(TURN_CLOSE))


def stop_ids(vocabulary: Vocabulary, settings: Settings) -> frozenset[int]:
    """Ids that end an answer: those of the configuration files, tokenizer_config.json's eos_token
    and openPangu's end of a turn."""
    pieces = [settings.eos_token, TURN_CLOSE if is_pangu(vocabulary) else None]
    found = (vocabulary.token_id(piece) for piece in pieces if piece is not None)
    return settings.eos_ids | {number for number in found if number is not None}
