"""The drafter with a model's own layer for multi-token prediction (DeepSeek-V3: arXiv 2412.19437, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.growing import CHAINS, Growth
from fastslow.draft.mtp.layer import DraftedText, LayerDraft
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.base import Model
from fastslow.engine.rows import RunningRows, Segment
from fastslow.engine.types import AcceptResult, Features, Ints, RequestView, Tree

MAX_WAITING = 64  # rows of a text that is not drafted for; then they run in any case


@dataclass(slots=True)
class HeadRows:
    """Rows of a text that a head has still to run, of those before `end`.

    Attributes:
        states: [n, H] known hidden states that the last n of them read.
        unfolded: running states do not have what was done, which runs again with the rows after it.
        done: how many of them have run; they are kept to run the last one again.
    """

    end: int
    states: Tensor
    unfolded: bool
    done: int = 0

    @property
    def first(self) -> int:
        """The position of the first one."""
        return self.end - len(self.states)

    def add(self, states: Tensor) -> None:
        """States of the rows from `end` on."""
        gone = 0 if self.unfolded else self.done
        self.states = torch.cat((self.states[gone:], states))
        self.end += len(states)
        self.done -= gone

    def ran(self, stop: int) -> None:
        """All rows before `stop` have run."""
        kept = min(stop, self.end - 1)
        self.states = self.states[kept - self.first :]
        self.done = stop - kept


@dataclass(slots=True)
class MtpText(DraftedText):
    """State of a request's text, and the rows of its draft.

    Attributes:
        rows: of each head. Those of a later one begin and end a token later, since they read what the head before made
            of the token before.
        keys: of the text's tokens, see `MtpDraft`.
        context: slots of the text's rows that the last head sees.
        free: slots after the text, which drafted rows take in turn.
        paths: of every drafted row, the slots from the text to it, its own the last.
        nodes: token of every drafted row, and the row before it; -1 = the text's last.
        states: [drafted rows, H] of the head that ran last.
        level: heads that have run drafted rows, and how often the last one did.
        place: of the heads' running states; -1: they have none. These have the rows that are not kept to run again.
    """

    rows: list[HeadRows]
    place: int
    keys: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    context: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    free: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    paths: list[list[int]] = field(default_factory=list)
    nodes: list[tuple[int, int]] = field(default_factory=list)
    states: Tensor = field(default_factory=lambda: torch.empty(0))
    level: int = 0

    @property
    def last(self) -> int:
        return len(self.paths) - 1

    def heads(self, most: int) -> int:
        """Count the heads, up to `most`, that have all rows which a draft needs; `most` where the last one has. After a
        rest a later head lacks some at first: it reads what the head before made of earlier tokens."""
        lacking = (n for n, rows in enumerate(self.rows[:most]) if rows.first > self.end)
        return next(lacking, most)

    def add(self, states: Tensor) -> None:
        """States of the target's rows from `end` on."""
        self.rows[0].add(states)
        self.end = self.rows[0].end

    def grow(self, parent: int, token: int) -> list[int]:
        """Take a slot for a drafted row; gives those before it."""
        before = self.paths[parent] if parent >= 0 else []
        self.paths.append([*before, int(self.free[len(self.paths)])])
        self.nodes.append((token, parent))
        return before

    def child(self, parent: int, token: int) -> Segment:
        before, path = self.grow(parent, token), list[int]()
        while parent >= 0:
            path.append(1 + parent)
            parent = self.nodes[parent][1]
        known = [0] * self.rows[-1].done + path[::-1]
        return Segment(
            tokens=[token],
            positions=[self.end + len(before)],
            parents=[-1],
            slots=np.array(self.paths[-1][-1:], dtype=np.int64),
            context=np.concatenate((self.context, np.array(before, dtype=np.int64))),
            groups=self.request.groups,
            outputs=[0],
            max_len=self.request.max_len,
            running=self.work(known, 0, [len(self.paths)]),
        )

    def work(self, before: Sequence[int], stable: int, at: Sequence[int]) -> RunningRows | None:
        """What rows do with running states. A drafted row's inputs are kept at its number and 1, at 0 those of the
        text's last row, where it may run again."""
        if self.place < 0:
            return None
        ring = (np.array(rows, dtype=np.int64) % UNFOLDED for rows in (before, at))
        return RunningRows(self.place, next(ring), 0, stable, next(ring))


