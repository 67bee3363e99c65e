"""Between the draft model's tokens and the target's: the same, or mapped id by id."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fastslow.draft.model.spelling import Speller, Spelling, marks
from fastslow.engine.types import RequestView


class Lexicon(Protocol):
    """What a target's token is to the draft model, and what the draft's logits are to the target."""

    def text(self, request: RequestView) -> Sequence[int]:
        """The request's text in the draft model's tokens; it only grows."""

    def token(self, token: int) -> int | None:
        """The draft model's token for one of the target's that is drafted; None = it has none, as
        where a thinking budget forces a token that it cannot say."""

    def logits(self, logits_MV: Tensor) -> Tensor:
        """The draft model's logits [M, its V] as [M, the target's V]."""

    def release(self, requests: Collection[int]) -> None:
        """These request ids are gone."""


class SameLexicon:
    """Both models share a vocabulary."""

    def text(self, request: RequestView) -> Sequence[int]:
        return request.tokens

    def token(self, token: int) -> int:
        return token

    def logits(self, logits_MV: Tensor) -> Tensor:
        return logits_MV

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""


NEVER = -1e30  # a logit whose probability is 0, and with which sums stay finite


@dataclass(slots=True)
class _Read:
    ids: list[int] = field(default_factory=list)
    seen: int = 0  # target tokens that they stand for


class CommonLexicon:
    """The draft model speaks only tokens that both vocabularies hold; its law is that of its own
    tokens restricted to them, over the target's vocabulary, so drafts can be sampled.

    The token-level intersection of Timor et al., arXiv 2502.05202. Tokens are the same if they add
    the same bytes, or are the same marks. A token of the text that the draft model lacks is read
    in its own tokens for it; a mark that it lacks is left out.

    Args:
        target: the target's tokenizer.
        own: the draft model's.
        columns: logits of the target.
    """

    def __init__(self, target: Speller, own: Speller, columns: int) -> None:
        self._target = target
        self._own = own
        self._columns = columns
        self._marks = marks(target.tokenizer, own.tokenizer)
        pairs = {target.ids[data]: own.ids[data] for data in target.ids.keys() & own.ids.keys()}
        # of several marks that became one here, the draft model means the first
        back = {there: here for here, there in sorted(self._marks.items(), reverse=True)}
        pairs |= {here: there for there, here in back.items()}
        self._ids = dict(sorted(pairs.items()))
        self._here = torch.tensor(list(self._ids))
        self._there = torch.tensor(list(self._ids.values()))
        self._read: dict[int, _Read] = {}
        self._spelt: dict[int, list[int]] = {t: [o] for t, o in (self._ids | self._marks).items()}

    def text(self, request: RequestView) -> Sequence[int]:
        read = self._read.setdefault(request.id, _Read())
        if not read.seen:
            read.ids = self._own.start()
            # its own beginning stands for the target's
            read.seen = int(bool(read.ids) and request.tokens[0] == self._target.tokenizer.bos_id)
        for token in request.tokens[read.seen :]:
            read.ids += self._spell(token)
        read.seen = len(request.tokens)
        return read.ids

    def token(self, token: int) -> int | None:
        return self._ids.get(token)

    def logits(self, logits_MV: Tensor) -> Tensor:
        if self._here.device != logits_MV.device:
            self._here = self._here.to(logits_MV.device)
            self._there = self._there.to(logits_MV.device)
        ours = logits_MV.index_select(1, self._there)
        theirs = logits_MV.new_full((len(logits_MV), self._columns), NEVER)
        return theirs.index_copy_(1, self._here, ours)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._read.pop(request, None)

    def _spell(self, token: int) -> list[int]:
        if token not in self._spelt:
            self._spelt[token] = self._spell_out(self._target.tokenizer, token)
        return self._spelt[token]

    def _spell_out(self, target: Spelling, token: int) -> list[int]:
        if token in target.special_ids:
            return []
        data = target.token_bytes(token)
        try:
            found = self._own.inside(data.decode())
        except UnicodeDecodeError:  # a part of a character
            found = None
        return found or self._own.bytewise(data) or []


def shared(target: Speller, own: Speller) -> float:
    """Tokens in common, as a share of the larger vocabulary."""
    both = len(target.ids.keys() & own.ids.keys())
    return both / max(len(target.ids), len(own.ids), 1)
