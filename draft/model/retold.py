"""A drafting model with other tokens: what it says is told again in the target's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from loguru import logger
from torch import Tensor

from fastslow.draft.model.chain import best_of
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.draft.model.lexicon import CommonLexicon, shared
from fastslow.draft.model.lockstep import Lockstep, Run
from fastslow.draft.model.spelling import Speller, Spelling, inside_character, marks, missing, whole
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.types import ModelOutput, RequestView, Segment, TargetProbs, Tree


class Teller:
    """Tokens of the draft model told in the target's, through their text.

    Args:
        own: the draft model's tokenizer.
        target: the target's.
    """

    def __init__(self, own: Spelling, target: Speller) -> None:
        self._own = own
        self._target = target
        self._marks: Mapping[int, int] = marks(own, target.tokenizer)

    def tell(self, drafted: Sequence[int], begun: bytes) -> tuple[list[int], bool]:
        """The target's tokens for what was drafted, and whether more could follow.

        begun: the first bytes of a character that the target has half written. What the draft says
        must go on with it, and is of no use if it does not. The end of the draft that is not a
        whole character is left out.
        """
        told: list[int] = []
        said = b""
        for token in drafted:
            if token not in self._own.special_ids:
                said += self._own.token_bytes(token)
                continue
            spelt = self._spell(said, begun)
            mark = self._marks.get(token)
            if spelt is None or mark is None:
                return told + (spelt or []), False
            told += [*spelt, mark]
            said, begun = b"", b""
            if mark in self._target.tokenizer.eos_ids:
                return told, False
        spelt = self._spell(said, begun)
        return told + (spelt or []), spelt is not None

    def _spell(self, said: bytes, begun: bytes) -> list[int] | None:
        """Tokens for this text; None if the target's tokenizer cannot spell it."""
        told: list[int] = []
        if begun:
            if not said.startswith(begun):
                return [] if begun.startswith(said) else None
            rest = said[len(begun) :]
            lacks = missing(begun)
            if len(rest) < lacks:
                return []
            letters = self._target.bytewise(rest[:lacks])
            if letters is None:
                return None
            told, said = letters, rest[lacks:]
        text, left = whole(said)
        if text.encode() + left != said:
            return None  # no text
        found = self._target.inside(text) if text else []
        return None if found is None else told + found


LONGEST = 96  # tokens of the end that are encoded each time
AGAIN = 16  # of which so many stay open when the others are settled


class Follower:
    """The draft model's tokens for a text of the target's.

    The text is encoded as it would be for the draft model, not token by token, but only its end
    again and again: what stands before is settled.

    Args:
        target: whose tokens come in.
        own: whose tokens come out.
        marks: special tokens of the target -> the draft model's; others are left out.
    """

    def __init__(self, target: Spelling, own: Speller, marks: Mapping[int, int]) -> None:
        self._target = target
        self._own = own
        self._marks = marks
        self._settled: list[int] = []
        self._end = b""  # text behind what is settled
        self._cut = False  # whether it goes on with what is settled, so no space goes before it
        self._silent = True  # no text was read yet
        self._seen = 0  # tokens of the target that were read
        self.begun = b""  # a character at the end that is not whole, and so not in the tokens

    @property
    def settled(self) -> int:
        """How many of the tokens will never change."""
        return len(self._settled)

    def follow(self, tokens: Sequence[int]) -> list[int]:
        """All of the text, which begins as the last one did, in the draft model's tokens."""
        for place in range(self._seen, len(tokens)):
            self._read(tokens[place], first=place == 0)
        self._seen = len(tokens)
        text, self.begun = whole(self._end)
        ids = self._encode(text)
        if len(ids) > LONGEST:
            ids = self._settle(ids, text)
        return [*self._settled, *ids]

    def _read(self, token: int, first: bool) -> None:
        if first:
            self._settled = self._own.start()
        if token not in self._target.special_ids:
            data = self._target.token_bytes(token)
            if self._silent and self._target.leading_spaces:
                data = data.removeprefix(b" ")
            self._end += data
            self._silent = False
            return
        if first and self._settled and token == self._target.bos_id:
            return  # the draft model's own beginning stands for it
        self._settled += self._encode(whole(self._end)[0])
        self._end, self._cut = b"", False
        if (mark := self._marks.get(token)) is not None:
            self._settled.append(mark)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        found = self._own.inside(text) if self._cut else None
        return self._own.tokenizer.encode(text, add_special=False) if found is None else found

    def _settle(self, ids: list[int], text: str) -> list[int]:
        """Settle all but a few, up to a place between two characters.

        A tokenizer that changes the text's bytes gives no place to cut it.
        """
        data = text.encode()
        for first in range(len(ids) - AGAIN, 0, -1):
            kept = b"".join(map(self._own.tokenizer.token_bytes, ids[first:]))
            if not data.endswith(kept):
                return ids
            if not inside_character(kept):
                self._settled += ids[:first]
                self._end, self._cut = kept + self.begun, True
                return ids[first:]
        return ids


