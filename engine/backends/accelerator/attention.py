"""Attention of a step's rows: runs over blocks by the device's kernels, a tail's few keys by plain products."""

from __future__ import annotations

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.kv import Tail
from fastslow.engine.backends.accelerator.ops import DeviceTables, Front, LayerKV, PagedOps, merged
from fastslow.engine.backends.accelerator.step import DeviceLayout

TAIL = 1 << 16  # slots that a tail reads at once
SCORES = 1 << 26  # products of queries and keys of a tail at once


class PagedAttention:
    """Attends as a layout says who sees what."""

    def __init__(self, ops: PagedOps) -> None:
        self._ops = ops

    def __call__(
        self, q_THD: Tensor, kv: LayerKV, layout: DeviceLayout, front: Front | None
    ) -> Tensor:
        if layout.tail is None:
            assert layout.chains is not None
            return self._ops.attend(q_THD, kv, layout.chains, front)
        q = q_THD.index_select(0, layout.tail.rows)
        seen = self._attend_tail(q, kv, layout.tail, front)
        out_THD = seen.new_empty(len(q_THD), *seen.shape[1:])
        out_THD.index_copy_(0, layout.tail.rows, seen)
        if layout.chains is not None:
            assert layout.rows is not None
            q = q_THD.index_select(0, layout.rows)
            seen = self._ops.attend(q, kv, layout.chains, front)
            out_THD.index_copy_(0, layout.rows, seen)
        return out_THD

    def _attend_tail(
        self, q_RHD: Tensor, kv: LayerKV, tail: Tail[Tensor, DeviceTables], front: Front | None
    ) -> Tensor:
        """A few keys by plain products; what blocks hold, and what is in front, join them by their weights."""
        lines, width = tail.slots.shape
        q = q_RHD.index_select(0, tail.gather.flatten()).view(lines, -1, *q_RHD.shape[1:])
        each = max(1, TAIL // width)
        some = [slice(i, i + each) for i in range(0, lines, each)]
        slots = [self._attend_slots(q[i], kv, tail.slots[i], tail.hidden[i]) for i in some]
        own, own_weight = (
            torch.cat(x).flatten(0, 1).index_select(0, tail.places) for x in zip(*slots)
        )
        parts = [(own, own_weight)]
        if tail.runs is not None:
            text, text_weight = self._ops.attend_in_part(q_RHD, kv, tail.runs)
            blind = tail.blind[:, None, None]  # such a row's run read unused slots, maybe NaN
            parts.append((text.masked_fill(blind, 0), text_weight.masked_fill(blind, -torch.inf)))
        if front is not None:
            parts.append(self._ops.attend_front(q_RHD, front))
        return own.to(q_RHD.dtype) if len(parts) == 1 else merged(parts, q_RHD.dtype)

    def _attend_slots(
        self, q_BQHD: Tensor, kv: LayerKV, slots_BW: Tensor, hidden_BQW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows over single slots: [B, Q, heads, D], and the logarithms of the sums, [B, Q, heads, 1]."""
        shape, dtype = self._ops.shape, self._ops.tail_dtype or q_BQHD.dtype
        lines, rows, heads, dim = q_BQHD.shape
        k, v = (
            self._gathered(side, slots_BW.flatten())
            .view(*slots_BW.shape, shape.kv_heads, -1)
            .transpose(1, 2)
            .to(dtype)
            for side in kv
        )  # [B, kv_heads, W, D]
        q = q_BQHD.view(lines, rows, shape.kv_heads, -1, dim).permute(0, 2, 3, 1, 4)
        q = q.flatten(2, 3).to(dtype) * shape.scale  # heads that share keys as rows
        hidden = hidden_BQW.repeat(1, heads // shape.kv_heads, 1)[:, None]
        parts: list[tuple[Tensor, Tensor]] = []
        each = max(1, SCORES // (lines * shape.kv_heads * slots_BW.shape[1]))
        for some, unseen in zip(q.split(each, 2), hidden.split(each, 2), strict=True):
            scores = (some @ k.transpose(-1, -2)).to(torch.promote_types(dtype, torch.float32))
            scores = scores.masked_fill(unseen, -torch.inf)
            weight = scores.logsumexp(-1, keepdim=True)
            parts.append(((scores - weight).exp().to(dtype) @ v, weight))
        both = (torch.cat(x, 2).unflatten(2, (-1, rows)) for x in zip(*parts, strict=True))
        out, weight = (x.permute(0, 3, 1, 2, 4).flatten(2, 3) for x in both)
        return out, weight

    def _gathered(self, cache: Tensor, slots_N: Tensor) -> Tensor:
        """Rows of keys or values; latents lie in plain order on every device."""
        if self._ops.shape.latent:
            return PagedOps.gather(self._ops, cache, slots_N)
        return self._ops.gather(cache, slots_N)
