"""The drafter with a model's own layer for multi-token prediction (DeepSeek-V3: arXiv 2412.19437, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.mtp.layer import DraftedText, LayerDraft
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.rows import Segment
from fastslow.engine.types import (
    AcceptResult,
    Features,
    Ints,
    MarginalValue,
    RequestView,
    TargetProbs,
)

MAX_WAITING = 64  # rows of a text that is not drafted for; then they run in any case


@dataclass(slots=True)
class MtpText(DraftedText):
    """State of a request's text, and the rows of its draft.

    Attributes:
        waiting: [n, H] known hidden states, of the rows before `end`.
        done: how many of them have run; they are kept to run the last one again.
        keys: of the text's tokens, see `MtpDraft`.
        context: slots of the text's rows.
        free: slots after the text, which drafted rows take in turn.
        paths: of every drafted row, the slots from the text to it, its own the last.
    """

    waiting: Tensor
    done: int = 0
    keys: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    context: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    free: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    paths: list[list[int]] = field(default_factory=list)

    @property
    def last(self) -> int:
        return len(self.paths) - 1

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


class MtpDraft(LayerDraft[MtpText]):
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
        if target.mtp is None:
            raise ValueError("the model runs no layer for multi-token prediction")
        usual = target_probs, width, depth, only_best, marginal_value
        super().__init__(target.mtp, target, cache, *usual)
        self._written = np.zeros(cache.storage.slots, dtype=np.int64)  # key of each slot's row

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        super().commit(batch, result, features)
        texts = [text for request in batch if (text := self._texts.get(request.id)) is not None]
        self._flush([text for text in texts if len(text.waiting) > MAX_WAITING])

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
            self._run_to([text for text, _ in some], [stop for _, stop in some], outputs=False)

    def _run(self, texts: Sequence[MtpText]) -> Tensor:
        return self._run_to(texts, [text.end for text in texts], outputs=True)

    def _room(self, text: MtpText) -> int:
        number, room = text.request.id, self._cache.room(text.request.id)
        text.context, text.paths = self._seen(text, text.end), []
        text.free = self._cache.slots(number, text.end, room).copy()
        return len(text.free)

    def _run_to(self, texts: Sequence[MtpText], stops: Sequence[int], outputs: bool) -> Tensor:
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
