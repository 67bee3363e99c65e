"""Drafting with a layer that the target's backend runs: the base of MTP and assistants."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from fastslow.draft.head.growing import CHAINS, GrowingDraft, Growth
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.tree import GrowingTree, HeadChain, grow_trees
from fastslow.engine.backends.cpu.draft_head import TreeLimits
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model, MtpModel
from fastslow.engine.rows import Rows, Segment
from fastslow.engine.types import AcceptResult, Features, ModelOutput, RequestView, Tree

HELD_UP = 4.0  # times the usual seconds, as which a pass counts at most
PASSES = 8  # after which the seconds of older ones fade


@dataclass(slots=True)
class DraftedText:
    """A request's text, and the end of the chain that is drafted for it.

    Attributes:
        end: the position after the last row whose hidden state is known.
        tip, logits, likely: [H] and [V] at the end of the chain; log-probability of the likeliest tokens up to there.
        tokens: that a step with the chain makes, as far as its likeliest tokens are right.
    """

    request: RequestView
    end: int
    tip: Tensor | None = field(default=None, kw_only=True)
    logits: Tensor | None = field(default=None, kw_only=True)
    likely: float = field(default=0.0, kw_only=True)
    tokens: float = field(default=1.0, kw_only=True)

    @property
    def last(self) -> int:
        """The row that was drafted last."""
        return -1

    def child(self, parent: int, token: int) -> Segment:
        """The row of a drafted token after row `parent`; -1 = the text's last."""
        raise NotImplementedError


T = TypeVar("T", bound=DraftedText)


class LayerDraft(GrowingDraft[T]):
    """Drafts with layers that read the target's last hidden state, and rows in the target's pages.

    cache: of the target.
    """

    def __init__(
        self, layer: MtpModel, target: Model, cache: KVCache, growth: Growth = CHAINS
    ) -> None:
        super().__init__(growth)
        self._layer = layer
        self._cache = cache
        self._context = target.config.context
        self._tokens = target.config.vocab_size
        self.features = (len(target.config.layers) - 1,)
        self._vocab = RequestVocab(DraftVocab(torch.arange(self._tokens), None))
        self._texts: dict[int, T] = {}
        self._latest = torch.empty(0)  # [R, V] of the rows that ran last
        self._pass = 0.0  # seconds of a pass over drafted rows, lately
        self._min_child = 0.0  # chance of a node from which a further pass pays

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        asked = sum(n > 0 for n in nodes)
        if asked and self._marginal_value is not None:
            value = self._marginal_value(batch)
            self._min_child = min((value.row + self._pass / asked) / value.token, 1.0)
        return super().propose(batch, nodes)

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        if features is None:
            return
        states, at = self._layer.states(features), 0
        for request, accepted, tokens in zip(batch, result.accepted_nodes, result.tokens):
            own = states[at : at + len(accepted) + 1]
            at += len(own)
            if tokens:
                self._take(request, len(request.tokens) - len(tokens) - 1, own)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            self._texts.pop(request, None)

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Of the rows that ran last, by text."""
        return list(torch.split(self._latest, list(sizes)))

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        kvs: Sequence[T],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """Run tokens just drafted; see `DraftHead.step`."""
        began = time.perf_counter()
        states = self._children(hidden, after, kvs, parents)
        taken = time.perf_counter() - began
        usual = self._pass or taken
        self._pass = usual + (min(taken, HELD_UP * usual) - usual) / PASSES
        return states

    def _children(
        self,
        hidden: Tensor,
        after: Sequence[int],
        texts: Sequence[T],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """See `step`."""
        rows = [(text, parent) for text, some in zip(texts, parents) for parent in some]
        segments = [text.child(parent, token) for (text, parent), token in zip(rows, after)]
        return self._forward(segments, hidden)

    @abstractmethod
    def _take(self, request: RequestView, position: int, states: Tensor) -> T:
        """Note the target's hidden states of a text's rows from `position` on."""

    @abstractmethod
    def _run(self, texts: Sequence[T]) -> Tensor:
        """Run what drafts begin from; hidden states [B, H] of its last rows."""

    @abstractmethod
    def _room(self, text: T) -> int | None:
        """Begin a draft after these rows ran; gives how many rows it may have, None = any number."""

    def _grow(self, states: Sequence[T], limits: TreeLimits) -> list[Tree]:
        hidden = self._run(states)
        growing: dict[int, GrowingTree[T]] = {}
        each = zip(states, hidden, self._latest, limits.nodes, limits.min_scores)
        for b, (text, row, logits, nodes, least) in enumerate(each):
            room = self._room(text)
            text.tip, text.logits, text.likely, text.tokens = row, logits, 0.0, 1.0
            if nodes > 0:
                child = self._min_child if least > 0 else 0.0
                growing[b] = GrowingTree(text, self._vocab, row, nodes, least, room, child)
        self._latest = self._latest[list(growing)]
        trees = [Tree()] * len(states)
        grown = grow_trees(self, list(growing.values()), limits.width, limits.depth)
        for b, tree in zip(growing, grown):
            trees[b] = tree
        return trees

    def _append(self, chain: HeadChain[T]) -> None:
        text, logits = chain.state, chain.state.logits
        assert logits is not None
        chain.extend(logits, logits.numpy())
        if chain.request.speculation.nodes is None:  # it ends whatever its last token is
            text.likely += float(logits.log_softmax(-1).max())  # eight times faster than logsumexp
            text.tokens += math.exp(text.likely)
            size = len(chain.drafted)
            # one more pays where it makes more tokens a second than those before
            more, price = math.exp(text.likely * (size + 1) / size), self._min_child
            if more * (1 + size * price) < price * text.tokens:
                chain.nodes = size

    def _advance(self, states: Sequence[T], tokens: Sequence[int]) -> None:
        tips = [text.tip for text in states if text.tip is not None]
        hidden = self.step(torch.stack(tips), tokens, states, [[text.last] for text in states])
        for text, row, logits in zip(states, hidden, self._latest):
            text.tip, text.logits = row, logits

    def _forward(self, segments: Sequence[Segment], inputs: Tensor, head: int = -1) -> Tensor:
        rows = Rows.of(segments)
        rows.inputs = inputs
        out: ModelOutput = self._layer.forward(rows, self._cache.storage, head)
        self._latest = out.logits.float().cpu()
        assert out.features is not None
        return out.features
