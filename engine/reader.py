"""Drafters that look at text while the target reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fastslow.engine.types import RequestView

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Reader(Protocol):
    """A drafter that also looks at text that the target reads: prompts, and texts computed again.
    Rows that came from the prefix cache are never shown.
    """

    features: tuple[int, ...]

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        """Of each request's rows that the step reads, positions in its text in front of the last
        one's, those whose features are wanted: a run of them, maybe none. Asked after `propose`, only
        where there are such rows; `features` may grow by it.
        """

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        """Told after the step, before `commit`: features [C, F] of the rows that were wanted,
        request by request. Where others wanted more, there is more of them.
        """
