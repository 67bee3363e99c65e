"""The drafter with a model's own layer for multi-token prediction (DeepSeek-V3: arXiv 2412.19437, section 2.2)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.growing import GrowingDraft
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.tree import GrowingTree, HeadChain, grow_trees
from fastslow.engine.backends.cpu.draft_head import TreeLimits
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.rows import Rows, Segment
from fastslow.engine.types import (
    AcceptResult,
    Features,
    Ints,
    MarginalValue,
    ModelOutput,
    RequestView,
    TargetProbs,
    Tree,
)

HELD_UP = 4.0  # times the usual seconds, as which a pass counts at most
PASSES = 8  # after which the seconds of older ones fade
MAX_WAITING = 64  # rows of a text that is not drafted for; then they run in any case


@dataclass(slots=True)
class MtpText:
    """State of a request's text, and the rows of its draft.

    Attributes:
        end: the position after the last row whose hidden state is known.
        waiting: [n, H] these states, of the rows before `end`.
        done: how many of them have run; they are kept to run the last one again.
        keys: of the text's tokens, see `MtpDraft`.
        context: slots of the text's rows.
        free: slots after the text, which drafted rows take in turn.
        paths: of every drafted row, the slots from the text to it, its own the last.
        tip, logits, likely: [H] and [V] at the end of the chain; log-probability of the likeliest tokens up to there.
    """

    request: RequestView
    end: int
    waiting: Tensor
    done: int = 0
    keys: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    context: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    free: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    paths: list[list[int]] = field(default_factory=list)
    tip: Tensor | None = None
    logits: Tensor | None = None
    likely: float = 0.0

    @property
    def first(self) -> int:
        """The position of the first row that waits."""
        return self.end - len(self.waiting)

    def add(self, states: Tensor) -> None:
        """States of the rows from `end` on."""
        self.waiting = torch.cat((self.waiting[self.done :], states))
        self.end += len(states)
        self.done = 0

    def ran(self, stop: int) -> None:
        """All rows before `stop` have run."""
        kept = min(stop, self.end - 1)
        self.waiting = self.waiting[kept - self.first :]
        self.done = stop - kept

    def child(self, parent: int, token: int) -> Segment:
        """The row of a drafted token after row `parent`; -1 = the text's last."""
        slot = int(self.free[len(self.paths)])
        before = self.paths[parent] if parent >= 0 else []
        self.paths.append([*before, slot])
        return Segment(
            tokens=[token],
            positions=[self.end + len(before)],
            parents=[-1],
            slots=np.array([slot], dtype=np.int64),
            context=np.concatenate((self.context, np.array(before, dtype=np.int64))),
            groups=self.request.groups,
            outputs=[0],
            max_len=self.request.max_len,
        )


