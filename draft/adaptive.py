"""Several drafters, each asked where it pays; their proposals are merged into one tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch

from fastslow.draft.merge import merge_trees
from fastslow.draft.several import SeveralDrafters, counted, on_each, union
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree


class DrafterSelection(Protocol):
    """Decides which of several numbered drafters are asked for which requests."""

    def collect(
        self,
        batch: Sequence[RequestView],
        nodes: Sequence[int],
        ask: Callable[[int, Sequence[int]], tuple[Sequence[Tree], float]],
    ) -> list[list[tuple[int, Tree]]]:
        """For each request, the proposals to draft, with the numbers of their drafters.

        ask: (drafter, most nodes of each request) -> its trees, and the seconds they took.
        """

    def awake(self, drafter: int) -> bool:
        """Whether it may be asked in one of the next steps, and so needs its features."""

    def able(self, batch: Sequence[RequestView]) -> int:
        """How many drafters, counted from the first, may be asked in steps of these requests."""

    def judge(self, batch: Sequence[RequestView], result: AcceptResult) -> None:
        """What was accepted."""

    def release(self, requests: Collection[int]) -> None:
        """These request ids are gone."""


class AdaptiveDrafter(SeveralDrafters):
    """`AdaptiveDrafter([a, b], selection)`: b is asked, too, where it would bring more than a
    promises; what both propose is merged into one tree. The selection decides, and learns from the result.

    Args:
        drafters: in the order in which they are asked, the cheapest first; at least one.
        selection: decides which drafters are asked for which requests.
        now: seconds, as of `time.perf_counter`.
        names: of the drafters, for the `sources` of their nodes.

    Attributes:
        features: the layers that the drafters read which may be asked now or soon.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        selection: DrafterSelection,
        now: Callable[[], float] = time.perf_counter,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(drafters)
        self.selection = selection
        self._now = now
        self._names = names

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        def ask(drafter: int, most: Sequence[int]) -> tuple[list[Tree], float]:
            started = self._now()
            trees = counted(self.drafters[drafter].propose(batch, most), len(batch))
            return trees, self._now() - started

        proposals = self.selection.collect(batch, nodes, ask)
        self.features = union(d for i, d in enumerate(self.drafters) if self.selection.awake(i))
        return [
            merge_trees(own, most, self._names) if own else Tree()
            for own, most in zip(proposals, nodes)
        ]

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        super().commit(batch, result, features)
        self.selection.judge(batch, result)

    def release(self, requests: Collection[int]) -> None:
        parts = [*(drafter.release for drafter in self.drafters), self.selection.release]
        on_each(parts, lambda release: release(requests))

    def _readers(self, batch: Sequence[RequestView]) -> Sequence[Drafter]:
        """A prompt is shown once, and reading it costs a drafter little. So drafters that are not asked
        now read it, too, except those that are never asked in such batches."""
        return self.drafters[: self.selection.able(batch)]