class MtpDraft(LayerDraft[MtpText]):
    """Drafts with the MTP layers of the target, its heads, in the target's own pages.

    The row of a token is made of its embedding and of the target's hidden state before it, and lies at the token's own
    place: no page depends on a later token, so prefix cache and preemption hold for these rows as for others. The row
    of a draft is made of the layer's own hidden state; once the target has verified the token, the row runs again with
    the target's. A row whose state is not known is left out, as in training: a text's first, the first behind a prefix
    hit, those of tokens that came while the drafter rested, and those that waited to run when it began to rest.

    Of several heads, each drafts one token, and the last one all after its own. A head's row reads what the head before
    made of the token before. So where a head drafts, it first runs the rows of the text that the heads before have run
    since, and those of the tokens drafted so far, in one pass.

    Requests without this drafter write no such rows. So each slot is marked with the token and position of the row
    that was written to it last, its key, and a text's rows see those alone that have its own keys.

    cache: of the target.
    """

    def __init__(self, target: Model, cache: KVCache, growth: Growth = CHAINS) -> None:
        if target.mtp is None:
            raise ValueError("the model runs no layer for multi-token prediction")
        super().__init__(target.mtp, target, cache, growth)
        # of each head the key of each slot's row
        slots = cache.storage.slots * cache.storage.dp_ranks
        self._written = np.zeros((target.mtp.heads, slots), dtype=np.int64)
        first = len(target.config.layers)
        self._running = [n for n in target.config.state_layout.running if n >= first]

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        super().commit(batch, result, features)
        texts = [text for request in batch if (text := self._texts.get(request.id)) is not None]
        most = [max(len(rows.states) for rows in text.rows) for text in texts]
        self._flush([text for text, n in zip(texts, most) if n > MAX_WAITING])

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        texts = (self._texts.get(request.id) for request in batch)
        able = [n if text is None else text.heads(n) for text, n in zip(texts, nodes)]
        return super().propose(batch, able)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return list(rows)

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        states, at, texts = self._layer.states(features), 0, list[MtpText]()
        for request, some in zip(batch, rows, strict=True):
            own = states[at : at + len(some)]
            at += len(own)
            if len(own):
                texts.append(self._take(request, some.start, own))
        self._flush(texts)

    def _known(self, request: RequestView, nodes: int) -> MtpText | None:
        text, size = self._texts.get(request.id), len(request.tokens)
        if text is None or text.end != size or request.computed != size - 1:
            return None
        if size + nodes > self._context:
            return None
        if self._width > 1:  # more rows may get children than nodes stay; where there is room
            self._cache.reserve(request.id, size + self._width * self._depth)
        return text

    def _take(self, request: RequestView, position: int, states: Tensor) -> MtpText:
        """Note the target's hidden states of a text's rows from `position` on."""
        text, states_of = self._texts.get(request.id), self._cache.storage.running
        place = self._cache.place(request.id) if self._running else -1
        if text is None or text.end != position + 1 or text.place != place:
            heads = range(self._layer.heads)
            rows = [HeadRows(position + 1 + head, states[:0], place >= 0) for head in heads]
            text = self._texts[request.id] = MtpText(request, position + 1, rows, place)
            if states_of is not None and place >= 0:
                states_of.clear(place, self._running)
        text.add(states)
        return text

    def _flush(self, texts: Sequence[MtpText]) -> None:
        """Run the rows that wait, but for those of tokens that the target has not read."""
        for head in range(self._layer.heads):
            stops = [min(text.rows[head].end, text.request.computed) for text in texts]
            waiting = (text.rows[head].first + text.rows[head].done for text in texts)
            some = [(x, stop) for x, stop, first in zip(texts, stops, waiting) if stop > first]
            if some:
                self._run_to([text for text, _ in some], [stop for _, stop in some], head)

    def _run(self, texts: Sequence[MtpText]) -> Tensor:
        return self._run_to(texts, [text.end for text in texts], 0, [[]] * len(texts))

    def _room(self, text: MtpText) -> int:
        number, room = text.request.id, self._cache.room(text.request.id)
        text.paths, text.nodes, text.level = [], [], 0
        if self._layer.heads == 1:
            text.context = self._seen(text, text.end, 0)
        text.free = self._cache.slots(number, text.end, room).copy()
        return len(text.free)

    def _children(
        self,
        hidden: Tensor,
        after: Sequence[int],
        texts: Sequence[MtpText],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        for text in texts:  # all are as deep
            text.level += 1
        head, last = texts[0].level, self._layer.heads - 1
        if head > last:
            return super()._children(hidden, after, texts, parents)
        tokens = iter(after)
        for text, some in zip(texts, parents):
            for parent, token in zip(some, tokens):
                text.grow(parent, token)
        states = self._run_to(texts, [text.end for text in texts], head, parents)
        for text in texts if head == last else ():
            text.context = self._seen(text, text.end, head)
        return states

    def _run_to(
        self,
        texts: Sequence[MtpText],
        stops: Sequence[int],
        head: int,
        parents: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Run the rows of each text that wait for a head, up to a position, and its drafted rows. parents: of the rows
        that were drafted last; hidden states of these are given, or of the text's last one where there are none."""
        segments, inputs = list[Segment](), list[Tensor]()
        for n, (text, stop) in enumerate(zip(texts, stops)):
            fresh = None if parents is None else len(parents[n])
            segment, states = self._segment(text, stop, head, fresh)
            segments.append(segment)
            inputs.append(states)
        found = self._forward(segments, torch.cat(inputs), head)
        wanted, at = list[Tensor](), 0
        for text, stop, segment in zip(texts, stops, segments):
            rows, size = text.rows[head], stop - text.rows[head].first
            self._written[head, segment.slots[:size]] = self._keys(text, stop)[rows.first : stop]
            if segment.feature_rows is not None:
                own = found[at : at + len(segment.slots)]
                text.rows[head + 1].add(own[rows.done : size])
                text.states = own[size:]
            else:
                own = found[at : at + len(segment.outputs)]
            at += len(own)
            wanted.append(own[len(own) - len(segment.outputs) :])
            rows.ran(stop)
        return torch.cat(wanted)

    def _segment(
        self, text: MtpText, stop: int, head: int, fresh: int | None
    ) -> tuple[Segment, Tensor]:
        """Rows of a text, and its drafted ones where `fresh` says how many of them were drafted last."""
        request, rows = text.request, text.rows[head]
        first, size = rows.first, stop - rows.first
        tokens, positions = [*request.tokens[first:stop]], [*range(first, stop)]
        parents, inputs = [*range(-1, size - 1)], rows.states[:size]
        slots = self._cache.slots(request.id, first, stop)
        if fresh:
            before = [parent for _, parent in text.nodes]
            tokens += [token for token, _ in text.nodes]
            positions += [stop - 1 + len(path) for path in text.paths]
            parents += [size + parent if parent >= 0 else size - 1 for parent in before]
            slots = np.concatenate((slots, [path[-1] for path in text.paths]))
            known = torch.cat((text.states, rows.states[size:]))  # -1: of the text's last row
            inputs = torch.cat((inputs, known[before]))
        count, kept = len(tokens), min(stop, rows.end - 1)
        segment = Segment(
            tokens=tokens,
            positions=positions,
            parents=parents,
            slots=slots,
            context=self._seen(text, first, head),
            groups=request.groups,
            outputs=[] if fresh is None else range(count - max(fresh, 1), count),
            max_len=request.max_len,
            feature_rows=None if head == self._layer.heads - 1 else range(count),
            running=text.work((), kept - first, [0] * size + [*range(1, 1 + count - size)]),
        )
        return segment, inputs

    def _keys(self, text: MtpText, count: int) -> Ints:
        """Of the first `count` tokens, each by its position and itself."""
        if (known := len(text.keys)) < count:
            more = np.array(text.request.tokens[known:], dtype=np.int64)
            more += self._tokens * np.arange(known, known + len(more)) + 1
            text.keys = np.concatenate((text.keys, more))
        return text.keys[:count]

    def _seen(self, text: MtpText, count: int, head: int) -> Ints:
        """The slots of the first `count` tokens that have the text's rows of a head."""
        slots = self._cache.slots(text.request.id, 0, count)
        right = self._written[head, slots] == self._keys(text, count)
        return slots if right.all() else slots[right]
