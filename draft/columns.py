"""Features of several drafters in one tensor: who reads which layers finds them here."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastslow.engine.types import Drafter


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
