"""Drafting by a model of any vocabulary: its text is encoded again in the target's tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from loguru import logger
from torch import Tensor

from fastslow.draft.model.draft import LockstepDraft, ModelDraft
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.draft.model.runs import DraftRun, best_of
from fastslow.draft.model.vocab import ByteVocab, SharedTokens, overlap, special_map, split_utf8
from fastslow.engine.model.base import Model
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import ModelOutput, RequestView, TargetProbs, Tree

MAX_TAIL = 96  # most tokens of the end that are encoded each time
MIN_TAIL = 16  # of them stay open when the others are settled
MIN_OVERLAP = 0.9  # of the larger vocabulary, to map token by token


class TextRetokenizer:
    """A growing text of the target in the tokens of the draft model, `own`. The text is encoded as a whole,
    not token by token, but only its end again and again: the tokens before are settled. `special` tokens
    of the target are mapped, others are left out. most: tokens of the end."""

    def __init__(
        self, target: Tokenizer, own: ByteVocab, special: Mapping[int, int], most: int = MAX_TAIL
    ) -> None:
        self._target = target
        self._own = own
        self._special = special
        self._most = most
        self._settled: list[int] = []
        self._tail = b""  # text after the settled tokens
        self._inside = False  # whether it continues their text, so that no space goes before it
        self._no_text = True  # no text was read yet
        self._done = 0  # tokens of the target that were read
        self.max_len = 0  # of the text in the draft model's tokens; 0: not known
        self.partial = b""  # bytes of a last character that is not whole, and so not in the tokens

    @property
    def settled(self) -> int:
        """The number of tokens that will never change."""
        return len(self._settled)

    def update(self, tokens: Sequence[int]) -> list[int]:
        """The whole text in the draft model's tokens; it begins as it did last time."""
        for place in range(self._done, len(tokens)):
            self._read(tokens[place], first=place == 0)
        self._done = len(tokens)
        text, self.partial = split_utf8(self._tail)
        ids = self._encode(text)
        if len(ids) > self._most:
            ids = self._settle(ids, text)
        return [*self._settled, *ids]

    def _read(self, token: int, first: bool) -> None:
        if first:
            self._settled = self._own.bos()
        if token not in self._target.special_ids:
            data = self._target.token_bytes(token)
            if self._no_text and self._target.leading_spaces:
                data = data.removeprefix(b" ")
            self._tail += data
            self._no_text = False
            return
        if first and self._settled and token == self._target.bos_id:
            return  # the draft model's own bos stands for it
        self._settled += self._encode(split_utf8(self._tail)[0])
        self._tail, self._inside = b"", False
        if (special := self._special.get(token)) is not None:
            self._settled.append(special)

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        found = self._own.tokenizer.encode_exactly(text) if self._inside else None
        return self._own.tokenizer.encode(text, add_special=False) if found is None else found

    def _settle(self, ids: list[int], text: str) -> list[int]:
        """Settle all but a few, up to a place between two characters; nothing where the tokenizer changes bytes."""
        data = text.encode()
        for first in range(len(ids) - MIN_TAIL, 0, -1):
            tail = b"".join(map(self._own.tokenizer.token_bytes, ids[first:]))
            if not data.endswith(tail):
                return ids
            if not begins_inside_character(tail):
                self._settled += ids[:first]
                self._tail, self._inside = tail + self.partial, True
                return ids[first:]
        return ids


def begins_inside_character(data: bytes) -> bool:
    return bool(data) and data[0] & 0xC0 == 0x80


class DraftRetokenizer:
    """Drafted tokens of the draft model, `own`, in the target's tokens, through their text."""

    def __init__(self, own: Tokenizer, target: ByteVocab) -> None:
        self.own = own
        self._target = target
        self._special = special_map(own, target.tokenizer)

    def encode(self, drafted: Sequence[int], partial: bytes) -> tuple[list[int], bool]:
        """The target's tokens for the draft, and whether more could come. A last character that is not
        whole is left out. `partial`: the first bytes of a character with which the target's text ends,
        and which the draft must complete."""
        tokens: list[int] = []
        data = b""
        for token in drafted:
            if token not in self.own.special_ids:
                data += self.own.token_bytes(token)
                continue
            encoded, special = self._encode(data, partial), self._special.get(token)
            if encoded is None or special is None:
                return tokens + (encoded or []), False
            tokens += [*encoded, special]
            data = partial = b""
            if special in self._target.tokenizer.eos_ids:
                return tokens, False
        encoded = self._encode(data, partial)
        return tokens + (encoded or []), encoded is not None

    def _encode(self, data: bytes, partial: bytes) -> list[int] | None:
        """Tokens of this text; None if the target's tokenizer has none."""
        tokens: list[int] = []
        if partial:
            if not data.startswith(partial):
                return [] if partial.startswith(data) else None
            rest = data[len(partial) :]
            lead = partial[0]  # gives the size of the character in bytes
            missing = (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) - len(partial)
            if len(rest) < missing:
                return []
            end = self._target.encode_bytes(rest[:missing])
            if end is None:
                return None
            tokens, data = end, rest[missing:]
        text, left = split_utf8(data)
        if text.encode() + left != data:
            return None  # no text
        found = self._target.tokenizer.encode_exactly(text) if text else []
        return None if found is None else tokens + found


