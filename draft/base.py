"""What most drafters share: nothing to read, nothing to learn, nothing to hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.engine.types import AcceptResult, RequestView


class Stateless:
    """Reads no features, learns nothing from verdicts, holds nothing for a request."""

    features: tuple[int, ...] = ()

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return [range(0)] * len(batch)

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        """No text is looked at."""

    def commit(
        self, batch: Sequence[RequestView], verdict: AcceptResult, features: torch.Tensor | None
    ) -> None:
        """Nothing to learn."""

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""
