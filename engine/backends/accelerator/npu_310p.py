"""The building blocks on Ascend 310P (300I Duo): float16, fractal weights, its own attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch_npu
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BlockTables, FractalStorage
from fastslow.engine.backends.accelerator.npu import MASK, NpuGraph, NpuOps, need
from fastslow.engine.backends.accelerator.ops import (
    Front,
    LayerKV,
    only_run,
)
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import ExpertChoice
from fastslow.engine.model.ops import Linear
from fastslow.engine.types import Ints

FRACTAL_NZ = 29
MASKED = -10000.0


class Npu310pGraph(NpuGraph):
    """A recorded step whose lengths are tensors: nothing is renewed but what they hold."""

    renewed = False

    def replay(self, runs: Sequence[BlockTables]) -> None:
        self._graph.replay()


class Npu310pOps(NpuOps):
    """Differences from A2: attention without weights to merge by, group sizes as running totals."""

    storage = FractalStorage
    dtypes: tuple[torch.dtype, ...] = (torch.float16,)
    most_rows = MASK
    graph_rows = 1  # the only attention whose lengths are a tensor sees one row of each text
    merges = False
    runs_int8 = False  # its quantised products take other arguments
    tail_dtype = None
    graph = Npu310pGraph

    def _triangle(self) -> Tensor:
        """Added to products of queries and keys."""
        return torch.full((MASK, MASK), MASKED, dtype=torch.float16).triu_(1)

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().check(config, dtype)
        for name, size in AlikeLayers.of(config, ACCELERATORS).mlps.items():
            need(size % 16 == 0, f"{name} to be a multiple of 16, not {size}")

    def pack(self, weight_OI: Tensor) -> Tensor:
        if any(size % 16 for size in weight_OI.shape):
            return weight_OI
        return self._fractal(weight_OI)

    def pack_experts(self, weight_EIO: Tensor) -> Tensor:
        need(all(size % 16 == 0 for size in weight_EIO.shape[1:]), "experts in multiples of 16")
        return self._fractal(weight_EIO)

    def _fractal(self, weight: Tensor) -> Tensor:
        need(weight.dtype in self.dtypes, f"weights of float16, not {weight.dtype}")
        cast: Tensor = torch_npu.npu_format_cast(weight.contiguous(), FRACTAL_NZ)
        return cast

    def linear(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        need(matrix.scale is None, "float16 weights on a 310P")
        return F.linear(x_TI, matrix.weight, matrix.bias)

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        need(x_TH.dtype == weight_H.dtype, "a norm's weight in the rows' dtype")
        need(x_TH.shape[-1] * x_TH.element_size() >= 32, "rows of at least 32 bytes")
        return super().rms_norm(x_TH, weight_H, eps)

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        if x_TND.shape[-1] != 128:  # the kernel knows no other
            swapped = torch.cat(x_TND.chunk(2, -1)[::-1], -1)
            half = x_TND.shape[-1] // 2
            sign = torch.cat((-sin_T1D[..., :half], sin_T1D[..., half:]), -1)
            return x_TND * cos_T1D + swapped * sign
        out: Tensor = torch_npu.npu_rotary_mul(
            x_TND[None], cos_T1D[None], sin_T1D[None], rotary_mode="half"
        )
        return out[0]

    def experts(
        self, x_TH: Tensor, chosen: ExpertChoice, mlp: ExpertsModule, y_TH: Tensor
    ) -> Tensor:
        need(mlp.gate_up.scale is None, "float16 experts on a 310P")
        need(x_TH.shape[-1] % 16 == 0, "hidden_size to be a multiple of 16")
        # this chip gives running totals, whatever is asked for
        sorted_RH, places, ends_E = self._sorted(x_TH, chosen.numbers, len(mlp.gate_up.weight))
        experts_R = self._sorted_numbers(mlp, chosen.numbers, places)
        out_RH = self._grouped(sorted_RH, ends_E, mlp, 0, experts_R)
        need(chosen.weights.dtype == torch.float32, "float32 weights of experts")
        # by plain operators: no document says in which dtypes this chip's fused sum runs
        run_RH = only_run(out_RH, ends_E[-1]).index_select(0, places)
        parts_TGH = run_RH.view(*chosen.numbers.shape, -1).float() * chosen.weights[..., None]
        return (parts_TGH.sum(1) + y_TH).to(x_TH.dtype)

    def store(self, k_TKD: Tensor, v_TKD: Tensor, kv: LayerKV, slots_T: Tensor) -> None:
        need(slots_T.dtype == torch.int32, "int32 slots")
        torch_npu._npu_reshape_and_cache(
            key=k_TKD.contiguous(),
            value=v_TKD.contiguous(),
            key_cache=kv.keys,
            value_cache=kv.values,
            slot_indices=slots_T,
        )

    def gather(self, cache: Tensor, slots_N: Tensor) -> Tensor:
        block = cache.shape[2]
        found = cache[slots_N // block, :, slots_N % block]  # [N, kv_heads * D / 16, 16]
        return found.reshape(len(slots_N), self.shape.kv_heads, -1)

    def attention_metadata(self, runs: BlockTables, rows: int) -> tuple[Ints, ...]:
        return (runs.tables.astype("int32"), np.array(runs.seq_lens, dtype=np.int32))

    def attend(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables, front: Front | None = None
    ) -> Tensor:
        need(front is None and not blocks.window, "such rows in the tail")
        table, lengths = blocks.tensors
        rows = [b - a for a, b in zip([0, *blocks.query_ends], blocks.query_ends)]
        need(q_THD.dtype in self.dtypes, f"queries of float16, not {q_THD.dtype}")
        need(min(rows) > 0 and max(rows) <= MASK, f"runs of 1 to {MASK} rows")
        need(table.dtype == lengths.dtype == torch.int32, "int32 block tables and lengths")
        q_THD = q_THD.contiguous()
        out = torch.empty_like(q_THD)
        if max(rows) == 1:
            torch_npu._npu_paged_attention(
                query=q_THD,
                key_cache=kv.keys,
                value_cache=kv.values,
                num_kv_heads=self.shape.kv_heads,
                num_heads=self.shape.heads,
                scale_value=self.shape.scale,
                block_table=table,
                context_lens=lengths,
                out=out,
            )
            return out
        torch_npu._npu_paged_attention_splitfuse_v2(
            query=q_THD,
            key_cache=kv.keys,
            value_cache=kv.values,
            block_table=table,
            context_lens=lengths,
            mask=self._mask,
            seq_len=torch.tensor(rows, dtype=torch.int32),  # stays on the host
            num_kv_heads=self.shape.kv_heads,
            num_heads=self.shape.heads,
            scale_value=self.shape.scale,
            mask_type=5,
            out=out,
        )
        return out

    def attend_in_part(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables
    ) -> tuple[Tensor, Tensor]:
        raise ValueError("a 310P's attention does not say what its keys weigh")
