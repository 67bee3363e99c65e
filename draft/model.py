"""A model that drafts: a smaller one with its own KV, or the target itself with fewer groups."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from loguru import logger

from fastslow.draft.base import Stateless
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.noise import Purpose, draw, stream
from fastslow.engine.types import (
    Certain,
    Draft,
    Floats,
    Ints,
    Law,
    RequestView,
    Rows,
    Segment,
    Tree,
)


class DraftKV(Protocol):
    """Where a drafting model keeps keys and values."""

    cache: KVCache

    def ready(self, request: RequestView, nodes: int) -> int | None:
        """Tokens of the text that are valid here, with room for the draft; None = cannot draft."""

    def wrote(self, request: RequestView, drafted: Sequence[int]) -> None:
        """Rows for the whole text and for all but the last drafted token now stand in the cache."""

    def release(self, requests: Collection[int]) -> None: ...


class BorrowedKV:
    """The target's own pages: reads its committed KV, scribbles on slots that verification rewrites.

    Args:
        cache: the target's; the scheduler has reserved room for the draft nodes.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def ready(self, request: RequestView, nodes: int) -> int | None:
        # While a prompt is read its KV is not there yet, and reading it here would be done twice.
        # Nor is a first token drafted after a prefix hit: a seed gives the same answer either way.
        answering = len(request.tokens) > request.prompt_length
        pending = len(request.tokens) - request.computed
        return request.computed if answering and pending == 1 else None

    def wrote(self, request: RequestView, drafted: Sequence[int]) -> None:
        """Scratch: forgotten at once."""

    def release(self, requests: Collection[int]) -> None:
        """The target gives its own pages back."""


@dataclass(slots=True)
class _Written:
    """Tokens whose KV stands in the draft model's cache, in order."""

    tokens: list[int] = field(default_factory=list)


class OwnKV:
    """Pages of the draft model's own, rewound to what the target accepted.

    Args:
        cache: a cache shaped for the draft model.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._written: dict[int, _Written] = {}

    def ready(self, request: RequestView, nodes: int) -> int | None:
        text = request.tokens
        if request.id not in self._written:
            cached = self.cache.open(request.id, text, None, len(text) - 1)
            self._written[request.id] = _Written(text[:cached])
        if not self.cache.reserve(request.id, len(text) + nodes):
            return None
        written = self._written[request.id].tokens
        valid = _common(written, text[:-1])
        del written[valid:]
        return valid

    def wrote(self, request: RequestView, drafted: Sequence[int]) -> None:
        self._written[request.id].tokens = [*request.tokens, *drafted[:-1]]
        self.cache.advance(request.id, len(request.tokens), request.tokens)

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            if self._written.pop(request, None) is not None:
                self.cache.close(request)


class ModelDraft(Stateless):
    """Chains from a model, all requests of the batch in lockstep: one small forward a token.

    At temperature 0 the nodes are chosen; else they are sampled from the draft model's own law
    under the request's parameters, and that law is handed on as `probs`.

    Args:
        model: the drafting model.
        kv: `OwnKV` for a separate model, `BorrowedKV` for the target itself.
        law: logits -> law under a request's parameters.
        groups: routed groups to run; None = all, 0 = shared experts only. A request that runs
            fewer groups itself drafts with its own number.
    """

    def __init__(self, model: Model, kv: DraftKV, law: Law, groups: int | None = None) -> None:
        self._model = model
        self._kv = kv
        self._law = law
        self._groups = groups

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> Draft:
        runs: dict[int, _Run] = {}
        context = self._model.config.context
        for b, (request, most) in enumerate(zip(batch, nodes)):
            fits = 0 < most <= context - len(request.tokens)
            valid = self._kv.ready(request, most) if fits else None
            if valid is not None:
                runs[b] = _Run(request, most, valid, self._groups_for(request))
        while active := [run for run in runs.values() if len(run.drafted) < run.most]:
            rows = Rows.of([run.segment(self._kv.cache) for run in active])
            logits_BV = self._model.forward(rows, self._kv.cache.storage).logits
            for run, logits_V in zip(active, logits_BV):
                try:
                    run.extend(self._law(logits_V, run.request, run.drafted))
                except FloatingPointError as error:  # its neighbours' drafts go on
                    logger.warning("a draft of {} tokens ends: {}", len(run.drafted), error)
                    run.most = len(run.drafted)
        for run in runs.values():
            self._kv.wrote(run.request, run.drafted)
        return Draft.of([runs[b].tree() if b in runs else Tree() for b in range(len(batch))])

    def release(self, requests: Collection[int]) -> None:
        self._kv.release(requests)

    def _groups_for(self, request: RequestView) -> int | None:
        if self._groups is None or request.groups is None:
            return self._groups
        return min(self._groups, request.groups)


class _Run:
    """One request's chain while it is drafted."""

    def __init__(self, request: RequestView, most: int, valid: int, groups: int | None) -> None:
        self.request = request
        self.most = most
        self.drafted: list[int] = []
        self._valid = valid  # tokens of text and draft whose KV is there
        self._groups = groups
        self._laws: list[Floats] = []

    def segment(self, cache: KVCache) -> Segment:
        """The rows that are still to run: what the cache lacks of the text, or the last drafted."""
        text = [*self.request.tokens, *self.drafted] if self.drafted else self.request.tokens
        fresh = text[self._valid :]
        first, self._valid = self._valid, len(text)
        slots: Ints = cache.slots(self.request.id, first, len(text))
        return Segment(
            tokens=fresh,
            positions=range(first, len(text)),
            parents=range(-1, len(fresh) - 1),
            slots=slots,
            context=cache.slots(self.request.id, 0, first),
            groups=self._groups,
            outputs=[len(fresh) - 1],
            reach=self.request.reach,
        )

    def extend(self, law: Floats | Certain) -> None:
        if isinstance(law, Certain):
            self.drafted.append(law.token)
            return
        place = len(self.request.tokens) + len(self.drafted)
        draws = stream(self.request.seed, place, Purpose.DRAFT)
        self.drafted.append(draw(law, draws))
        self._laws.append(law)

    def tree(self) -> Tree:
        return Tree.chain(self.drafted, np.stack(self._laws) if self._laws else None)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
