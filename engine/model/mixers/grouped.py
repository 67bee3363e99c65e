"""Grouped-query attention over cached keys and values. Ainslie et al., arXiv 2305.13245."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.state.layout import RowState, SharedState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.mixers.lines import attend
from fastslow.engine.model.mixers.rope import Rope, rotation
from fastslow.engine.model.norms import Norm, NormModule, RmsNorm, norm_tensors
from fastslow.engine.model.ops import Linear, Ops, RowFront, Sinks, sigmoid, wide
from fastslow.engine.model.parts import Step, WeightReader, padded, too_small
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec, linear

QUERIES, KEYS = ShardRule(ShardAxis.HEADS, 0), ShardRule(ShardAxis.KV_HEADS, 0)
SINK_ROWS = ShardRule(ShardAxis.KV_HEADS, 1)
CUTS = {"q": QUERIES, "k": KEYS, "v": KEYS, "qkv": ShardRule(ShardAxis.QKV, 0)}


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Attention of `heads` query heads over `kv_heads` heads of keys and values. 0 or None: it has no such part.

    Attributes:
        rope: None where queries and keys are not rotated.
        value_dim: dims of a head's values; 0: head_dim.
        window: tokens that a row sees, itself included; 0: all.
        query_norm, key_norm: every head is normed before it is rotated. norms_whole: all heads are normed together.
        norm_turned: they are normed after they are rotated.
        value_norm: every head of values is normed, without a weight: v / sqrt(mean(v^2) + eps), before it is kept.
        keys_as_values: there is no `v_proj`; values are what `k_proj` gives, before norms and rotation.
        qkv_fused: the file has one matrix `qkv_proj` for queries, keys and values.
        sink_logits: every query head has a learned logit that takes its share of the softmax, and no value.
        sinks: learned keys that every token sees before its text. sink_values: their values are learned, too.
        score_cap: scores x become cap * tanh(x / cap).
        shares: an earlier layer, whose keys and values this one reads; it has none of its own.
        out_gate: `q_proj` has a gate after each head's query; what the head saw is multiplied by its sigmoid.
        score_scale: factor of the products of queries and keys; 0: head_dim ** -0.5.
        position_scale: (beta, length): queries at position p are multiplied by 1 + beta * ln(1 + p // length).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope | None
    value_dim: int = 0
    window: int = 0
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qkv_fused: bool = False
    sink_logits: bool = False
    sinks: int = 0
    sink_values: bool = False
    score_cap: float = 0.0
    shares: int | None = None
    out_gate: bool = False
    norms_whole: bool = False
    norm_turned: bool = False
    score_scale: float = 0.0
    position_scale: tuple[float, int] | None = None
    value_norm: RmsNorm | None = None
    keys_as_values: bool = False

    @property
    def value_width(self) -> int:
        """Dims of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def scale(self) -> float:
        """Factor of the products of queries and keys."""
        return self.score_scale or float(self.head_dim**-0.5)

    @property
    def query_width(self) -> int:
        """Rows of the queries' matrix."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Rows of the keys' matrix."""
        return self.kv_heads * self.head_dim

    @property
    def state(self) -> RowState | SharedState:
        if self.shares is not None:
            return SharedState(self.shares)
        return RowState(self.kv_heads, self.head_dim, self.head_dim, self.window)

    @property
    def order(self) -> list[int]:
        """For each dim here, the dim of the file's heads."""
        return list(range(self.head_dim)) if self.rope is None else self.rope.order

    @property
    def heads_as_stored(self) -> bool:
        """True where heads run with the dims that the file has, in its order."""
        same = self.order == list(range(self.head_dim)) and self.value_width == self.head_dim
        return same and not self.out_gate

    @property
    def sides(self) -> dict[str, int]:
        """Rows of each matrix that reads the layer's input, by its name in files."""
        queries, keys = self.query_width * (1 + self.out_gate), self.key_width
        values = self.kv_heads * self.value_width
        if self.shares is not None:
            return {"q": queries}
        if self.qkv_fused:
            return {"qkv": queries + keys + values}
        if self.keys_as_values:
            return {"q": queries, "k": keys}
        return {"q": queries, "k": keys, "v": values}

    def misfits(self) -> Iterator[str]:
        yield from too_small(num_attention_heads=self.heads, num_key_value_heads=self.kv_heads)
        if self.rope is not None:
            yield from self.rope.misfits()
            if self.rope.dim != self.head_dim:
                yield f"a rotation of {self.rope.dim} dims is not one of head_dim {self.head_dim}"
        if self.heads % self.kv_heads:
            yield (
                f"num_attention_heads {self.heads} must be a multiple of num_key_value_heads "
                f"{self.kv_heads}"
            )
        if self.head_dim % 2 or self.head_dim < 4:
            yield f"head_dim {self.head_dim} must be an even number of at least 4"
        if not 0 <= self.value_dim <= self.head_dim:
            yield f"value_dim {self.value_dim} must be at most {self.head_dim}, the keys' size"
        if self.norms_whole and self.sinks:
            yield "sinks need norms of each head of keys"
        if self.norm_turned and self.norms_whole:
            yield "norms of all heads together come before rotation"
        if self.out_gate and (self.value_dim or self.shares is not None or self.qkv_fused):
            yield "gates of attention need heads of one size, and keys and matrices of their own"
        if (self.keys_as_values or self.value_norm) and (
            not self.heads_as_stored or self.qkv_fused or self.sinks
        ):
            yield "values that are normed, or made of keys, need heads of one size, in whole, and neither gates nor sinks"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        own = f"{prefix}.self_attn"
        for name, rows in self.sides.items():
            yield from linear(f"{own}.{name}_proj", rows, hidden, self.qkv_bias, CUTS[name])
        inner, out = self.heads * self.value_width, ShardRule(ShardAxis.HEADS, 1)
        first = ShardRule(ShardAxis.FIRST_OF_HEADS)
        yield from linear(f"{own}.o_proj", hidden, inner, self.out_bias, out, first)
        for side, kind in (("q", self.query_norm), ("k", self.key_norm)):
            if kind is not None:
                heads = (self.heads if side == "q" else self.kv_heads) if self.norms_whole else 1
                yield from norm_tensors(f"{own}.{side}_norm", kind, heads * self.head_dim)
        if self.sink_logits:
            yield TensorSpec(f"{own}.sinks", (self.heads,), QUERIES)
        if self.sinks:
            shape = self.sinks, self.kv_heads, self.head_dim
            yield TensorSpec(f"{own}.param_sink_key", shape, SINK_ROWS)
        if self.sinks and self.sink_values:
            shape = self.sinks, self.kv_heads, self.value_width
            yield TensorSpec(f"{own}.param_sink_value", shape, SINK_ROWS)

    def load(self, prefix: str, reader: WeightReader) -> GroupedModule:
        own, sums = f"{prefix}.self_attn", wide(reader.dtype)
        query_norm, key_norm = (
            None if kind is None else self._ordered(reader.norm(f"{own}.{side}_norm", kind))
            for side, kind in (("q", self.query_norm), ("k", self.key_norm))
        )
        sinks = None
        if self.sinks:
            keys = reader.plain(f"{own}.param_sink_key")[..., self.order].contiguous()
            values = torch.zeros_like(keys)
            if self.sink_values:
                learned = reader.plain(f"{own}.param_sink_value")
                values = F.pad(learned, (0, self.head_dim - self.value_width))
            sinks = keys if key_norm is None else key_norm(keys), values
        return GroupedModule(
            self,
            reader.ops,
            self._qkv(own, reader),
            self._out(own, reader),
            query_norm,
            key_norm,
            reader.plain(f"{own}.sinks", dtype=sums) if self.sink_logits else None,
            sinks,
        )

    def _ordered(self, norm: NormModule) -> NormModule:
        weight, bias = (
            None if x is None else x.view(-1, self.head_dim)[:, self.order].flatten()
            for x in (norm.weight, norm.bias)
        )
        assert weight is not None
        return replace(norm, weight=weight, bias=bias)

    def _qkv(self, own: str, reader: WeightReader) -> Linear:
        names = [f"{own}.{side}_proj" for side in self.sides]
        if self.heads_as_stored:
            return reader.matrix(*names, bias=self.qkv_bias)
        weight = reader.plain(*(f"{name}.weight" for name in names))
        bias = reader.plain(*(f"{name}.bias" for name in names)) if self.qkv_bias else None
        return reader.packed(self.run_heads(weight), None if bias is None else self.run_heads(bias))

    def _out(self, own: str, reader: WeightReader) -> Linear:
        name = f"{own}.o_proj"
        if self.value_width == self.head_dim:
            return reader.matrix(name, bias=self.out_bias)
        bias = reader.plain(f"{name}.bias") if self.out_bias else None
        return reader.packed(self.run_out(reader.plain(f"{name}.weight")), bias)

    def run_heads(self, rows: Tensor) -> Tensor:
        """Rows of queries, keys, values and gates as layers run them: dims in the order in which they are rotated,
        values filled up with zeros to the width of keys."""
        if self.out_gate:
            first = 2 * self.query_width
            queries, gates = rows[:first].unflatten(0, (self.heads, 2, -1)).unbind(1)
            rest = replace(self, out_gate=False).run_heads(
                torch.cat((queries.flatten(0, 1), rows[first:]))
            )
            return torch.cat((rest, gates.flatten(0, 1)))
        count = self.heads if self.shares is not None else self.heads + self.kv_heads
        turned = count * self.head_dim
        heads: Tensor = rows[:turned].unflatten(0, (-1, self.head_dim))[:, self.order].flatten(0, 1)
        if self.shares is not None:
            return heads
        values = rows[turned:].unflatten(0, (self.kv_heads, -1))
        room = self.head_dim - self.value_width
        missing = values.new_zeros(self.kv_heads, room, *rows.shape[1:])
        return torch.cat((heads, torch.cat((values, missing), 1).flatten(0, 1)))

    def run_out(self, weight_HI: Tensor) -> Tensor:
        """The output matrix with zero columns where `run_heads` filled values up."""
        whole = weight_HI.unflatten(1, (self.heads, self.value_width))
        return F.pad(whole, (0, self.head_dim - self.value_width)).flatten(1)


