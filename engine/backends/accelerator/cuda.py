"""The building blocks on NVIDIA GPUs, of plain torch operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.kv import BLOCK, BlockStorage, BlockTables
from fastslow.engine.backends.accelerator.ops import (
    Front,
    Graph,
    LayerKV,
    PagedOps,
    add_bias,
    only_run,
)
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.experts import ExpertsModule
from fastslow.engine.model.ffn.router import ExpertChoice
from fastslow.engine.model.ops import wide
from fastslow.engine.types import Ints

WIDEST = 1 << 18  # keys that are gathered at once, over all runs
WIDE = 64  # blocks of each text whose weight is found at once
SCORES = 1 << 26  # products of queries and keys at once: 256 MiB in float32
FRONT = 16  # places in front of a text are a multiple of it, as fused kernels want rows of a mask
ALIGNMENT = 16  # bytes, of rows in a grouped product
FAST = (9, 10)  # majors of compute capabilities whose grouped products read the sizes on the device


class CudaGraph(Graph):
    """A recorded step: all that changes lies in tensors."""

    def __init__(self, run: Callable[[], None], pool: Any, stream: Any) -> None:
        before = torch.cuda.current_stream()
        try:
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                run()  # kernels are loaded and workspaces made for these shapes, not while recording
            before.wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # other threads may load and free meanwhile
            with torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                run()
        except RuntimeError:
            torch.cuda.set_stream(before)  # torch leaves the other one where a capture fails
            raise

    def replay(self, runs: Sequence[BlockTables]) -> None:
        self._graph.replay()


class CudaOps(PagedOps):
    """Grouped products where torch has them for the dtype, one product per expert elsewhere."""

    runtime: ClassVar[Any] = torch.cuda
    graph = CudaGraph
    storage = BlockStorage
    most_rows = 128
    windows = True
    latents = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._aligned = True
        self._grouped_mm, self._why = grouped_product(device)
        self.records = False

    def check(self, config: ModelConfig, dtype: torch.dtype) -> None:
        """Everything runs; what cannot be recorded runs step by step."""
        super().check(config, dtype)
        routed = config.routed
        widths = (config.hidden_size, routed.expert.width if routed else 0)
        self._aligned = not any(size * dtype.itemsize % ALIGNMENT for size in widths)
        grouped = not config.chosen or self._grouped(dtype)
        self.records = self._on_device and grouped
        if not grouped:
            odd = f"widths {widths} are not multiples of {ALIGNMENT} bytes"
            other = f"the dtype is {str(dtype).removeprefix('torch.')}, not bfloat16"
            why = self._why or (odd if dtype == torch.bfloat16 else other)
            logger.info("experts run one by one, and no step is recorded: {}", why)

    def _grouped(self, dtype: torch.dtype) -> bool:
        # other dtypes, odd widths and other chips read the sizes on the host
        return self._grouped_mm is not None and self._aligned and dtype == torch.bfloat16

    def experts(
        self, x_TH: Tensor, chosen: ExpertChoice, mlp: ExpertsModule, y_TH: Tensor
    ) -> Tensor:
        count, groups = len(mlp.gate_up.weight), chosen.numbers.shape[1]
        flat = chosen.numbers.flatten()
        order = flat.argsort(stable=True)
        known = torch.arange(count, device=flat.device, dtype=flat.dtype)
        ends = torch.searchsorted(flat[order], known, right=True).to(torch.int32)
        sorted_RH, experts = x_TH.index_select(0, order // groups), flat[order]
        both_R2F = self._product(sorted_RH, mlp.gate_up.weight, ends)
        inner_RF = self.gated(
            add_bias(both_R2F, mlp.gate_up.bias, experts), mlp.ffn.expert.activation
        )
        out_RH = self._product(inner_RF, mlp.down.weight, ends)
        out_RH = only_run(add_bias(out_RH, mlp.down.bias, experts), ends[-1])
        parts = torch.empty_like(out_RH).index_copy_(0, order, out_RH)
        sums = chosen.weights.dtype
        parts_TGH = parts.view(*chosen.numbers.shape, -1).to(sums)
        total = (parts_TGH * chosen.weights[..., None]).sum(1)
        return (y_TH.to(sums) + total).to(x_TH.dtype)

    def _product(self, x_RI: Tensor, weight_EIO: Tensor, ends_E: Tensor) -> Tensor:
        if self._grouped_mm is not None and self._grouped(x_RI.dtype):
            grouped: Tensor = self._grouped_mm(x_RI, weight_EIO, offs=ends_E)
            return grouped
        out = x_RI.new_empty(len(x_RI), weight_EIO.shape[-1])
        first = 0
        for expert, last in enumerate(ends_E.tolist()):
            if last > first:
                torch.mm(x_RI[first:last], weight_EIO[expert], out=out[first:last])
            first = last
        return out

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

    def attend(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables, front: Front | None = None
    ) -> Tensor:
        tables, side, whole, ends, place = blocks.tensors
        q = self._folded(q_THD, side)
        out = q.new_empty(*q.shape[:-1], kv.values.shape[-1])
        keys = tables.shape[1] * BLOCK
        key = torch.arange(keys, device=q.device)
        for some, rows in self._parts(side, keys):
            k, v = self._both(kv, tables[some], whole[some])
            if front is not None:
                k, v = self._after_front(k, v, front)
            for few in rows:
                last = ends[some, few, None].expand(-1, -1, self.group).flatten(1)[:, None, :, None]
                seen = key < last
                if blocks.window:
                    seen = seen & (key >= last - blocks.window)
                part = q[some, :, self._folds(few)]
                if front is not None:
                    seen = self._front_bias(seen, front, part)
                # heads are rows here: no key is repeated, and a fused kernel takes the mask
                out[some, :, self._folds(few)] = F.scaled_dot_product_attention(
                    part, k, v, attn_mask=seen, scale=self.shape.scale
                )
        return self._unfolded(out, q_THD.shape).index_select(0, place)

    def _both(self, kv: LayerKV, tables: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of texts, as `_texts`."""
        k = self._texts(kv.keys, tables, lengths)
        if self.shape.latent:
            return k, k[..., : kv.values.shape[-1]]
        return k, self._texts(kv.values, tables, lengths)

    def _after_front(self, k: Tensor, v: Tensor, front: Front) -> tuple[Tensor, Tensor]:
        """Keys and values of texts after what every row sees first, in a multiple of `FRONT` places."""
        count = 1 if front.keys is None else len(front.keys)
        room = -(-count // FRONT) * FRONT
        sides = []
        for texts, known in ((k, front.keys), (v, front.values)):
            first = texts.new_zeros(len(texts), texts.shape[1], room, texts.shape[-1])
            if known is not None:
                first[:, :, :count] = known.transpose(0, 1)
            sides.append(torch.cat((first, texts), 2))
        return sides[0], sides[1]

    def _front_bias(self, seen: Tensor, front: Front, q: Tensor) -> Tensor:
        """Return the bias of the scores (0, -inf or a sink's logit): of the front's places, then of the texts'."""
        count = 1 if front.keys is None else len(front.keys)
        room = -(-count // FRONT) * FRONT
        bias = q.new_full((len(q), q.shape[1], q.shape[2], room + seen.shape[-1]), -torch.inf)
        if front.logits is None:
            bias[..., :count] = 0
        else:
            rows = front.logits.view(1, q.shape[1], 1, -1)
            bias[..., 0] = rows.expand(1, -1, q.shape[2] // self.group, -1).flatten(2)
        bias[..., room:].masked_fill_(seen, 0)
        return bias

    @property
    def group(self) -> int:
        """Query heads of each key head."""
        return self.shape.heads // self.shape.kv_heads

    def _folded(self, q_THD: Tensor, side: Tensor) -> Tensor:
        """Queries [n, kv_heads, Q * group, D]: the heads that share keys as rows."""
        (n, rows), dim = side.shape, q_THD.shape[-1]
        q = q_THD.index_select(0, side.flatten()).view(n, rows, self.shape.kv_heads, -1, dim)
        return q.transpose(1, 2).reshape(n, self.shape.kv_heads, -1, dim)

    def _unfolded(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The way back, [n * Q, heads, D]."""
        split = x.view(*x.shape[:2], -1, self.group, x.shape[-1]).transpose(1, 2)
        return split.reshape(-1, shape[1], x.shape[-1])

    def _folds(self, rows: slice) -> slice:
        return slice(rows.start * self.group, rows.stop * self.group)

    def _parts(self, side: Tensor, keys: int) -> Iterator[tuple[slice, list[slice]]]:
        """Runs, and in them rows, whose keys and products with keys are few enough for one call."""
        runs, rows = side.shape
        products = self.shape.heads * keys
        each = max(1, min(WIDEST // keys, SCORES // (products * rows)))
        few = max(1, min(rows, SCORES // (products * each)))
        cuts = [slice(r, min(r + few, rows)) for r in range(0, rows, few)]
        for i in range(0, runs, each):
            yield slice(i, min(i + each, runs)), cuts

    def _texts(self, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
        """[n, kv_heads, W * 128, D], zeros after each text: others may have left NaN there."""
        picked = cache.index_select(0, tables.flatten())
        texts = picked.view(len(tables), -1, *cache.shape[2:])
        key = torch.arange(texts.shape[1], device=texts.device)
        beyond = key >= lengths[:, :1]
        return texts.masked_fill_(beyond[:, :, None, None], 0).transpose(1, 2)

    def attend_in_part(
        self, q_THD: Tensor, kv: LayerKV, blocks: BlockTables
    ) -> tuple[Tensor, Tensor]:
        tables, side, whole, _, place = blocks.tensors
        sums = wide(q_THD.dtype)
        q = self._folded(q_THD, side).to(sums) * self.shape.scale
        out = q.new_zeros(*q.shape[:-1], kv.values.shape[-1])
        weight = q.new_full((*q.shape[:3], 1), -torch.inf)
        width = min(tables.shape[1], WIDE)
        for first in range(0, tables.shape[1], width):
            table = tables[:, first : first + width]
            left = whole - first * BLOCK
            keys = table.shape[1] * BLOCK
            key = torch.arange(keys, device=q.device)
            for some, rows in self._parts(side, keys):
                k, v = (x.to(sums) for x in self._both(kv, table[some], left[some]))
                beyond = (key >= left[some, :1])[:, None, None]
                for few in rows:
                    at = (some, slice(None), self._folds(few))
                    scores = (q[at] @ k.transpose(-1, -2)).masked_fill(beyond, -torch.inf)
                    total = torch.logaddexp(weight[at], scores.logsumexp(-1, keepdim=True))
                    known = (weight[at] - total).exp()  # of what earlier keys gave
                    out[at] = out[at] * known + (scores - total).exp() @ v
                    weight[at] = total
        parts = [self._unfolded(x, q_THD.shape).index_select(0, place) for x in (out, weight)]
        return parts[0].to(q_THD.dtype), parts[1]


def grouped_product(device: torch.device) -> tuple[Any, str]:
    """torch's product by groups where it is fast on a device, else None and why not."""
    found = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)  # in torch 2.9
    if found is None:
        return None, f"torch {torch.__version__} has no grouped product"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major not in FAST:
            return None, f"the GPU's compute capability is {major}.{minor}, not 9 or 10"
    return found, ""