class MtpDraft(GrowingDraft[MtpText]):
    """Drafts with the MTP layer of the target, in the target's own pages.

    The row of a token is made of its embedding and of the target's hidden state before it, and lies at the token's own
    place: no page depends on a later token, so prefix cache and preemption hold for these rows as for others. The row
    of a draft is made of the layer's own hidden state; once the target has verified the token, the row runs again with
    the target's. A row whose state is not known is left out, as in training: a text's first, the first behind a prefix
    hit, and those of tokens that came while the drafter rested.

    Requests without this drafter write no such rows. So each slot is marked with the token and position of the row
    that was written to it last, its key, and a text's rows see those alone that have its own keys.

    cache: of the target. The other arguments are those of `GrowingDraft`.
    """

    def __init__(
        self,
        target: Model,
        cache: KVCache,
        target_probs: TargetProbs,
        width: int = 1,
        depth: int = 6,
        only_best: Callable[[RequestView], bool] | None = None,
        marginal_value: Callable[[Sequence[RequestView]], MarginalValue] | None = None,
    ) -> None:
        super().__init__(target_probs, width, depth, only_best, marginal_value)
        if target.mtp is None:
            raise ValueError("the model runs no layer for multi-token prediction")
        self._mtp = target.mtp
        self._cache = cache
        self._context = target.config.context
        self._tokens = target.config.vocab_size
        self.features = (len(target.config.layers) - 1,)
        self._vocab = RequestVocab(DraftVocab(torch.arange(self._tokens), None))
        self._texts: dict[int, MtpText] = {}
        self._written = np.zeros(cache.storage.slots, dtype=np.int64)  # key of each slot's row
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
        states, at, long = self._mtp.states(features), 0, list[MtpText]()
        for request, accepted, tokens in zip(batch, result.accepted_nodes, result.tokens):
            own = states[at : at + len(accepted) + 1]
            at += len(own)
            if tokens:
                text = self._take(request, len(request.tokens) - len(tokens) - 1, own)
                if len(text.waiting) > MAX_WAITING:
                    long.append(text)
        self._flush(long)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return list(rows)

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        states, at, texts = self._mtp.states(features), 0, list[MtpText]()
        for request, some in zip(batch, rows, strict=True):
            own = states[at : at + len(some)]
            at += len(own)
            if len(own):
                texts.append(self._take(request, some.start, own))
        self._flush(texts)

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
        kvs: Sequence[MtpText],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """Run tokens just drafted; see `DraftHead.step`."""
        rows = [(text, parent) for text, some in zip(kvs, parents) for parent in some]
        segments = [text.child(parent, token) for (text, parent), token in zip(rows, after)]
        began = time.perf_counter()
        states = self._forward(segments, hidden)
        taken = time.perf_counter() - began
        usual = self._pass or taken
        self._pass = usual + (min(taken, HELD_UP * usual) - usual) / PASSES
        return states

    def _known(self, request: RequestView, nodes: int) -> MtpText | None:
        text, size = self._texts.get(request.id), len(request.tokens)
        if text is None or text.end != size or request.computed != size - 1:
            return None
        if size + nodes > self._context:
            return None
        if self._width > 1:  # more rows may get children than nodes stay; where there is room
            self._cache.reserve(request.id, size + self._width * self._depth)
        return text

    def _grow(self, states: Sequence[MtpText], limits: TreeLimits) -> list[Tree]:
        hidden = self._run(states, [text.end for text in states], outputs=True)
        growing: dict[int, GrowingTree[MtpText]] = {}
        each = zip(states, hidden, self._latest, limits.nodes, limits.min_scores)
        for b, (text, row, logits, nodes, least) in enumerate(each):
            number, room = text.request.id, self._cache.room(text.request.id)
            text.context = self._seen(text, text.end)
            text.free = self._cache.slots(number, text.end, room).copy()
            text.paths, text.tip, text.logits, text.likely = [], row, logits, 0.0
            if nodes > 0:
                room, child = len(text.free), self._min_child if least > 0 else 0.0
                growing[b] = GrowingTree(text, self._vocab, row, nodes, least, room, child)
        self._latest = self._latest[list(growing)]
        trees = [Tree()] * len(states)
        grown = grow_trees(self, list(growing.values()), limits.width, limits.depth)
        for b, tree in zip(growing, grown):
            trees[b] = tree
        return trees

    def _append(self, chain: HeadChain[MtpText]) -> None:
        text, logits = chain.state, chain.state.logits
        assert logits is not None
        chain.extend(logits, logits.numpy(), self._target_probs)
        if chain.request.speculation.nodes is None:  # it ends whatever its last token is
            text.likely += float(logits.max() - logits.logsumexp(-1))
            size = len(chain.drafted)
            if text.likely * (size + 1) < math.log(self._min_child or 1e-9) * size:
                chain.nodes = size

    def _advance(self, states: Sequence[MtpText], tokens: Sequence[int]) -> None:
        tips = [text.tip for text in states if text.tip is not None]
        hidden = self.step(
            torch.stack(tips), tokens, states, [[len(text.paths) - 1] for text in states]
        )
        for text, row, logits in zip(states, hidden, self._latest):
            text.tip, text.logits = row, logits

    def _take(self, request: RequestView, position: int, states: Tensor) -> MtpText:
        """Note the target's hidden states of a text's rows from `position` on."""
        text = self._texts.get(request.id)
        if text is None or text.end != position + 1:
            if text is not None:
                self._flush([text])
            text = self._texts[request.id] = MtpText(request, position + 1, states[:0])
        text.add(states)
        return text

    def _flush(self, texts: Sequence[MtpText]) -> None:
        """Run the rows that wait, but for those of tokens that the target has not read."""
        stops = [min(text.end, text.request.computed) for text in texts]
        some = [(x, stop) for x, stop in zip(texts, stops) if stop > x.first + x.done]
        if some:
            self._run([text for text, _ in some], [stop for _, stop in some], outputs=False)

    def _run(self, texts: Sequence[MtpText], stops: Sequence[int], outputs: bool) -> Tensor:
        """Run the rows of each text that wait, up to a position; hidden states [B, H] of the last ones."""
        segments, inputs = list[Segment](), list[Tensor]()
        for text, stop in zip(texts, stops):
            request, first, size = text.request, text.first, stop - text.first
            segments.append(
                Segment(
                    tokens=request.tokens[first:stop],
                    positions=range(first, stop),
                    parents=range(-1, size - 1),
                    slots=self._cache.slots(request.id, first, stop),
                    context=self._seen(text, first),
                    groups=request.groups,
                    outputs=[size - 1] if outputs else [],
                    max_len=request.max_len,
                )
            )
            inputs.append(text.waiting[:size])
        hidden = self._forward(segments, torch.cat(inputs))
        for text, stop, segment in zip(texts, stops, segments):
            self._written[segment.slots] = self._keys(text, stop)[text.first : stop]
            text.ran(stop)
        return hidden

    def _forward(self, segments: Sequence[Segment], inputs: Tensor) -> Tensor:
        rows = Rows.of(segments)
        rows.inputs = inputs
        out: ModelOutput = self._mtp.forward(rows, self._cache.storage)
        self._latest = out.logits.float().cpu()
        assert out.features is not None
        return out.features

    def _keys(self, text: MtpText, count: int) -> Ints:
        """Of the first `count` tokens, each by its position and itself."""
        if (known := len(text.keys)) < count:
            more = np.array(text.request.tokens[known:], dtype=np.int64)
            more += self._tokens * np.arange(known, known + len(more)) + 1
            text.keys = np.concatenate((text.keys, more))
        return text.keys[:count]

    def _seen(self, text: MtpText, count: int) -> Ints:
        """The slots of the first `count` tokens that have the text's rows."""
        slots = self._cache.slots(text.request.id, 0, count)
        right = self._written[slots] == self._keys(text, count)
        return slots if right.all() else slots[right]
