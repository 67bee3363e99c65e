"""Multi-head latent attention: all heads share one low-rank key, whose part is their values, too.

DeepSeek-V2, arXiv 2405.04434. The absorbed form runs for prompts and steps alike: the expanded one differs in bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import RowState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.lines import attend
from fastslow.engine.model.mixers.rope import Rope, rotation
from fastslow.engine.model.norms import USUAL_NORM, Norm, NormWeights, norm_tensors, normed
from fastslow.engine.model.ops import Linear, Ops, wide
from fastslow.engine.model.parts import Step, WeightReader, too_small
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec, linear

M = TypeVar("M")
MOST_SHARING = 16  # heads of a group
OF_HEADS, TO_HIDDEN = ShardRule(ShardAxis.HEADS, 0), ShardRule(ShardAxis.HEADS, 1)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """A token keeps `latent` numbers, normed, and `rope.dim` rotated ones.

    Attributes:
        nope: dims of a head's queries and keys that are not rotated.
        value_dim: dims of a head's values.
        latent: numbers of the latent that keys and values of all heads are made of.
        query_latent: the same of queries; 0: they are made of the layer's input.
        scale: what scores are multiplied with; 0: 1 / sqrt(all dims of a head's keys).
        window: tokens that a row sees, itself included; 0: all.
        norm: of both latents.
    """

    heads: int
    nope: int
    rope: Rope
    value_dim: int
    latent: int
    query_latent: int = 0
    scale: float = 0.0
    window: int = 0
    norm: Norm = USUAL_NORM

    @property
    def score_scale(self) -> float:
        """Factor of the products of queries and keys."""
        return self.scale or float((self.nope + self.rope.dim) ** -0.5)

    @property
    def absorbed(self) -> GroupedAttention:
        """Attention over what is kept, as kernels see it: heads that share a key are groups, which divide the work."""
        groups = next(
            n
            for n in range(1, self.heads + 1)
            if self.heads % n == 0 and self.heads // n <= MOST_SHARING
        )
        return GroupedAttention(
            self.heads, groups, self.state.key_dim, None, self.latent, self.window
        )

    @property
    def state(self) -> RowState:
        width = self.latent + self.rope.dim
        return RowState(1, width, self.latent, self.window, values_in_keys=True)

    def misfits(self) -> Iterator[str]:
        dims = {
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": self.rope.dim,
            "v_head_dim": self.value_dim,
        }
        yield from too_small(num_attention_heads=self.heads, kv_lora_rank=self.latent, **dims)
        yield from self.rope.misfits()
        if self.rope.dim % 2:
            yield f"qk_rope_head_dim {self.rope.dim} must be even"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        own, keys = f"{prefix}.self_attn", self.nope + self.rope.dim
        if rank := self.query_latent:
            yield from linear(f"{own}.q_a_proj", rank, hidden, False)
            yield from norm_tensors(f"{own}.q_a_layernorm", self.norm, rank)
            yield from linear(f"{own}.q_b_proj", self.heads * keys, rank, False, OF_HEADS)
        else:
            yield from linear(f"{own}.q_proj", self.heads * keys, hidden, False, OF_HEADS)
        width = self.latent + self.rope.dim
        yield from linear(f"{own}.kv_a_proj_with_mqa", width, hidden, False)
        yield from norm_tensors(f"{own}.kv_a_layernorm", self.norm, self.latent)
        both = self.heads * (self.nope + self.value_dim)
        yield from linear(f"{own}.kv_b_proj", both, self.latent, False, OF_HEADS)
        inner = self.heads * self.value_dim
        yield from linear(f"{own}.o_proj", hidden, inner, False, TO_HIDDEN)

    def load(self, prefix: str, reader: WeightReader[M, Any]) -> LatentWeights[M]:
        own, order = f"{prefix}.self_attn", self.rope.order
        turned = [*range(self.nope), *(self.nope + d for d in order)]
        query_norm = compress = None
        name = f"{own}.q_proj"
        if self.query_latent:
            compress, name = reader.matrix(f"{own}.q_a_proj"), f"{own}.q_b_proj"
            query_norm = reader.norm(f"{own}.q_a_layernorm", self.norm)
        queries = reader.plain(f"{name}.weight").unflatten(0, (self.heads, -1))[:, turned]
        keys = reader.plain(f"{own}.kv_a_proj_with_mqa.weight")
        keys = torch.cat((keys[: self.latent], keys[self.latent :][order]))
        both = reader.plain(f"{own}.kv_b_proj.weight").unflatten(0, (self.heads, -1))
        return LatentWeights(
            compress,
            query_norm,
            reader.packed(queries.flatten(0, 1).contiguous()),
            reader.packed(keys),
            reader.norm(f"{own}.kv_a_layernorm", self.norm),
            [reader.packed(head.T.contiguous()) for head in both[:, : self.nope]],
            [reader.packed(head.contiguous()) for head in both[:, self.nope :]],
            reader.matrix(f"{own}.o_proj"),
        )

    def module(self, weights: LatentWeights[Linear], ops: Ops) -> LatentModule:
        return LatentModule(self, weights, ops)


@dataclass(slots=True)
class LatentWeights(Generic[M]):
    """compress: hidden to the queries' latent, with its norm. queries: to all heads. keys: hidden to the latent and the
    rotated dims. absorb, expand: of each head, [latent, nope] and [values, latent]."""

    compress: M | None
    query_norm: NormWeights | None
    queries: M
    keys: M
    key_norm: NormWeights
    absorb: list[M]
    expand: list[M]
    out: M


class LatentModule:
    """Latent attention on plain torch."""

    def __init__(self, mixer: LatentAttention, weights: LatentWeights[Linear], ops: Ops) -> None:
        self.mixer, self.weights, self.ops = mixer, weights, ops

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Writes the rows' latents and rotated keys at their slots, then attends."""
        m, w, ops, sums = self.mixer, self.weights, self.ops, wide(x_PH.dtype)
        cos, sin = rotation(m.rope, step)
        latent, turning = ops.linear(x_PH, *w.keys).split((m.latent, m.rope.dim), -1)
        latent = normed(ops, m.norm, w.key_norm, latent.contiguous())
        turned = ops.rotate(turning[:, None].to(sums), cos, sin)
        k_SKD, v_SKD, where = kv.k[n], kv.v[n], kv.pages_of(n)
        step.store(k_SKD, torch.cat((latent[:, None], turned.to(x_PH.dtype)), -1), where)
        x_PI = x_PH
        if w.compress is not None and w.query_norm is not None:
            x_PI = normed(ops, m.norm, w.query_norm, ops.linear(x_PH, *w.compress))
        queries = ops.linear(x_PI, *w.queries).view(len(x_PH), m.heads, -1)
        plain, turning = queries.split((m.nope, m.rope.dim), -1)
        absorbed = [ops.linear(plain[:, h].contiguous(), *w.absorb[h]) for h in range(m.heads)]
        parts = (torch.stack(absorbed, 1).to(sums), ops.rotate(turning.to(sums), cos, sin))
        seen = attend(
            torch.cat(parts, -1) * m.score_scale, k_SKD, v_SKD, step, m.window, where=where
        )
        each = seen.to(x_PH.dtype).view(len(x_PH), m.heads, -1)
        out = [ops.linear(each[:, h].contiguous(), *w.expand[h]) for h in range(m.heads)]
        return ops.linear(torch.cat(out, -1), *w.out)