class RetokenizedRun(DraftRun):
    """A chain of chosen nodes: at most `room` best tokens of the draft model, encoded again; `nodes` count
    the target's tokens."""

    def __init__(
        self, text: DraftText, nodes: int, room: int, retokenizer: DraftRetokenizer, partial: bytes
    ) -> None:
        super().__init__(text, nodes)
        self._room = room
        self._retokenizer = retokenizer
        self._partial = partial
        self._drafted: list[int] = []
        self._encoded: list[int] = []
        self._more = True  # whether more tokens could come

    @property
    def open(self) -> bool:
        more = self._more and len(self._drafted) < self._room
        return more and len(self._encoded) < self.nodes

    def take(self, out: ModelOutput) -> None:
        token = best_of(out) if self.text.only_best else self._best_known(out.logits[0])
        self._drafted.append(token)
        self.text.tokens.append(token)
        self._encoded, self._more = self._retokenizer.encode(self._drafted, self._partial)

    def stop(self) -> None:
        self._more = False

    def tree(self) -> Tree:
        return Tree.chain(self._encoded[: self.nodes])

    def _best_known(self, logits_V: Tensor) -> int:
        """The likeliest of the tokens that the tokenizer knows; logits may have more columns."""
        best, token = logits_V[: self._retokenizer.own.vocab_size].max(dim=-1)
        if not math.isfinite(best):
            raise FloatingPointError("the draft model's logits are not finite numbers")
        return int(token)


class RetokenizedDraft(LockstepDraft):
    """Chains from a model of any vocabulary, by the tokenizers of the target and of the draft model.

    String-level exact match of Timor et al., arXiv 2502.05202: the draft model continues the text of
    the request greedily; its bytes become tokens of the target, which are *chosen* nodes, so the
    answer keeps the target's probabilities at any temperature.
    """

    def __init__(self, model: Model, kv: DraftKV, target: Tokenizer, own: Tokenizer) -> None:
        super().__init__(model, kv)
        self._target = target
        self._own = ByteVocab(own)
        self._retokenizer = DraftRetokenizer(own, ByteVocab(target))
        self._special = special_map(target, own)
        self._texts: dict[int, TextRetokenizer] = {}

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._texts.pop(request, None)
        super().release(requests)

    def _begin(self, request: RequestView, nodes: int) -> DraftRun | None:
        if request.id not in self._texts:
            most = min(MAX_TAIL, self._kv.cache.unfolded // 2)  # what may change is not folded in
            self._texts[request.id] = TextRetokenizer(self._target, self._own, self._special, most)
        text = self._texts[request.id]
        tokens = text.update(request.tokens)
        room = min(2 * nodes + 4, self._model.config.context - len(tokens))
        if not tokens or room < 1:
            return None
        stable = min(text.settled, len(tokens) - 1)
        all_known = self._retokenizer.own.vocab_size == self._model.config.vocab_size
        # the longest text in its tokens, guessed once: a rotary base may depend on it
        ratio = len(tokens) / len(request.tokens)
        text.max_len = text.max_len or math.ceil(max(request.max_len, len(request.tokens)) * ratio)
        rope = self._model.config.rope_length(text.max_len)
        draft = DraftText(request, tokens, stable, None, text.max_len, rope, all_known)
        if not (room := self._kv.prepare(draft, room)):
            return None
        return RetokenizedRun(draft, nodes, room, self._retokenizer, text.partial)


def model_draft_across(
    model: Model,
    kv: DraftKV,
    target_probs: TargetProbs,
    target: Tokenizer,
    own: Tokenizer,
    columns: int,
    width: int = 1,
) -> LockstepDraft:
    """A drafter for two vocabularies: by tokens where nearly all are in both, else by text.

    By tokens, drafts can be sampled, and branch, and nothing is encoded while drafting; but the
    draft model cannot draft tokens of one vocabulary alone, and two drafted tokens where the target has a
    single token are rejected. By text, any pair works, but nodes are chosen at every temperature.
    """
    theirs, ours = ByteVocab(target), ByteVocab(own)
    share = overlap(theirs, ours)
    if share < MIN_OVERLAP:
        logger.info("{:.0%} of the tokens are in common: drafts are encoded again", share)
        return RetokenizedDraft(model, kv, target, own)
    logger.info("{:.0%} of the tokens are in common: drafts are mapped token by token", share)
    shared = SharedTokens(theirs, ours, columns)
    return ModelDraft(model, kv, target_probs, width=width, vocab_map=shared)
