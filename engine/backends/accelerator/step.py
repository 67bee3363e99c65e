"""A step's rows as tensors, for decoders that run it without a word with the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.accelerator.ops import PagedOps, VisibleKeys
from fastslow.engine.backends.accelerator.runs import KeyRuns, RowViews, Tail
from fastslow.engine.types import Floats, Rows


class Result(NamedTuple):
    """Logits [M, V], best tokens int32 [M], features [S, F]; on the device."""

    logits: Tensor
    best: Tensor
    features: Tensor


@dataclass(frozen=True, slots=True)
class TailTensors:
    """See `Tail`."""

    rows: Tensor
    runs: VisibleKeys | None
    blind: Tensor
    gather: Tensor
    places: Tensor
    slots: Tensor
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class PagedStep:
    """T rows, M of whose logits and S of whose features are wanted.

    tokens int64 [T], slots int32 [T], groups int32 [T] (how many run, never ALL_GROUPS), cos and sin
    float32 [T, 1, head_dim], outputs int64 [M], seen int64 [S]. rows, chains, tail: see `Sight`. routed: whether
    any row runs a routed expert.
    """

    tokens: Tensor
    slots: Tensor
    groups: Tensor
    cos: Tensor
    sin: Tensor
    outputs: Tensor
    seen: Tensor
    rows: Tensor | None
    chains: VisibleKeys | None
    tail: TailTensors | None
    routed: bool

    @classmethod
    def of(
        cls, rows: Rows, angles: tuple[Floats, Floats], sight: RowViews, ops: PagedOps, groups: int
    ) -> PagedStep:
        """On the CPU. angles: cosines and sines [T, head_dim / 2]. groups: the model's."""
        cos, sin = (_tensor(np.concatenate((x, x), -1))[:, None] for x in angles)
        running = np.where(rows.groups < 0, groups, np.minimum(rows.groups, groups))
        return cls(
            _tensor(rows.tokens),
            _tensor(rows.slots).int(),
            _tensor(running).int(),
            cos,
            sin,
            _tensor(rows.outputs),
            _tensor(rows.seen),
            None if sight.rows is None else _tensor(sight.rows),
            None if sight.chains is None else seen_of(sight.chains, ops),
            None if sight.tail is None else _tail(sight.tail, ops),
            bool(running.any()),
        )

    def to(self, device: torch.device) -> PagedStep:
        """The same on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device)

        tail = self.tail
        if tail is not None:
            fields: dict[str, Any] = {name: moved(getattr(tail, name)) for name in TAIL}
            tail = replace(tail, runs=_seen_mapped(tail.runs, moved), **fields)
        plain: dict[str, Any] = {name: moved(getattr(self, name)) for name in PLAIN}
        rows = None if self.rows is None else moved(self.rows)
        chains = _seen_mapped(self.chains, moved)
        return replace(self, rows=rows, chains=chains, tail=tail, **plain)

    def fill(self, other: PagedStep) -> None:
        """Take over the numbers of a step of the same shape that has no tail."""
        for mine, theirs in zip(self._plain(), other._plain(), strict=True):
            mine.copy_(theirs)

    def _plain(self) -> Iterator[Tensor]:
        yield from (getattr(self, name) for name in PLAIN)
        if self.chains is not None:
            yield from self.chains.tensors


TAIL = ("rows", "blind", "gather", "places", "slots", "hidden")
PLAIN = ("tokens", "slots", "groups", "cos", "sin", "outputs", "seen")


def seen_of(runs: KeyRuns, ops: PagedOps) -> VisibleKeys:
    """Runs as a device wants them, on the CPU."""
    laid = ops.lay(runs, runs.queries[-1])
    return VisibleKeys(runs.queries, runs.lengths, tuple(map(_tensor, laid)))


def _tail(tail: Tail, ops: PagedOps) -> TailTensors:
    return TailTensors(
        _tensor(tail.rows),
        None if tail.runs is None else seen_of(tail.runs, ops),
        _tensor(tail.blind),
        _tensor(tail.gather),
        _tensor(tail.places),
        _tensor(tail.slots),
        _tensor(tail.hidden),
    )


def _seen_mapped(seen: VisibleKeys | None, to: Callable[[Tensor], Tensor]) -> VisibleKeys | None:
    return None if seen is None else replace(seen, tensors=tuple(map(to, seen.tensors)))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
