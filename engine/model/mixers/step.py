"""The rows of one forward as modules on plain torch see them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.ops import Ops
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints

T = TypeVar("T")


@dataclass(slots=True)
class Step:
    """T real rows in a batch padded to P, and what layers that are alike make of them once. dtype: the model's."""

    rows: Rows
    padded: int  # P
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    slots: slice | Tensor = field(init=False)  # int64 [T], or the run that they are
    _made: dict[Hashable, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        run = as_run(self.rows.slots)
        self.slots = torch.from_numpy(self.rows.slots).to(self.device) if run is None else run

    @property
    def count(self) -> int:
        """T."""
        return len(self.rows.tokens)

    @property
    def tokens(self) -> Tensor:
        """int64 [P]."""
        return torch.from_numpy(padded(self.rows.tokens, self.padded)).to(self.device)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key, made by the first layer that asks."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    def store(self, cache_SKD: Tensor, fresh_PKD: Tensor) -> None:
        """Write the real rows at their slots."""
        fresh = fresh_PKD[: self.count]
        if isinstance(self.slots, slice):
            cache_SKD[self.slots].copy_(fresh)
        else:
            cache_SKD.index_copy_(0, self.slots, fresh.to(cache_SKD.dtype))


def padded(values: Ints, size: int) -> Ints:
    """Filled up with zeros."""
    return np.pad(values, (0, size - len(values)))


def as_run(slots: Ints) -> slice | None:
    """The slice that these slots are, if they are one ascending run."""
    if not len(slots):
        return None
    first = int(slots[0])
    if np.array_equal(slots, np.arange(first, first + len(slots))):
        return slice(first, first + len(slots))
    return None
