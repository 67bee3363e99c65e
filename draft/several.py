"""Several drafters behind one name: who reads which layers finds them in one tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from fastslow.engine.types import AcceptResult, Drafter, RequestView


def union(drafters: Iterable[Drafter]) -> tuple[int, ...]:
    """The layers that any of them reads, ascending."""
    return tuple(sorted({layer for drafter in drafters for layer in drafter.features}))


def columns(
    features: torch.Tensor | None, layers: tuple[int, ...], wanted: tuple[int, ...]
) -> torch.Tensor | None:
    """The `wanted` layers' columns out of features [C, F] of `layers`; None where none is wanted, or
    one is not there."""
    if features is None or not wanted or not set(wanted) <= set(layers):
        return None
    if layers == wanted:
        return features
    parts = features.chunk(len(layers), -1)
    return torch.cat([parts[layers.index(layer)] for layer in wanted], -1)


class SeveralDrafters:
    """All of them hear of everything; which of them propose is for a subclass to say.

    Args:
        drafters: at least one.

    Raises:
        ValueError: without a drafter.

    Attributes:
        features: the layers that the drafters read, all together.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not drafters:
            raise ValueError(f"{type(self).__name__}() needs at least one drafter")
        self.drafters = drafters
        self.features = union(drafters)

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: torch.Tensor | None
    ) -> None:
        for drafter in self.drafters:
            drafter.commit(batch, result, columns(features, self.features, drafter.features))

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        return self._wants(self.drafters, batch, rows)

    def read(
        self, batch: Sequence[RequestView], rows: Sequence[range], features: torch.Tensor
    ) -> None:
        for drafter in self.drafters:
            own = columns(features, self.features, drafter.features)
            if own is not None:
                drafter.read(batch, rows, own)

    def release(self, requests: Collection[int]) -> None:
        for drafter in self.drafters:
            drafter.release(requests)

    def _wants(
        self, drafters: Iterable[Drafter], batch: Sequence[RequestView], rows: Sequence[range]
    ) -> list[range]:
        """The rows that any of these drafters wants to see; `features` grows by their layers."""
        found, asking = [range(0)] * len(rows), list[Drafter]()
        for drafter in drafters:
            some = drafter.wants(batch, rows)
            if any(some):
                asking.append(drafter)
                found = [_around(a, b) for a, b in zip(found, some, strict=True)]
        self.features = tuple(sorted({*self.features, *union(asking)}))
        return found


def _around(a: range, b: range) -> range:
    """The shortest run that holds both."""
    if not a or not b:
        return a or b
    return range(min(a.start, b.start), max(a.stop, b.stop))
