"""The draft model's tokens and the target's: one vocabulary, or two mapped token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor

from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import RequestView

NO_MASS = -1e30  # a logit whose probability is 0, and with which sums stay finite


class VocabMap:
    """The target's tokens as the draft model's, and its logits as the target's: both the same."""

    def text(self, request: RequestView) -> Sequence[int]:
        """The request's text in the draft model's tokens; it only grows."""
        return request.tokens

    def token(self, token: int) -> int | None:
        """The draft model's token for a drafted token of the target; None = it has none, as where a
        thinking budget forces a token that it lacks."""
        return token

    def logits(self, logits_MV: Tensor) -> Tensor:
        """The draft model's logits [M, its V] as [M, the target's V]."""
        return logits_MV

    def release(self, requests: Collection[int]) -> None:
        """These request ids are gone."""


class PaddedTokens(VocabMap):
    """A map for models of one tokenizer, whose vocabularies are padded to different sizes: `own` logits, and
    `columns` of the target."""

    def __init__(self, own: int, columns: int) -> None:
        self._own = own
        self._columns = columns

    def text(self, request: RequestView) -> Sequence[int]:
        """Nothing where the draft model cannot read the text, which has tokens of the padding."""
        return request.tokens if max(request.tokens) < self._own else ()

    def token(self, token: int) -> int | None:
        return token if token < self._own else None

    def logits(self, logits_MV: Tensor) -> Tensor:
        room = max(0, self._columns - self._own)
        return F.pad(logits_MV[:, : self._columns], (0, room), value=NO_MASS)


class SharedTokens(VocabMap):
    """Maps the tokens that are in both vocabularies: the token-level intersection of Timor et al., arXiv
    2502.05202. Probabilities are the draft model's, restricted to them, over the target's `columns`
    logits, so drafts can be sampled.

    Tokens are the same if they add the same bytes, or are the same special token. A token of the text
    that the draft model lacks is read as several; a special token that it lacks is left out.
    """

    def __init__(self, target: Tokenizer, own: Tokenizer, columns: int) -> None:
        self._target = target
        self._own = own
        self._columns = columns
        theirs, self._by_bytes = _by_bytes(target), _by_bytes(own)
        self._longest = max(map(len, self._by_bytes), default=0)
        special = special_map(target, own)
        pairs = {
            theirs[data]: self._by_bytes[data] for data in theirs.keys() & self._by_bytes.keys()
        }
        share = len(pairs) / max(len(theirs), len(self._by_bytes), 1)
        logger.info("{:.0%} of the tokens are in common: these alone are drafted", share)
        # of several special tokens with one counterpart, the draft model drafts the first
        first = {theirs: ours for ours, theirs in sorted(special.items(), reverse=True)}
        pairs |= {ours: theirs for theirs, ours in first.items()}
        self._ids = dict(sorted(pairs.items()))
        self._targets = torch.tensor(list(self._ids), dtype=torch.long)
        self._sources = torch.tensor(list(self._ids.values()), dtype=torch.long)
        self._texts: dict[int, tuple[list[int], int]] = {}  # own tokens, target tokens read
        self._encoded: dict[int, list[int]] = {t: [o] for t, o in (self._ids | special).items()}

    def text(self, request: RequestView) -> Sequence[int]:
        ids, done = self._texts.get(request.id, ([], 0))
        if not done:
            ids = self._own.encode("")[:1]
            if ids != [self._own.bos_id]:
                ids = []
            # its own bos stands for the target's
            done = int(bool(ids) and request.tokens[0] == self._target.bos_id)
        for token in request.tokens[done:]:
            ids += self._encode(token)
        self._texts[request.id] = ids, len(request.tokens)
        return ids

    def token(self, token: int) -> int | None:
        return self._ids.get(token)

    def logits(self, logits_MV: Tensor) -> Tensor:
        if self._targets.device != logits_MV.device:
            self._targets = self._targets.to(logits_MV.device)
            self._sources = self._sources.to(logits_MV.device)
        own = logits_MV.index_select(1, self._sources)
        out = logits_MV.new_full((len(logits_MV), self._columns), NO_MASS)
        return out.index_copy_(1, self._targets, own)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._texts.pop(request, None)

    def _encode(self, token: int) -> list[int]:
        """A target's token in the draft model's tokens."""
        if token in self._encoded:
            return self._encoded[token]
        found = None
        if token not in self._target.special_ids:
            data = self._target.token_bytes(token)
            with suppress(UnicodeDecodeError):  # a part of a character
                found = self._own.encode_exactly(data.decode())
            found = found or self._part_of_character(data)
        return self._encoded.setdefault(token, found or [])

    def _part_of_character(self, data: bytes) -> list[int] | None:
        """Its tokens, the longest first; None if there are none."""
        found: list[int] = []
        while data:
            sizes = range(min(len(data), self._longest), 0, -1)
            size = next((n for n in sizes if data[:n] in self._by_bytes), None)
            if size is None:
                return None
            found.append(self._by_bytes[data[:size]])
            data = data[size:]
        return found


def special_map(source: Tokenizer, other: Tokenizer) -> dict[int, int]:
    """Special tokens of one vocabulary -> those of the other with the same piece, or else the same use."""
    found: dict[int, int] = {}
    for number in source.special_ids:
        piece = source.piece(number)
        same = None if piece is None else other.token_id(piece)
        if same is not None and same in other.special_ids:
            found[number] = same
    if other.eos_ids:
        for number in source.eos_ids:
            found.setdefault(number, min(other.eos_ids))
    if source.bos_id is not None and other.bos_id is not None:
        found.setdefault(source.bos_id, other.bos_id)
    return found


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Tokens by their bytes. The last of equal ones: in SentencePiece a letter's own token comes after its byte's."""
    return {
        data: number
        for number in range(tokenizer.vocab_size)
        if number not in tokenizer.special_ids and (data := tokenizer.token_bytes(number))
    }
