"""What an accelerator must be able to do for a model whose keys lie in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.kv import BlockStorage
from fastslow.engine.backends.accelerator.runs import KeyRuns
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Ints


class DeviceMatrix(NamedTuple):
    """A weight in the device's own form, as `PagedOps.place` gives it.

    scale: float32 [O] of an int8 weight per output channel, or [E, O] of experts; None: not int8.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class VisibleKeys:
    """Runs on the device: what the kernels want as host integers, and as tensors.

    tensors: what `PagedOps.lay` said. queries, lengths: see `Runs`.
    """

    queries: list[int]
    lengths: list[int]
    tensors: tuple[Tensor, ...]


class AttentionShape(NamedTuple):
    """Of attention. scale: what products of queries and keys are multiplied by."""

    heads: int
    kv_heads: int
    scale: float


class Graph(Protocol):
    """A recorded run of kernels on tensors that stay where they are."""

    def replay(self, queries: list[int], lengths: list[int]) -> None:
        """Run again, with these in the place of the recorded runs' host integers."""


class PagedOps(Protocol):
    """The kernels of a device. Letters: T rows, I in, O out, E experts, G groups, D width of a head.

    Nothing here but `lay`, `place` and `record` may wait for the device or copy from the host.
    """

    storage: type[BlockStorage]

    most_rows: int
    """Of a run."""

    graph_rows: int
    """Of a run in a recorded step."""

    merges: bool
    """Whether `attend` can say how much weight its keys have, so that parts can be put together."""

    records: bool
    """Whether steps can be recorded."""

    runs_int8: bool
    """Whether `linear` and `experts` take weights in int8, [I, O] and [E, I, O]."""

    tail_dtype: torch.dtype | None
    """In which the few keys of a tail are multiplied; None: the model's."""

    def nearest(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype itself, or what a model of this dtype should run in here."""

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """ValueError in one sentence for a model that the kernels cannot run."""

    def place(self, weight_OI: Tensor) -> Tensor:
        """A matrix in the order that `linear` reads."""

    def place_experts(self, weight_EIO: Tensor) -> Tensor:
        """Matrices in the order that `experts` reads."""

    def linear(self, x_TI: Tensor, matrix: DeviceMatrix) -> Tensor: ...

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(
        self, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual."""

    def silu_product(self, gate_up_T2F: Tensor) -> Tensor: ...

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """Half-split rotary embedding by plain (unsigned) sines, float32 in and out."""

    def route(self, x_TH: Tensor, router_EH: Tensor) -> Tensor:
        """Router logits, float32 [T, E]."""

    def experts(
        self,
        x_TH: Tensor,
        experts_TG: Tensor,
        weights_TG: Tensor,
        gate_up: DeviceMatrix,
        down: DeviceMatrix,
        shared_TH: Tensor,
    ) -> Tensor:
        """shared + sum of weight * expert(x), [T, H].

        experts_TG: int32; the number E stands for none. weights_TG: float32, 0 where none.
        """

    def store(
        self, k_TKD: Tensor, v_TKD: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor
    ) -> None:
        """Write rows at their slots (int32, all different)."""

    def gather(self, cache: Tensor, slots_N: Tensor, kv_heads: int) -> Tensor:
        """Rows at slots (int64): [N, kv_heads, D]."""

    def width(self, needed: int, most: int) -> int:
        """How many blocks wide the tables of a recorded step are: at least `needed`."""

    def lay(self, runs: KeyRuns, rows: int) -> tuple[Ints, ...]:
        """What `attend` needs of runs over `rows` rows as tensors; their shapes depend on the number of
        runs, the number of rows and the width of the tables alone."""

    def attend(
        self,
        q_THD: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: VisibleKeys,
        shape: AttentionShape,
        causal: bool,
    ) -> Tensor:
        """[T, heads, D]. causal: row i of a run's n sees all keys but the last n - 1 - i; else all."""

    def attend_in_part(
        self, q_THD: Tensor, keys: Tensor, values: Tensor, seen: VisibleKeys, shape: AttentionShape
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, not causal, and the logarithm of the sum of exponentials, float32 [T, heads, 1].

        Only where `merges`."""

    def record(self, run: Callable[[], None]) -> Graph:
        """Record what `run` does. It has run before, so that nothing is set up for the first time."""
