"""The building blocks on NVIDIA GPUs, of plain torch operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage
from fastslow.engine.backends.accelerator.layout import BlockTables
from fastslow.engine.backends.accelerator.ops import (
    DeviceMlp,
    DeviceTables,
    ExpertChoice,
    Graph,
    LayerKV,
    PagedOps,
    only_run,
)
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import wide
from fastslow.engine.types import Ints

WIDEST = 1 << 18  # keys that are gathered at once, over all runs
ALIGNMENT = 16  # bytes, of rows in a grouped product


class CudaOps(PagedOps):
    """Grouped products where torch has them for the dtype, one product per expert elsewhere."""

    storage = BlockStorage
    most_rows = 128

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._aligned = True
        self.records = False

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """Everything runs; what cannot be recorded runs step by step."""
        super().check(config, dtype)
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

    def experts(self, x_TH: Tensor, chosen: ExpertChoice, mlp: DeviceMlp, y_TH: Tensor) -> Tensor:
        count, groups = len(mlp.gate_up.weight), chosen.numbers.shape[1]
        flat = chosen.numbers.flatten()
        order = flat.argsort(stable=True)
        known = torch.arange(count, device=flat.device, dtype=flat.dtype)
        ends = torch.searchsorted(flat[order], known, right=True).to(torch.int32)
        sorted_RH = x_TH.index_select(0, order // groups)
        inner_RF = self.silu_product(self._product(sorted_RH, mlp.gate_up.weight, ends))
        out_RH = only_run(self._product(inner_RF, mlp.down.weight, ends), ends[-1])
        parts = torch.empty_like(out_RH).index_copy_(0, order, out_RH)
        sums = chosen.weights.dtype
        parts_TGH = parts.view(*chosen.numbers.shape, -1).to(sums)
        total = (parts_TGH * chosen.weights[..., None]).sum(1)
        return (y_TH.to(sums) + total).to(x_TH.dtype)

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

    def store(self, k_TKD: Tensor, v_TKD: Tensor, kv: LayerKV, slots_T: Tensor) -> None:
        kv.keys.flatten(0, 1).index_copy_(0, slots_T.long(), k_TKD)
        kv.values.flatten(0, 1).index_copy_(0, slots_T.long(), v_TKD)

    def width(self, needed: int, most: int) -> int:
        return min(most, 1 << (needed - 1).bit_length())

    def attention_metadata(self, runs: BlockTables, rows: int) -> tuple[Ints, ...]:
        """Block tables; the rows of each run side by side [n, Q]; how many keys each sees if it is the
        last, and if causal [n, Q]; where each row is in [n * Q]."""
        starts = np.array([0, *runs.query_ends])
        sizes = np.diff(starts)
        most = self.graph_rows if rows <= self.graph_rows * len(sizes) else self.most_rows
        most = max(most, int(sizes.max()))
        steps = np.arange(most)
        side = np.minimum(starts[:-1, None] + steps, starts[1:, None] - 1)
        lengths = np.array(runs.seq_lens)[:, None]
        causal = np.clip(lengths - sizes[:, None] + 1 + steps, 1, lengths)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        place = owner * most + np.arange(rows) - starts[owner]
        return runs.tables, side, np.broadcast_to(lengths, side.shape).copy(), causal, place

    def attend(self, q_THD: Tensor, kv: LayerKV, blocks: DeviceTables) -> Tensor:
        tables, side, whole, ends, place = blocks.tensors
        rows = q_THD.index_select(0, side.flatten()).view(*side.shape, *q_THD.shape[1:])
        step = max(1, WIDEST // (tables.shape[1] * BLOCK))
        parts = []
        for i in range(0, len(tables), step):
            some = slice(i, i + step)
            k, v = (self._texts(side, tables[some], whole[some]) for side in kv)
            key = torch.arange(k.shape[2], device=k.device)
            parts.append(
                F.scaled_dot_product_attention(
                    rows[some].transpose(1, 2),
                    k,
                    v,
                    attn_mask=key < ends[some, None, :, None],
                    scale=self.shape.scale,
                    enable_gqa=self.shape.heads != self.shape.kv_heads,
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
        self, q_THD: Tensor, kv: LayerKV, blocks: DeviceTables
    ) -> tuple[Tensor, Tensor]:
        tables, side, whole, _, place = blocks.tensors
        sums = wide(q_THD.dtype)
        heads, dim = q_THD.shape[1:]
        rows = q_THD.index_select(0, side.flatten()).view(*side.shape, heads, dim)
        q = rows.transpose(1, 2).to(sums) * self.shape.scale  # [n, heads, Q, D]
        group = heads // self.shape.kv_heads
        k, v = (
            self._texts(side, tables, whole).to(sums).repeat_interleave(group, 1) for side in kv
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


class CudaGraph(Graph):
    """A recorded step: all that changes lies in tensors."""

    def __init__(self, run: Callable[[], None], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            run()

    def replay(self, query_ends: list[int], seq_lens: list[int]) -> None:
        self._graph.replay()
