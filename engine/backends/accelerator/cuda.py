"""The building blocks on NVIDIA GPUs, of plain torch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage
from fastslow.engine.backends.accelerator.ops import (
    AttentionShape,
    DeviceMatrix,
    Graph,
    VisibleKeys,
)
from fastslow.engine.backends.accelerator.runs import KeyRuns
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import wide
from fastslow.engine.types import Ints

WIDEST = 1 << 18  # keys that are gathered at once, all runs together
ALIGNMENT = 16  # bytes, of rows in a grouped product


class CudaOps:
    """Grouped products where torch has them for the dtype, one product per expert elsewhere."""

    storage: type[BlockStorage] = BlockStorage
    most_rows = 128
    graph_rows = 16
    merges = True
    runs_int8 = False
    tail_dtype: torch.dtype | None = torch.float32

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._aligned = True
        self.records = False

    def nearest(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """Everything runs; what cannot be recorded runs step by step."""
        widths = (config.hidden_size, config.moe_intermediate_size)
        self._aligned = not any(size * dtype.itemsize % ALIGNMENT for size in widths)
        grouped = not config.groups or self._grouped(dtype)
        self.records = self._device.type == "cuda" and grouped

    def _grouped(self, dtype: torch.dtype) -> bool:
        # other dtypes, odd widths and older chips read the sizes on the host
        modern = (
            self._device.type != "cuda" or torch.cuda.get_device_capability(self._device)[0] >= 9
        )
        return modern and self._aligned and dtype == torch.bfloat16 and hasattr(F, "grouped_mm")

    def place(self, weight_OI: Tensor) -> Tensor:
        return weight_OI

    def place_experts(self, weight_EIO: Tensor) -> Tensor:
        return weight_EIO

    def linear(self, x_TI: Tensor, matrix: DeviceMatrix) -> Tensor:
        return F.linear(x_TI, matrix.weight, matrix.bias)

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        sums = x_TH.to(wide(x_TH.dtype))
        return F.rms_norm(sums, sums.shape[-1:], eps=eps).to(x_TH.dtype) * weight_H

    def add_rms_norm(
        self, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x_TH + residual_TH
        return self.rms_norm(total, weight_H, eps), total

    def silu_product(self, gate_up_T2F: Tensor) -> Tensor:
        gate, up = gate_up_T2F.to(wide(gate_up_T2F.dtype)).chunk(2, -1)
        return (F.silu(gate) * up).to(gate_up_T2F.dtype)

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        first, second = x_TND.chunk(2, -1)
        return x_TND * cos_T1D + torch.cat((-second, first), -1) * sin_T1D

    def route(self, x_TH: Tensor, router_EH: Tensor) -> Tensor:
        return F.linear(x_TH.to(router_EH.dtype), router_EH)

    def experts(
        self,
        x_TH: Tensor,
        experts_TG: Tensor,
        weights_TG: Tensor,
        gate_up: DeviceMatrix,
        down: DeviceMatrix,
        shared_TH: Tensor,
    ) -> Tensor:
        count, groups = len(gate_up.weight), experts_TG.shape[1]
        flat = experts_TG.flatten()
        order = flat.argsort(stable=True)
        known = torch.arange(count, device=flat.device, dtype=flat.dtype)
        ends = torch.searchsorted(flat[order], known, right=True).to(torch.int32)
        sorted_RH = x_TH.index_select(0, order // groups)
        inner_RF = self.silu_product(self._product(sorted_RH, gate_up.weight, ends))
        out_RH = self._product(inner_RF, down.weight, ends)
        # what no expert wrote may hold anything, and 0 times NaN is not 0
        place_R = torch.arange(len(flat), device=flat.device)
        out_RH = out_RH.masked_fill((place_R >= ends[-1])[:, None], 0)
        parts = torch.empty_like(out_RH).index_copy_(0, order, out_RH)
        sums = weights_TG.dtype
        total = (parts.view(*experts_TG.shape, -1).to(sums) * weights_TG[..., None]).sum(1)
        return (shared_TH.to(sums) + total).to(x_TH.dtype)

    def _product(self, x_RI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
        if self._grouped(x_RI.dtype):
            return F.grouped_mm(x_RI, weight_EIO, offs=ends_E)
        out = x_RI.new_empty(len(x_RI), weight_EIO.shape[-1])
        first = 0
        for expert, last in enumerate(ends_E.tolist()):
            if last > first:
                torch.mm(x_RI[first:last], weight_EIO[expert], out=out[first:last])
            first = last
        return out

    def store(
        self, k_TKD: Tensor, v_TKD: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor
    ) -> None:
        keys.flatten(0, 1).index_copy_(0, slots_T.long(), k_TKD)
        values.flatten(0, 1).index_copy_(0, slots_T.long(), v_TKD)

    def gather(self, cache: Tensor, slots_N: Tensor, kv_heads: int) -> Tensor:
        return cache.flatten(0, 1).index_select(0, slots_N)

    def width(self, needed: int, most: int) -> int:
        return min(most, 1 << (needed - 1).bit_length())

    def lay(self, runs: KeyRuns, rows: int) -> tuple[Ints, ...]:
        """Block tables; the rows of each run side by side [n, Q]; how many keys each sees if it is the
        last, and if causal [n, Q]; where each row is in [n * Q]."""
        starts = np.array([0, *runs.queries])
        sizes = np.diff(starts)
        most = self.graph_rows if rows <= self.graph_rows * len(sizes) else self.most_rows
        most = max(most, int(sizes.max()))
        steps = np.arange(most)
        side = np.minimum(starts[:-1, None] + steps, starts[1:, None] - 1)
        lengths = np.array(runs.lengths)[:, None]
        causal = np.clip(lengths - sizes[:, None] + 1 + steps, 1, lengths)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        place = owner * most + np.arange(rows) - starts[owner]
        return runs.tables, side, np.broadcast_to(lengths, side.shape).copy(), causal, place

    def attend(
        self,
        q_THD: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: VisibleKeys,
        shape: AttentionShape,
        causal: bool,
    ) -> Tensor:
        tables, side, whole, ends, place = seen.tensors
        rows = q_THD.index_select(0, side.flatten()).view(*side.shape, *q_THD.shape[1:])
        ends = ends if causal else whole
        step = max(1, WIDEST // (tables.shape[1] * BLOCK))
        parts = []
        for i in range(0, len(tables), step):
            some = slice(i, i + step)
            k, v = (self._texts(side, tables[some], whole[some]) for side in (keys, values))
            key = torch.arange(k.shape[2], device=k.device)
            visible = key < ends[some, None, :, None]
            parts.append(
                F.scaled_dot_product_attention(
                    rows[some].transpose(1, 2),
                    k,
                    v,
                    attn_mask=visible,
                    scale=shape.scale,
                    enable_gqa=shape.heads != shape.kv_heads,
                )
            )
        out = torch.cat(parts).transpose(1, 2).flatten(0, 1)
        return out.index_select(0, place)

    def _texts(self, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
        """[n, kv_heads, W * 128, D], zeros behind each text: others may have left NaN there."""
        picked = cache.index_select(0, tables.flatten())
        texts = picked.view(len(tables), -1, *cache.shape[2:])
        key = torch.arange(texts.shape[1], device=texts.device)
        beyond = key >= lengths[:, :1]
        return texts.masked_fill(beyond[:, :, None, None], 0).transpose(1, 2)

    def attend_in_part(
        self, q_THD: Tensor, keys: Tensor, values: Tensor, seen: VisibleKeys, shape: AttentionShape
    ) -> tuple[Tensor, Tensor]:
        tables, side, whole, _, place = seen.tensors
        sums = wide(q_THD.dtype)
        heads, dim = q_THD.shape[1:]
        rows = q_THD.index_select(0, side.flatten()).view(*side.shape, heads, dim)
        q = rows.transpose(1, 2).to(sums) * shape.scale  # [n, heads, Q, D]
        group = heads // shape.kv_heads
        k, v = (
            self._texts(side, tables, whole).to(sums).repeat_interleave(group, 1)
            for side in (keys, values)
        )
        key = torch.arange(k.shape[2], device=k.device)
        scores = (q @ k.transpose(-1, -2)).masked_fill(key >= whole[:, None, :, None], -torch.inf)
        weight = scores.logsumexp(-1, keepdim=True)
        out = (scores - weight).exp() @ v
        picked = [x.transpose(1, 2).flatten(0, 1).index_select(0, place) for x in (out, weight)]
        return picked[0].to(q_THD.dtype), picked[1]

    def record(self, run: Callable[[], None]) -> Graph:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return CudaGraph(run, self._pool)


class CudaGraph:
    """A recorded step: all that changes lies in tensors."""

    def __init__(self, run: Callable[[], None], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            run()

    def replay(self, queries: list[int], lengths: list[int]) -> None:
        self._graph.replay()
