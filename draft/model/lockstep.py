"""Drafting by a model, all requests of the batch in lockstep: one small forward a level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Protocol

from loguru import logger

from fastslow.draft.base import Stateless
from fastslow.draft.model.kv import DraftKV, DraftText
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.types import ModelOutput, RequestView, Rows, Segment, Tree

READ_ROWS = 512  # of text in one forward: a long prompt is read piece by piece


class Run(Protocol):
    """One request's draft while it is made."""

    @property
    def text(self) -> DraftText: ...

    @property
    def open(self) -> bool:
        """Whether there are rows to run."""

    def rows(self, cache: KVCache) -> list[Segment]:
        """What to run next, each with one output."""

    def take(self, out: ModelOutput) -> None:
        """What came of these rows, on the draft model's device.

        Raises:
            FloatingPointError: there is no law in them.
        """

    def stop(self) -> None:
        """Nothing more runs; what is drafted so far stays."""

    def tree(self) -> Tree: ...


class Lockstep(Stateless, ABC):
    """What drafting models share. What a request's draft is made of is `_begin`'s to say.

    Rows come from integers and logits stay where the model lies, so it may have a device of its
    own: its KV must be there, too, and only laws, drafted tokens and scores come back.

    Args:
        model: the drafting model.
        kv: `OwnKV` for a separate model, `BorrowedKV` for the target itself.

    Raises:
        ValueError: the KV lies on another device than the model.
    """

    def __init__(self, model: Model, kv: DraftKV) -> None:
        here, there = model.device, kv.cache.storage.device
        if there.type != here.type or here.index not in (None, there.index):
            raise ValueError(f"the draft's KV is on {there}, but must be on {here}")
        self._model = model
        self._kv = kv

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        begun = [self._begin(r, n) if n > 0 else None for r, n in zip(batch, nodes)]
        runs = [run for run in begun if run is not None]
        self._read_ahead([run.text for run in runs])
        while active := [run for run in runs if run.open]:
            self._step(active)
        for run in runs:
            self._kv.wrote(run.text)
        return [Tree() if run is None else run.tree() for run in begun]

    def release(self, requests: Collection[int]) -> None:
        self._kv.release(requests)

    @abstractmethod
    def _begin(self, request: RequestView, most: int) -> Run | None:
        """A draft of at most so many nodes, or None where this request gets none."""

    def _read_ahead(self, texts: Sequence[DraftText]) -> None:
        """Read long texts, up to a rest that one forward takes."""
        cache = self._kv.cache
        while sum(text.pending for text in texts) > max(READ_ROWS, len(texts)):
            left, segments = READ_ROWS, []
            for text in texts:
                size = min(text.pending - 1, left)
                if size > 0:
                    segments.append(text.segment(cache, size))
                    left -= size
            self._model.forward(Rows.of(segments), cache.storage)

    def _step(self, active: Sequence[Run]) -> None:
        parts = [run.rows(self._kv.cache) for run in active]
        rows = Rows.of([segment for part in parts for segment in part])
        out = self._model.forward(rows, self._kv.cache.storage)
        first = 0
        for run, part in zip(active, parts):
            own = slice(first, first + len(part))
            try:
                run.take(ModelOutput(out.logits[own], None, out.best[own]))
            except FloatingPointError as error:  # its neighbours' drafts go on
                logger.warning("a draft ends early: {}", error)
                run.stop()
            first += len(part)