@dataclass
class GroupedModule:
    """Grouped attention on plain torch.

    qkv: q, k, v and gates stacked into one matrix [(heads + 2 kv_heads + heads if gated) * head_dim, hidden], without v
    where values are made of keys, and q alone where the layer shares keys. Norms of heads, before rotation. sink_logits:
    [heads], float32 (float64 for float64). sinks: keys, normed, and values, [sinks, kv_heads, head_dim]."""

    mixer: GroupedAttention
    ops: Ops
    qkv: Linear
    out: Linear
    query_norm: NormModule | None = None
    key_norm: NormModule | None = None
    sink_logits: Tensor | None = None
    sinks: tuple[Tensor, Tensor] | None = None

    @cached_property
    def front(self) -> RowFront:
        """What every row sees before its keys."""
        sinks = None if self.sinks is None else Sinks.of(*self.sinks, self.ops.block)
        return RowFront(sinks, self.sink_logits, self.mixer.score_cap)

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Writes the rows' keys and values at their slots, then attends."""
        k_SKD, v_SKD, where = kv.k[n], kv.v[n], kv.pages_of(n)
        q_PHD, *fresh = self.project(x_PH, step)
        gates = fresh.pop() if self.mixer.out_gate else None
        for cache, rows in zip((k_SKD, v_SKD), fresh, strict=self.mixer.shares is None):
            step.store(cache, rows, where)
        q_PHD = q_PHD * self.mixer.scale
        if self.mixer.position_scale is not None:
            q_PHD *= step.once(
                self.mixer.position_scale,
                lambda: position_scales(self.mixer, step).to(q_PHD),
            )
        seen = attend(q_PHD, k_SKD, v_SKD, step, self.mixer.window, self.front, where)
        if gates is not None:
            seen = seen * sigmoid(gates.flatten(1).to(seen.dtype))
        return self.ops.linear(seen.to(x_PH.dtype), *self.out)

    def project(self, x_PH: Tensor, step: Step) -> Sequence[Tensor]:
        """Queries [P, heads, head_dim], and keys and values [P, kv_heads, head_dim] where the layer has its own; the
        first two rotated, where the layer does so, and in float32 (float64 for float64). Gates as queries come last."""
        m = self.mixer
        mixed = self.ops.linear(x_PH, *self.qkv).view(len(x_PH), -1, m.head_dim)
        turning = m.heads if m.shares is not None else m.heads + m.kv_heads
        if m.keys_as_values and m.shares is None:
            mixed = torch.cat((mixed, mixed[:, m.heads :]), 1)
        parts = [m.heads] if m.shares is not None else [m.heads, m.kv_heads, m.kv_heads]
        sides = mixed.split(parts + [m.heads] * m.out_gate, 1)
        if not m.norm_turned:
            self._norm_heads(sides)
        if m.value_norm is not None and m.shares is None:
            ones = sides[2].new_ones(m.head_dim)
            sides[2].copy_(self.ops.rms_norm(sides[2].contiguous(), ones, m.value_norm.eps))
        turned = mixed[:, :turning].to(wide(x_PH.dtype))
        if (rope := m.rope) is not None:
            turned = self.ops.rotate(turned, *rotation(rope, step))
        heads = turned.split(parts[:2], 1)
        if m.norm_turned:
            self._norm_heads(heads)
        return *heads, *sides[len(heads) :]

    def _norm_heads(self, sides: Sequence[Tensor]) -> None:
        """Norm queries, and keys where there are some, in place."""
        for side, norm in zip(sides, (self.query_norm, self.key_norm), strict=False):
            if norm is not None:
                rows = side.flatten(1) if self.mixer.norms_whole else side.contiguous()
                side.copy_(norm(rows).view(side.shape))


def position_scales(mixer: GroupedAttention, step: Step) -> Tensor:
    """float64 [P, 1, 1]: what the queries of each row are multiplied with by `position_scale`, padding too."""
    assert mixer.position_scale is not None
    beta, length = mixer.position_scale
    positions = padded(step.rows.positions, step.padded)
    return torch.from_numpy(1 + beta * np.log1p(positions // length))[:, None, None]
