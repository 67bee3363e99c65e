"""What most drafters share: nothing to learn, nothing to hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from fastslow.engine.types import AcceptResult, RequestView


class Stateless:
    """Reads no features, learns nothing from verdicts, holds nothing for a request."""

    features: tuple[int, ...] = ()

    def commit(
        self, batch: Sequence[RequestView], verdict: AcceptResult, features: torch.Tensor | None
    ) -> None:
        """Nothing to learn."""

    def release(self, requests: Collection[int]) -> None:
        """Nothing is held."""
