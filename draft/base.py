"""The methods of a drafter that needs no features, learns nothing and holds nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.engine.types import AcceptResult, RequestView


class Stateless:
    """A drafter without features and without state."""

    features: tuple[int, ...] = ()

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return [range(0)] * len(batch)

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        """No features are used."""

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        """Nothing to learn."""

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""
