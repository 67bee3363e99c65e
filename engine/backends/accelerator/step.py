"""A step's rows as tensors, for decoders that run it without waiting for the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.accelerator.layout import AttentionLayout, BlockTables, Tail
from fastslow.engine.backends.accelerator.ops import DeviceTables, PagedOps
from fastslow.engine.backends.accelerator.staging import Staging, room
from fastslow.engine.types import Floats, Rows


class Result(NamedTuple):
    """Logits [M, V], best tokens int32 [M], features [S, F]; on the device."""

    logits: Tensor
    best: Tensor
    features: Tensor


@dataclass(frozen=True, slots=True)
class PagedStep:
    """T rows, M of whose logits and S of whose features are wanted.

    tokens int64 [T], slots int32 [T], groups int32 [T] (how many run, never ALL_GROUPS), cos and sin
    float32 [T, 1, head_dim], outputs int64 [M], feature_rows int64 [S]. rows, chains, tail: see
    `AttentionLayout`. routed: whether any row runs a routed expert. memory: what all tensors lie in,
    on a device.
    """

    tokens: Tensor
    slots: Tensor
    groups: Tensor
    cos: Tensor
    sin: Tensor
    outputs: Tensor
    feature_rows: Tensor
    rows: Tensor | None
    chains: DeviceTables | None
    tail: Tail[Tensor, DeviceTables] | None
    routed: bool
    memory: Tensor | None = None

    @classmethod
    def of(
        cls,
        rows: Rows,
        angles: tuple[Floats, Floats],
        layout: AttentionLayout,
        ops: PagedOps,
        groups: int,
    ) -> PagedStep:
        """On the CPU. angles: cosines and sines [T, head_dim / 2]. groups: the model's."""

        def tables(runs: BlockTables) -> DeviceTables:
            return device_tables(runs, ops)

        cos, sin = (_tensor(np.concatenate((x, x), -1))[:, None] for x in angles)
        running = np.where(rows.groups < 0, groups, np.minimum(rows.groups, groups))
        return cls(
            _tensor(rows.tokens),
            _tensor(rows.slots).int(),
            _tensor(running).int(),
            cos,
            sin,
            _tensor(rows.outputs),
            _tensor(rows.feature_rows),
            None if layout.rows is None else _tensor(layout.rows),
            None if layout.chains is None else tables(layout.chains),
            None if layout.tail is None else layout.tail.mapped(_tensor, tables),
            bool(running.any()),
        )

    def to(self, device: torch.device, staging: Staging) -> PagedStep:
        """The same on a device."""
        mine = self._tensors()
        memory = torch.empty(room(mine), dtype=torch.int8, device=device)
        there = iter(staging.send(mine, memory))
        return replace(self._mapped(lambda _: next(there)), memory=memory)

    def fill(self, other: PagedStep, staging: Staging) -> None:
        """Take over the numbers of a step of the same shape that is on the CPU."""
        assert self.memory is not None
        staging.send(other._tensors(), self.memory)

    def _tensors(self) -> list[Tensor]:
        """All, in the order of `_mapped`."""
        found: list[Tensor] = []

        def seen(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self._mapped(seen)
        return found

    def _mapped(self, moved: Callable[[Tensor], Tensor]) -> PagedStep:
        def tables(some: DeviceTables) -> DeviceTables:
            return replace(some, tensors=tuple(map(moved, some.tensors)))

        plain: dict[str, Any] = {name: moved(getattr(self, name)) for name in PLAIN}
        return replace(
            self,
            rows=None if self.rows is None else moved(self.rows),
            chains=None if self.chains is None else tables(self.chains),
            tail=None if self.tail is None else self.tail.mapped(moved, tables),
            **plain,
        )


PLAIN = ("tokens", "slots", "groups", "cos", "sin", "outputs", "feature_rows")


def device_tables(runs: BlockTables, ops: PagedOps) -> DeviceTables:
    """Runs as a device wants them, on the CPU."""
    laid = ops.attention_metadata(runs, runs.query_ends[-1])
    return DeviceTables(runs.query_ends, runs.seq_lens, tuple(map(_tensor, laid)))


def _tensor(values: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
