"""Attention of a step's rows: runs over blocks by the device's kernels, a tail's few keys by plain products."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastslow.engine.backends.accelerator.kv import AttentionLayout, Tail
from fastslow.engine.backends.accelerator.ops import Front, LayerKV, PagedOps, merged

TAIL = 1 << 16  # slots that a tail reads at once
SCORES = 1 << 26  # products of queries and keys of a tail at once


def attend(
    ops: PagedOps, q_THD: Tensor, kv: LayerKV, layout: AttentionLayout, front: Front | None
) -> Tensor:
    """[T, heads, D], as a layout says who sees what."""
    if layout.tail is None:
        assert layout.chains is not None
        return ops.attend(q_THD, kv, layout.chains, front)
    q = q_THD.index_select(0, layout.tail.rows)
    seen = _attend_tail(ops, q, kv, layout.tail, front)
    out_THD = seen.new_empty(len(q_THD), *seen.shape[1:])
    out_THD.index_copy_(0, layout.tail.rows, seen)
    if layout.chains is not None:
        assert layout.rows is not None
        seen = ops.attend(q_THD.index_select(0, layout.rows), kv, layout.chains, front)
        out_THD.index_copy_(0, layout.rows, seen)
    return out_THD


def _attend_tail(
    ops: PagedOps, q_RHD: Tensor, kv: LayerKV, tail: Tail, front: Front | None
) -> Tensor:
    """A few keys by plain products; what blocks hold, and what is in front, join them by their weights."""
    lines, width = tail.slots.shape
    q = q_RHD.index_select(0, tail.gather.flatten()).view(lines, -1, *q_RHD.shape[1:])
    each = max(1, TAIL // width)
    some = [slice(i, i + each) for i in range(0, lines, each)]
    slots = [_attend_slots(ops, q[i], kv, tail.slots[i], tail.hidden[i]) for i in some]
    own, own_weight = (torch.cat(x).flatten(0, 1).index_select(0, tail.places) for x in zip(*slots))
    parts = [(own, own_weight)]
    if tail.runs is not None:
        text, text_weight = ops.attend_in_part(q_RHD, kv, tail.runs)
        blind = tail.blind[:, None, None]  # such a row's run read unused slots, maybe NaN
        parts.append((text.masked_fill(blind, 0), text_weight.masked_fill(blind, -torch.inf)))
    if front is not None:
        parts.append(ops.attend_front(q_RHD, front))
    return own.to(q_RHD.dtype) if len(parts) == 1 else merged(parts, q_RHD.dtype)


def _attend_slots(
    ops: PagedOps, q_BQHD: Tensor, kv: LayerKV, slots_BW: Tensor, hidden_BQW: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows over single slots: [B, Q, heads, D], and the logarithms of the sums, [B, Q, heads, 1]."""
    shape, dtype = ops.shape, ops.tail_dtype or q_BQHD.dtype
    lines, rows, heads, dim = q_BQHD.shape
    # latents lie in plain order on every device
    gather = partial(PagedOps.gather, ops) if shape.latent else ops.gather
    k, v = (
        gather(side, slots_BW.flatten())
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
