"""Features of several drafters in one tensor: who reads which layers finds them here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fastslow.engine.types import Drafter, RequestView


def union(drafters: Iterable[Drafter]) -> tuple[int, ...]:
    """The layers that any of them reads, ascending."""
    return tuple(sorted({layer for drafter in drafters for layer in drafter.features}))


def columns(
    features: torch.Tensor | None, layers: tuple[int, ...], wanted: tuple[int, ...]
) -> torch.Tensor | None:
    """The `wanted` layers' columns out of features [C, F] of `layers`; None where none is wanted."""
    if features is None or not wanted:
        return None
    if layers == wanted:
        return features
    parts = features.chunk(len(layers), -1)
    return torch.cat([parts[layers.index(layer)] for layer in wanted], -1)


def wanted(
    drafters: Iterable[Drafter], batch: Sequence[RequestView], rows: Sequence[range]
) -> tuple[list[range], tuple[int, ...]]:
    """The rows of text that any of them wants to see, and the layers that those read who want some."""
    found, asking = [range(0)] * len(rows), list[Drafter]()
    for drafter in drafters:
        some = drafter.wants(batch, rows)
        if any(some):
            asking.append(drafter)
            found = [_around(a, b) for a, b in zip(found, some, strict=True)]
    return found, union(asking)


def show(
    drafters: Iterable[Drafter],
    batch: Sequence[RequestView],
    rows: Sequence[range],
    features: torch.Tensor,
    layers: tuple[int, ...],
) -> None:
    """Features [C, F] of `layers` for those who look at text, and whose layers are there."""
    for drafter in drafters:
        if set(drafter.features) <= set(layers):
            own = columns(features, layers, drafter.features)
            if own is not None:
                drafter.read(batch, rows, own)


def _around(a: range, b: range) -> range:
    """The shortest run that holds both."""
    if not a or not b:
        return a or b
    return range(min(a.start, b.start), max(a.stop, b.stop))
