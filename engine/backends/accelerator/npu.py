"""The building blocks on Ascend A2 and A3 (910B, 910_93).

Every operator of torch_npu is called in this file or in `npu_310p.py`. Its operators take what they are given: what a
kernel does not support is found out by wrong results or a crash. So the limits of the operators'
documentation are checked before the call, and arguments whose defaults differ between versions are
always given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch_npu
from torch import Tensor

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockTables, WideStorage
from fastslow.engine.backends.accelerator.ops import (
    Front,
    Graph,
    LayerKV,
    PagedOps,
    add_bias,
    merged,
    only_run,
)
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import ExpertChoice
from fastslow.engine.model.ops import Linear
from fastslow.engine.types import Ints

MASK = 2048  # rows and columns of the mask that the causal kernels expand
MOST_RUNS = 4096
MOST_INNER = 65535  # of a grouped product
MOST_EXPERTS = 1024


def need(ok: bool, limit: str) -> None:
    """ValueError for a call outside of what a kernel is documented to run."""
    if not ok:
        raise ValueError(f"the NPU's kernels need {limit}")


class NpuGraph(Graph):
    """A recorded step. What attention needs as host integers is renewed in front of each replay."""

    renewed = True

    def __init__(self, run: Callable[[], None], pool: Any, stream: Any) -> None:
        run()  # sets up what the kernels keep for these shapes
        before = torch_npu.npu.current_stream()
        self._graph = torch_npu.npu.NPUGraph()
        try:
            with torch_npu.npu.graph(
                self._graph,
                pool=pool,
                stream=stream,
                auto_dispatch_capture=self.renewed,
                capture_error_mode="thread_local",  # other threads may load and free meanwhile
            ):
                run()
        except RuntimeError:
            torch_npu.npu.set_stream(before)  # the other one stays where a capture fails
            raise

    def replay(self, runs: Sequence[BlockTables]) -> None:
        # the update rewrites what a replay that still runs would read
        torch_npu.npu.current_stream().synchronize()
        # one for all calls of attention: layers with windows are not recorded
        ends, lengths = runs[0].query_ends, runs[0].seq_lens
        renewed = {"actual_seq_lengths": ends, "actual_seq_lengths_kv": lengths}
        self._graph.update(cpu_update_input=[renewed])
        self._graph.replay()


class NpuOps(PagedOps):
    """bfloat16 or float16; attention over paged keys by one fused kernel."""

    storage: ClassVar[type[WideStorage]] = WideStorage
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    most_rows = 16
    runs_int8 = True
    runtime: ClassVar[Any] = torch_npu.npu
    graph = NpuGraph

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._mask = self._triangle().to(device)

    def _triangle(self) -> Tensor:
        """1 = masked."""
        return torch.ones(MASK, MASK, dtype=torch.int8).triu_(1)

    def nearest(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if dtype in self.dtypes else self.dtypes[0]

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().check(config, dtype)
        names = " or ".join(str(d).removeprefix("torch.") for d in self.dtypes)
        need(dtype in self.dtypes, f"dtype {names}, not {str(dtype).removeprefix('torch.')}")
        alike, routed = AlikeLayers.of(config, ACCELERATORS), config.routed
        a = alike.attention
        most, group = self.storage.widths[-1], a.heads // a.kv_heads
        if alike.latent is None:  # whose attention runs by plain operators
            need(a.head_dim <= most, f"head_dim of at most {most}, not {a.head_dim}")
            need(group <= 64, f"at most 64 heads for a key head, not {group}")
            need(a.heads <= 256, f"at most 256 heads, not {a.heads}")
        need(routed is None or routed.experts < MOST_EXPERTS, f"fewer than {MOST_EXPERTS} experts")
        sizes = {"hidden_size": config.hidden_size, **alike.mlps}
        for name in ("hidden_size", "moe_intermediate_size"):
            size = sizes.get(name, 0)
            need(size <= MOST_INNER, f"{name} of at most {MOST_INNER}, not {size}")
            need(size % 16 == 0, f"{name} to be a multiple of 16, not {size}")

    def linear(self, x_TI: Tensor, matrix: Linear) -> Tensor:
        if matrix.scale is None:
            return super().linear(x_TI, matrix)
        x_q, step_T = self._quantised(x_TI)
        need(matrix.scale.dtype == torch.float32, "float32 scales of int8 weights")
        out: Tensor = torch_npu.npu_quant_matmul(
            x_q,
            matrix.weight,
            matrix.scale,
            offset=None,
            pertoken_scale=step_T,
            bias=None,
            output_dtype=x_TI.dtype,
        )
        return out if matrix.bias is None else out + matrix.bias

    def _quantised(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        need(x_TI.dtype in self.dtypes, f"rows of {self.dtypes} to quantise, not {x_TI.dtype}")
        # no `dst_type` is int8
        x_q, step_T = torch_npu.npu_dynamic_quant(x_TI, smooth_scales=None, group_index=None)
        return x_q, step_T

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        need(weight_H.dtype in (x_TH.dtype, torch.float32), "a norm's weight in the rows' dtype")
        out: Tensor = torch_npu.npu_rms_norm(x_TH, weight_H, epsilon=eps)[0]
        return out

    def add_rms_norm(
        self, x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        need(x_TH.dtype == residual_TH.dtype == weight_H.dtype, "one dtype in a norm of a sum")
        need(x_TH.numel() > 0, "at least one row in a norm of a sum")
        out, _, total = torch_npu.npu_add_rms_norm(x_TH, residual_TH, weight_H, epsilon=eps)
        return out, total

    def silu_product(self, gate_up_T2F: Tensor) -> Tensor:
        need(gate_up_T2F.is_contiguous(), "contiguous rows in front of silu")
        out: Tensor = torch_npu.npu_swiglu(gate_up_T2F, dim=-1)
        return out

    def rotate(self, x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        need(x_TND.shape[-1] % 2 == 0 and x_TND.shape[-1] < 896, "even heads below 896")
        need(x_TND.shape[1] < 1000, "fewer than 1000 heads to rotate")
        out: Tensor = torch_npu.npu_rotary_mul(x_TND, cos_T1D, sin_T1D, rotary_mode="half")
        return out

    def experts(
        self, x_TH: Tensor, chosen: ExpertChoice, mlp: ExpertsModule, y_TH: Tensor
    ) -> Tensor:
        sorted_RH, places, counts_E = self._sorted(x_TH, chosen.numbers, len(mlp.gate_up.weight))
        experts_R = self._sorted_numbers(mlp, chosen.numbers, places)
        out_RH = self._grouped(sorted_RH, counts_E, mlp, 1, experts_R)
        need(chosen.weights.dtype == torch.float32, "float32 weights of experts")
        # all of one dtype: that of the router's weights, which are not rounded
        # 2: `places` row by row, nothing dropped
        total: Tensor = torch_npu.npu_moe_finalize_routing(
            only_run(out_RH, counts_E.sum()).float(),
            y_TH.float(),
            None,
            None,
            chosen.weights,
            places,
            chosen.numbers,
            drop_pad_mode=2,
        )
        return total.to(x_TH.dtype)

    def _sorted(
        self, x_TH: Tensor, experts_TG: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows by expert, where each (row, group) went, and how many rows each expert has.

        One expert more than there are takes what does not run. It stands after all others, so leaving
        out its count leaves out its rows.
        """
        need(experts_TG.dtype == torch.int32, "int32 expert numbers")
        out = torch_npu.npu_moe_init_routing_v2(
            x_TH,
            experts_TG,
            scale=None,
            offset=None,
            active_num=experts_TG.numel(),
            expert_capacity=-1,
            expert_num=count + 1,
            drop_pad_mode=0,
            expert_tokens_num_type=1,  # counts
            expert_tokens_num_flag=True,
            quant_mode=-1,
            active_expert_range=[0, count + 1],
            row_idx_type=0,
        )
        return out[0], out[1], out[2][:count]

    def _grouped(
        self, x_RH: Tensor, groups_E: Tensor, mlp: ExpertsModule, kind: int, experts_R: Tensor
    ) -> Tensor:
        both_R2F = self._product(x_RH, mlp.gate_up, groups_E, kind)
        inner_RF = self.gated(
            add_bias(both_R2F, mlp.gate_up.bias, experts_R), mlp.ffn.expert.activation
        )
        out_RH = self._product(inner_RF, mlp.down, groups_E, kind)
        return add_bias(out_RH, mlp.down.bias, experts_R)

    def _sorted_numbers(self, mlp: ExpertsModule, numbers_TG: Tensor, places: Tensor) -> Tensor:
        """The experts of sorted rows, which only biases need."""
        if mlp.down.bias is None:
            return places
        return torch.empty_like(places).index_copy_(0, places.long(), numbers_TG.flatten())

    def _product(self, x_RI: Tensor, matrix: Linear, groups_E: Tensor, kind: int) -> Tensor:
        """Sorted rows by their experts' matrices. kind, of `groups_E`: 0 = where rows end, 1 = how many they are."""
        need(groups_E.dtype == torch.int64, "int64 group sizes")
        need(x_RI.is_contiguous(), "contiguous rows in a grouped product")
        step_R, scale, out_dtype = None, None, x_RI.dtype
        if matrix.scale is not None:
            x_RI, step_R = self._quantised(x_RI)
            # step sizes of the weights are bfloat16 where the result is
            scale = [matrix.scale.to(out_dtype) if out_dtype == torch.bfloat16 else matrix.scale]
        out: Tensor = torch_npu.npu_grouped_matmul(
            x=[x_RI],
            weight=[matrix.weight],
            scale=scale,
            per_token_scale=None if step_R is None else [step_R],
            group_list=groups_E,
            split_item=2,
            group_type=0,
            group_list_type=kind,
            act_type=0,
            output_dtype=out_dtype,
        )[0]
        return out

    def store(self, k_TKD: Tensor, v_TKD: Tensor, kv: LayerKV, slots_T: Tensor) -> None:
        need(slots_T.dtype == torch.int32, "int32 slots")
        torch_npu.npu_scatter_pa_kv_cache(
            k_TKD.contiguous(), v_TKD.contiguous(), kv.keys, kv.values, slots_T, cache_mode="Norm"
        )

    def attention_metadata(self, runs: BlockTables, rows: int) -> tuple[Ints, ...]:
        return (runs.tables.astype("int32"),)

    def attend(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables, front: Front | None = None
    ) -> Tensor:
        need(not blocks.window, "rows with windows in the tail")
        if front is None:
            return self._fused(q_THD, kv, blocks, causal=True)[0]
        text = self._fused(q_THD, kv, blocks, causal=True, weighed=True)
        return merged([text, self.attend_front(q_THD, front)], q_THD.dtype)

    def attend_in_part(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables
    ) -> tuple[Tensor, Tensor]:
        return self._fused(q_THD, kv, blocks, causal=False, weighed=True)

    def _fused(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables, causal: bool, weighed: bool = False
    ) -> tuple[Tensor, Tensor]:
        (table,), width = blocks.tensors, q_THD.shape[-1]
        rows = [b - a for a, b in zip([0, *blocks.query_ends], blocks.query_ends)]
        need(q_THD.dtype in self.dtypes, f"queries of {self.dtypes}, not {q_THD.dtype}")
        need(width in self.storage.widths, f"queries of another width than {width}")
        need(len(rows) <= MOST_RUNS, f"at most {MOST_RUNS} runs of rows, not {len(rows)}")
        need(blocks.query_ends[-1] == len(q_THD), "runs that end with the rows")
        need(min(rows) > 0 and max(rows) <= self.most_rows, f"runs of 1 to {self.most_rows} rows")
        need(all(k >= n for k, n in zip(blocks.seq_lens, rows)) or not causal, "a key for each row")
        need(min(blocks.seq_lens) > 0, "at least one key for each run")
        need(max(blocks.seq_lens) <= table.shape[1] * BLOCK, "block tables as long as the texts")
        need(table.dtype == torch.int32, "int32 block tables")
        out, weight = torch_npu.npu_fused_infer_attention_score(
            q_THD.contiguous(),
            kv.keys.flatten(2),
            kv.values.flatten(2),
            atten_mask=self._mask if causal else None,
            actual_seq_lengths=blocks.query_ends,
            actual_seq_lengths_kv=blocks.seq_lens,
            block_table=table,
            num_heads=self.shape.heads,
            scale=self.shape.scale,
            input_layout="TND",
            num_key_value_heads=self.shape.kv_heads,
            sparse_mode=3 if causal else 0,  # 3: the last row sees the last key
            inner_precise=0,
            block_size=BLOCK,
            softmax_lse_flag=weighed,
        )
        return out, weight


def chip() -> str:
    """The name of the NPU's chip, like Ascend910B1."""
    return str(torch_npu.npu.get_device_name())