class Retold:
    """One request's chain while it is drafted: chosen, the draft model's best token after each.

    Args:
        text: what it follows.
        most: nodes to draft, in the target's tokens.
        room: tokens that the draft model may say.
        teller: its tokens -> the target's.
        vocabulary: its tokens; logits may have more columns.
        begun: see `Teller.tell`.
    """

    def __init__(
        self, text: DraftText, most: int, room: int, teller: Teller, vocabulary: int, begun: bytes
    ) -> None:
        self.text = text
        self._most = most
        self._room = room
        self._teller = teller
        self._vocabulary = vocabulary
        self._begun = begun
        self._drafted: list[int] = []
        self._told: list[int] = []
        self._goes_on = True

    @property
    def open(self) -> bool:
        goes_on = self._goes_on and len(self._drafted) < self._room
        return goes_on and len(self._told) < self._most

    def rows(self, cache: KVCache) -> list[Segment]:
        return [self.text.rest(cache)]

    def take(self, out: ModelOutput) -> None:
        token = best_of(out) if self.text.only_best else self._best_known(out.logits[0])
        self._drafted.append(token)
        self.text.tokens.append(token)
        self._told, self._goes_on = self._teller.tell(self._drafted, self._begun)

    def stop(self) -> None:
        self._goes_on = False

    def tree(self) -> Tree:
        return Tree.chain(self._told[: self._most])

    def _best_known(self, logits_V: Tensor) -> int:
        """The likeliest of the tokens that the tokenizer knows."""
        best, token = logits_V[: self._vocabulary].max(dim=-1)
        if not math.isfinite(best):
            raise FloatingPointError("the draft model's logits are not finite numbers")
        return int(token)


class RetoldDraft(Lockstep):
    """Chains from a model of any vocabulary, its text encoded again in the target's tokens.

    String-level exact match of Timor et al., arXiv 2502.05202: the draft model goes on, greedily,
    with the text of the request; its bytes become tokens of the target, which are *chosen* nodes,
    so the answer follows the target's law at any temperature.

    Args:
        model: the drafting model.
        kv: pages of its own.
        target: the target's tokenizer.
        own: the draft model's.
    """

    def __init__(self, model: Model, kv: DraftKV, target: Spelling, own: Spelling) -> None:
        super().__init__(model, kv)
        self._target = target
        self._speller = Speller(own)
        self._teller = Teller(own, Speller(target))
        self._marks = marks(target, own)
        self._followed: dict[int, Follower] = {}
        self._max_len: dict[int, int] = {}

    def release(self, requests: Collection[int]) -> None:
        super().release(requests)
        for request in requests:
            self._followed.pop(request, None)
            self._max_len.pop(request, None)

    def _begin(self, request: RequestView, most: int) -> Run | None:
        follower = self._followed.get(request.id)
        if follower is None:
            follower = Follower(self._target, self._speller, self._marks)
            self._followed[request.id] = follower
        tokens = follower.follow(request.tokens)
        room = min(2 * most + 4, self._model.config.context - len(tokens))
        if not tokens or room < 1:
            return None
        stays = min(follower.settled, len(tokens) - 1)
        vocabulary = self._speller.tokenizer.vocab_size
        no_more = vocabulary == self._model.config.vocab_size  # logits than tokens
        max_len = self._max_len_of(request, len(tokens))
        text = DraftText(request, tokens, stays, None, max_len, no_more)
        if not self._kv.ready(text, room):
            return None
        return Retold(text, most, room, self._teller, vocabulary, follower.begun)

    def _max_len_of(self, request: RequestView, length: int) -> int:
        """The longest text in the draft model's tokens, guessed once: a rotary base may hang on it."""
        if request.id not in self._max_len:
            share = length / len(request.tokens)
            self._max_len[request.id] = math.ceil(max(request.max_len, len(request.tokens)) * share)
        return self._max_len[request.id]


ENOUGH = 0.9  # of the larger vocabulary in common


def model_draft_across(
    model: Model,
    kv: DraftKV,
    law: TargetProbs,
    target: Spelling,
    own: Spelling,
    columns: int,
    width: int = 1,
) -> Lockstep:
    """A drafter for two vocabularies: by tokens where nearly all are in common, else by text.

    By tokens, drafts can be sampled, and branch, and nothing is encoded while drafting; but the
    draft model cannot say what both do not hold, and says in two tokens what the target says in
    one, which is refused. By text, any pair works, but nodes are chosen at every temperature.

    Args:
        model: the drafting model.
        kv: pages of its own.
        law: logits -> law under a request's parameters.
        target: the target's tokenizer.
        own: the draft model's.
        columns: logits of the target.
        width: most children of a node, where drafts can branch.
    """
    theirs, ours = Speller(target), Speller(own)
    share = shared(theirs, ours)
    if share < ENOUGH:
        logger.info("{:.0%} of the tokens are in common: drafts are told by text", share)
        return RetoldDraft(model, kv, target, own)
    logger.info("{:.0%} of the tokens are in common: drafts are mapped token by token", share)
    return ModelDraft(model, kv, law, width=width, lexicon=CommonLexicon(theirs, ours, columns))
