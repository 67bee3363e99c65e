"""Several drafters, each asked where it pays, whose proposals are drafted side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch

from fastslow.draft.merge import merge_trees
from fastslow.draft.several import SeveralDrafters, union
from fastslow.engine.types import AcceptResult, Drafter, RequestView, Tree


class DrafterSelection(Protocol):
    """Decides which of several drafters, told apart by number, are asked for which requests."""

    def collect(
        self,
        batch: Sequence[RequestView],
        nodes: Sequence[int],
        ask: Callable[[int, Sequence[int]], tuple[Sequence[Tree], float]],
    ) -> list[list[tuple[int, Tree]]]:
        """For each request, the proposals to draft, and whose they are. `ask` has a drafter propose
        for so many nodes of each request, and says how many seconds that took."""

    def awake(self, drafter: int) -> bool:
        """Whether it may be asked in one of the next steps, and so needs its features."""

    def able(self, batch: Sequence[RequestView]) -> int:
        """How many drafters, from the first on, may be asked at all in steps of these requests."""

    def judge(self, batch: Sequence[RequestView], result: AcceptResult) -> None:
        """What was accepted."""

    def release(self, requests: Collection[int]) -> None:
        """These request ids are gone."""


class AdaptiveDrafter(SeveralDrafters):
    """`AdaptiveDrafter([a, b], selection)`: b is asked, too, where it would bring more than a
    promises; what both propose is merged into one tree. The selection decides, and is told what came
    of it.

    Args:
        drafters: in the order in which they are asked, the cheapest first; at least one.
        selection: who is asked for whom.
        clock: seconds.

    Attributes:
        features: the layers that those read who draft now or soon.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        selection: DrafterSelection,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(drafters)
        self.selection = selection
        self._clock = clock

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        def ask(drafter: int, most: Sequence[int]) -> tuple[list[Tree], float]:
            started = self._clock()
            trees = self.drafters[drafter].propose(batch, most)
            return trees, self._clock() - started

        proposals = self.selection.collect(batch, nodes, ask)
        self.features = union(d for i, d in enumerate(self.drafters) if self.selection.awake(i))
        return [merge_trees(said, most) if said else Tree() for said, most in zip(proposals, nodes)]

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        super().commit(batch, result, features)
        self.selection.judge(batch, result)

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        """A prompt is shown once, and to look at it takes a drafter little: also one that is not
        asked now, but none that will not be asked in such batches."""
        return self._wants(self.drafters[: self.selection.able(batch)], batch, rows)

    def release(self, requests: Collection[int]) -> None:
        super().release(requests)
        self.selection.release(requests)
