"""Grouped-query attention over cached keys and values.

GQA: Ainslie et al., arXiv 2305.13245.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import Keys, Ops, Sinks, wide
from fastslow.engine.model.visibility import Lines


@dataclass(slots=True)
class Step:
    """What all layers of one forward share: T real rows in a batch padded to P."""

    count: int  # T
    slots: slice | Tensor  # int64 [T], or the run that they are
    cos: Tensor
    sin: Tensor
    lines: Sequence[Lines]


@dataclass(slots=True)
class Attention:
    """q, k and v stacked into one matrix [(heads + 2 kv_heads) * head_dim, hidden]."""

    config: ModelConfig
    ops: Ops
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    key_norm: Tensor | None = None  # [head_dim], before rotation
    sinks: Sinks | None = None  # keys and values before every text

    def __call__(self, x_PH: Tensor, k_SKD: Tensor, v_SKD: Tensor, step: Step) -> Tensor:
        """[P, hidden]. Writes the rows' keys and values at their slots, then attends."""
        q_PHD, k_PKD, v_PKD = self.project(x_PH, step.cos, step.sin)
        _store(k_SKD, step, k_PKD)
        _store(v_SKD, step, v_PKD)
        q_PHD = q_PHD * self.config.head_dim**-0.5
        seen = self._attend(q_PHD, k_SKD, v_SKD, step).to(x_PH.dtype)
        return self.leave(seen)

    def project(self, x_PH: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [P, heads, head_dim], keys and values [P, kv_heads, head_dim] of rows; the first two
        rotated and in float32 (float64 for float64)."""
        c = self.config
        mixed = self.ops.linear(x_PH, self.qkv, self.qkv_bias)
        mixed = mixed.view(-1, c.heads + 2 * c.kv_heads, c.head_dim)
        if self.key_norm is not None:
            keys = mixed[:, c.heads : c.heads + c.kv_heads]
            keys.copy_(self.ops.rms_norm(keys.contiguous(), self.key_norm, c.rms_norm_eps))
        turned = self.ops.rotate(mixed[:, : c.heads + c.kv_heads].to(wide(x_PH.dtype)), cos, sin)
        return turned[:, : c.heads], turned[:, c.heads :], mixed[:, c.heads + c.kv_heads :]

    def leave(self, seen_PI: Tensor) -> Tensor:
        """[P, hidden] from what the heads saw, [P, heads * head_dim]."""
        return self.ops.linear(seen_PI, self.out, self.out_bias)

    def _attend(self, q_PHD: Tensor, k_SKD: Tensor, v_SKD: Tensor, step: Step) -> Tensor:
        first = step.lines[0]
        if first.gather is None:
            return self.ops.attend(q_PHD[None], k_SKD, v_SKD, self._with_sinks(first.keys))[0]
        out = q_PHD.new_zeros(q_PHD.shape[0], q_PHD[0].numel())
        for lines in step.lines:
            assert lines.gather is not None and lines.rows is not None
            assert lines.scatter is not None
            q = q_PHD.index_select(0, lines.gather).view(lines.count, -1, *q_PHD.shape[1:])
            part = self.ops.attend(q, k_SKD, v_SKD, self._with_sinks(lines.keys)).flatten(0, 1)
            out.index_copy_(0, lines.rows, part.index_select(0, lines.scatter))
        return out

    def _with_sinks(self, keys: Keys) -> Keys:
        return keys if self.sinks is None else replace(keys, sinks=self.sinks)


def _store(cache_SKD: Tensor, step: Step, fresh_PKD: Tensor) -> None:
    fresh = fresh_PKD[: step.count]
    if isinstance(step.slots, slice):
        cache_SKD[step.slots].copy_(fresh)
    else:
        cache_SKD.index_copy_(0, step.slots, fresh.to(cache_SKD.dtype))
