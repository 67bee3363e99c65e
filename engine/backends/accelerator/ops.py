"""Operations that an accelerator must have for a model whose keys lie in blocks, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BlockStorage, BlockTables
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import ExpertChoice
from fastslow.engine.model.ops import Activation, ClampedSwiglu, Linear, Ops, wide
from fastslow.engine.types import Ints


class Front(NamedTuple):
    """The front that every row of a layer sees before its text, without a place in it: logits float32 [heads], weight
    without a value; or keys and values [N, kv_heads, D]."""

    logits: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


class LayerKV(NamedTuple):
    """A layer's keys and values, as its `BlockStorage` keeps them."""

    keys: Tensor
    values: Tensor


class AttentionShape(NamedTuple):
    heads: int
    kv_heads: int
    scale: float  # what products of queries and keys are multiplied by
    latent: bool = False  # all heads have one key, whose first numbers are their values


class Graph(Protocol):
    """A recorded run of kernels on tensors that stay where they are."""

    def replay(self, runs: Sequence[BlockTables]) -> None:
        """Run again, with the host integers of these in the place of the recorded ones: one for each
        call of `attend`, in order."""


class PagedOps(ABC):
    """The kernels of a device. Letters: T rows, I in, O out, E experts, G groups, D width of a head.

    What is not abstract runs by plain operators of torch. Only `attention_metadata`, `pack` and `record` may wait for the device or copy from the host.

    Attributes:
        runtime: torch's module of the device, with its events, streams and graphs. graph: of a recorded step.
        most_rows, graph_rows: of a run, and of a run in a recorded step.
        merges: whether `attend` can say how much weight its keys have, so that parts can be merged.
        records: whether steps can be recorded.
        runs_int8: whether `linear` and `experts` take weights in int8, [I, O] and [E, I, O].
        tail_dtype: in which the few keys of a tail are multiplied; None: the model's.
        windows: whether `attend` hides what is before a row's window.
        latents: whether `attend` and `attend_in_part` take keys that hold their values.
        shape: of the model's attention, once `check` has read it.
    """

    runtime: ClassVar[Any]
    graph: ClassVar[type[Any]]
    storage: ClassVar[type[BlockStorage]]
    most_rows: ClassVar[int]
    graph_rows: ClassVar[int] = 16
    merges: ClassVar[bool] = True
    records: bool = True
    runs_int8: ClassVar[bool] = False
    tail_dtype: ClassVar[torch.dtype | None] = torch.float32
    windows: ClassVar[bool] = False
    latents: ClassVar[bool] = False
    shape: AttentionShape

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_device = device.type != "cpu"  # else its operators run on CPU tensors, in tests
        self._pool: Any = None
        self._stream: Any = None

    def active(self) -> AbstractContextManager[object]:
        """While a step runs: the device is the current one of the calling thread."""
        found: AbstractContextManager[object] = nullcontext()
        return self.runtime.device(self._device) if self._on_device else found

    def host_memory(self, size: int) -> Tensor:
        """int8 [size] on the host, pinned where the device can copy from it by itself."""
        memory = torch.zeros(size, dtype=torch.int8)
        return memory.pin_memory() if self._on_device else memory

    def event(self) -> torch.Event | None:
        """A mark after all that the device was given so far; None: it has done all of it."""
        if not self._on_device:
            return None
        mark: torch.Event = self.runtime.Event()
        mark.record()
        return mark

    def nearest(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype itself, or what a model of this dtype should run in on this device."""
        return dtype

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """ValueError in one sentence for a model that the kernels cannot run."""
        alike = AlikeLayers.of(config, ACCELERATORS)
        a = alike.attention
        self.shape = AttentionShape(a.heads, a.kv_heads, a.scale)
        if (m := alike.latent) is not None:
            self.shape = AttentionShape(m.heads, 1, m.score_scale, latent=True)
        if a.score_cap:
            raise ValueError(
                "soft caps of attention scores do not run on an accelerator, whose attention kernels "
                "have none: use device='cpu'"
            )

    def pack(self, weight_OI: Tensor) -> Tensor:
        """A matrix in the order that `linear` reads."""
        return weight_OI

    def pack_experts(self, weight_EIO: Tensor) -> Tensor:
        """Matrices in the order that `experts` reads."""
        return weight_EIO

    def linear(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        """x @ weight.T + bias. int8 weights [I, O] by int8 rows, one step size for each row."""
        return F.linear(x_TI, matrix.weight, matrix.bias)

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        sums = x_TH.to(wide(x_TH.dtype))
        return F.rms_norm(sums, sums.shape[-1:], eps=eps).to(x_TH.dtype) * weight_H

    def add_rms_norm(
        self, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum."""
        total = x_TH + residual_TH
        return self.rms_norm(total, weight_H, eps), total

    def gated(self, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        """The inner rows of an MLP [T, F]."""
        if activation == "silu":
            return self.silu_product(gate_up_T2F)
        gate, up = gate_up_T2F.to(wide(gate_up_T2F.dtype)).chunk(2, -1)
        if isinstance(activation, ClampedSwiglu):
            limit, alpha = activation.limit, activation.alpha
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            inner = gate * torch.sigmoid(gate * alpha) * (up + 1)
        elif activation == "gelu_tanh":
            inner = F.gelu(gate, approximate="tanh") * up
        else:
            raise ValueError(f"activation={activation!r} does not run on accelerators")
        return inner.to(gate_up_T2F.dtype)

    def silu_product(self, gate_up_T2F: Tensor) -> Tensor:
        gate, up = gate_up_T2F.to(wide(gate_up_T2F.dtype)).chunk(2, -1)
        return (F.silu(gate) * up).to(gate_up_T2F.dtype)

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """Half-split rotary embedding by plain (unsigned) sines, float32 in and out."""
        first, second = x_TND.chunk(2, -1)
        return x_TND * cos_T1D + torch.cat((-second, first), -1) * sin_T1D

    def route(self, x_TH: Tensor, router_EH: Tensor) -> Tensor:
        """Router logits, float32 [T, E]."""
        return F.linear(x_TH.to(router_EH.dtype), router_EH)

    @abstractmethod
    def experts(
        self, x_TH: Tensor, chosen: ExpertChoice, mlp: ExpertsModule, y_TH: Tensor
    ) -> Tensor:
        """y + sum of weight * expert(x), [T, H]. y: what the shared experts gave."""

    def store(self, k_TKD: Tensor, v_TKD: Tensor, kv: LayerKV, slots_T: Tensor) -> None:
        """Write rows at their slots (int32, all different)."""
        for cache, rows in zip(kv, (k_TKD, v_TKD)):
            cache.flatten(0, 1).index_copy_(0, slots_T.long(), rows)

    def gather(self, cache: Tensor, slots_N: Tensor) -> Tensor:
        """Rows of keys or of values at slots (int64): [N, kv_heads, D]."""
        return cache.flatten(0, 1).index_select(0, slots_N)

    def width(self, needed: int, most: int) -> int:
        """Return the width of the tables of a recorded step, in blocks: at least `needed`."""
        return most

    @abstractmethod
    def attention_metadata(self, runs: BlockTables, rows: int) -> tuple[Ints, ...]:
        """Return what `attend` needs of runs over `rows` rows, as arrays; their shapes depend on the number of
        runs, the number of rows and the width of the tables alone."""

    @abstractmethod
    def attend(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables, front: Front | None = None
    ) -> Tensor:
        """[T, heads, D]. Row i of a run's n sees all keys but the last n - 1 - i, and of these those in
        its window, which is only there where `windows`; and what is in front, only where `merges`."""

    def attend_front(self, q_THD: Tensor, front: Front) -> tuple[Tensor, Tensor]:
        """Rows over what is in front, and how much weight it has, as `attend_in_part`."""
        sums = wide(q_THD.dtype)
        if front.logits is not None:
            weight = front.logits.to(sums).expand(len(q_THD), -1)[..., None]
            return torch.zeros_like(q_THD), weight
        assert front.keys is not None and front.values is not None
        group = self.shape.heads // self.shape.kv_heads
        q = (q_THD.to(sums) * self.shape.scale).transpose(0, 1)
        k, v = (
            x.to(sums).transpose(0, 1).repeat_interleave(group, 0)
            for x in (front.keys, front.values)
        )
        scores = q @ k.transpose(-1, -2)  # [heads, T, N]
        weight = scores.logsumexp(-1, keepdim=True)
        out = (scores - weight).exp() @ v
        return out.transpose(0, 1), weight.transpose(0, 1)

    @abstractmethod
    def attend_in_part(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables
    ) -> tuple[Tensor, Tensor]:
        """As `attend`, but all rows of a run see all its keys; and the logarithm of the sum of
        exponentials, float32 [T, heads, 1]. Only where `merges`."""

    def record(self, run: Callable[[], None]) -> Graph:
        """Run it once, which sets up what the kernels keep for such shapes, then record what it does; RuntimeError
        where it cannot be recorded."""
        if self._stream is None:
            self._stream = self.runtime.Stream(self._device)
        if self._pool is None:
            self._pool = self.runtime.graph_pool_handle()
        try:
            graph: Graph = self.graph(run, self._pool, self._stream)
        except RuntimeError:
            self._pool = None  # one that a capture failed in may take no other
            raise
        return graph


def merged(parts: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Merge the outputs of attention over several parts by the logarithms of their weights: the output over all."""
    most = parts[0][1]
    for _, weight in parts[1:]:
        most = torch.maximum(most, weight)
    shares = [(weight - most).exp() for _, weight in parts]
    seen = torch.stack([out.to(most.dtype) * share for (out, _), share in zip(parts, shares)])
    return (seen.sum(0) / torch.stack(shares).sum(0)).to(dtype)


def add_bias(rows_RO: Tensor, bias_EO: Tensor | None, experts_R: Tensor) -> Tensor:
    """Rows that experts gave, each with its own one's bias; the number E stands for none."""
    if bias_EO is None:
        return rows_RO
    return rows_RO + bias_EO.index_select(0, experts_R.clamp(max=len(bias_EO) - 1))


def only_run(rows_RH: Tensor, count: Tensor) -> Tensor:
    """The first `count` rows, and zeros instead of what no expert wrote: 0 times NaN is not 0."""
    place_R = torch.arange(len(rows_RH), device=rows_RH.device)
    return rows_RH.masked_fill((place_R >= count)[:, None], 0)


class ModuleOps(Ops):
    """The device's products and norms, for modules of plain torch."""

    rows = 1

    def __init__(self, ops: PagedOps) -> None:
        self._ops = ops

    def linear(
        self,
        x_TI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        scale_O: Tensor | None = None,
    ) -> Tensor:
        return self._ops.linear(x_TI, Linear(weight_OI, bias_O, scale_O))

    def of_heads(self, x_TNI: Tensor, matrices: Any) -> Tensor:
        heads_NTO: Tensor = torch.bmm(x_TNI.transpose(0, 1), matrices)
        return heads_NTO.transpose(0, 1)

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        return self._ops.rms_norm(x_TH, weight_H, eps)

    def gated(self, gate_up_T2F: Tensor, activation: Activation) -> Tensor:
        return self._ops.gated(gate_up_T2F, activation)
