"""Multi-head latent attention: all heads share one low-rank key, whose part is their values, too.

DeepSeek-V2, arXiv 2405.04434. The absorbed form runs for prompts and steps alike: the expanded one differs in bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.state.layout import RowsAndRunning, RowState, RunningState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.indexer import Indexer, IndexerModule
from fastslow.engine.model.mixers.lines import attend
from fastslow.engine.model.mixers.rope import Rope, rotation
from fastslow.engine.model.mixers.short_conv import convolved, read_taps
from fastslow.engine.model.norms import USUAL_NORM, Norm, NormModule, norm_tensors
from fastslow.engine.model.ops import NO_FRONT, Linear, Ops, RowFront, Sinks, wide
from fastslow.engine.model.parts import Step, WeightReader, padded, too_small
from fastslow.engine.model.tensor_spec import WHOLE, ShardAxis, ShardRule, TensorSpec, linear

MOST_SHARING = 16  # heads of a group
OF_HEADS, TO_HIDDEN = ShardRule(ShardAxis.HEADS, 0), ShardRule(ShardAxis.HEADS, 1)
CONVOLUTIONS = "qa_conv", "compresskv_conv", "o_conv"
Convolved = Callable[[int, Tensor], Tensor]
SINK_LATENTS, SINK_KEYS = "param_sink_compressed_kv", "param_sink_k_pe"


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
        conv: tokens that convolutions see, which add to both latents, before their norms, and to what heads saw, each
            channel for itself, but for a text's first rows, which fill no kernel; 0: there are none.
        sinks: learned latents, each with a key that is not rotated, that every row sees before its text.
        indexer: chooses what a row sees of a long text; None: it sees all.
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
    conv: int = 0
    sinks: int = 0
    indexer: Indexer | None = None

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
            self.heads, groups, self.rows.key_dim, None, self.latent, self.window, sinks=self.sinks
        )

    @property
    def rows(self) -> RowState:
        """The latent and the rotated key of each token."""
        width = self.latent + self.rope.dim
        beside = self.indexer.beside if self.indexer else 0
        return RowState(1, width, self.latent, self.window, True, beside)

    @property
    def convolved(self) -> dict[str, int]:
        """Channels that convolutions add to, by the names of their taps in files, as they lie in the running state."""
        parts = (self.query_latent, self.latent, self.heads * self.value_dim) if self.conv else ()
        return dict(zip(CONVOLUTIONS, parts, strict=False))

    @property
    def state(self) -> RowState | RowsAndRunning:
        if not self.conv:
            return self.rows
        channels = sum(self.convolved.values())
        return RowsAndRunning(self.rows, RunningState(((self.conv - 1, channels),), ((channels,),)))

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
        if self.conv == 1:
            yield "router_sliding_window 1 must be at least 2"
        if self.conv and not self.query_latent:
            yield "convolutions need a latent of queries: q_lora_rank is 0"
        if self.indexer is not None:
            yield from self.indexer.misfits(self.rope, self.query_latent)

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
        for name, channels in self.convolved.items():
            rule = OF_HEADS if name == CONVOLUTIONS[-1] else WHOLE
            yield TensorSpec(f"{own}.{name}.weight", (channels, 1, self.conv), rule)
        if self.sinks:
            yield TensorSpec(f"{own}.{SINK_LATENTS}", (self.sinks, self.latent))
            yield TensorSpec(f"{own}.{SINK_KEYS}", (self.sinks, self.rope.dim))
        if self.indexer is not None:
            yield from self.indexer.tensors(prefix, hidden, self.query_latent)

    def load(self, prefix: str, reader: WeightReader) -> LatentModule:
        own, order, indexer = f"{prefix}.self_attn", self.rope.order, self.indexer
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
        sinks, key_norm = None, reader.norm(f"{own}.kv_a_layernorm", self.norm)
        if self.sinks:
            latents = key_norm(reader.plain(f"{own}.{SINK_LATENTS}"))
            sinks = torch.cat((latents, reader.plain(f"{own}.{SINK_KEYS}")[:, order]), -1)[:, None]
        return LatentModule(
            self,
            reader.ops,
            compress,
            query_norm,
            reader.packed(queries.flatten(0, 1).contiguous()),
            reader.packed(keys),
            key_norm,
            reader.heads(both[:, : self.nope].mT),
            reader.heads(both[:, self.nope :]),
            reader.matrix(f"{own}.o_proj"),
            [read_taps(f"{own}.{name}.weight", reader) for name in self.convolved],
            sinks,
            indexer.load(prefix, reader, self.rope) if indexer and not indexer.shared else None,
        )


@dataclass
class LatentModule:
    """Latent attention on plain torch.

    compress: hidden to the queries' latent, with its norm. queries: to all heads. keys: hidden to the latent and the
    rotated dims. absorb, expand: of each head, [latent, nope] and [values, latent]. taps: of each convolution, as those
    of `ConvModule`. sinks: keys [N, 1, width] that every row sees, or none."""

    mixer: LatentAttention
    ops: Ops
    compress: Linear | None
    query_norm: NormModule | None
    queries: Linear
    keys: Linear
    key_norm: NormModule
    absorb: Any
    expand: Any
    out: Linear
    taps: list[Tensor]
    sinks: Tensor | None
    indexer: IndexerModule | None

    @cached_property
    def front(self) -> RowFront:
        """What every row sees before its keys."""
        if (keys := self.sinks) is None:
            return NO_FRONT
        return RowFront(Sinks.of(keys, keys[..., : self.mixer.latent], self.ops.block))

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Writes the rows' latents and rotated keys at their slots, then attends."""
        m, (cos, sin) = self.mixer, rotation(self.mixer.rope, step)
        added = partial(self.convolved, kv=kv, n=n, step=step)
        turned = partial(self.ops.rotate, cos_T1D=cos, sin_T1D=sin)
        q_PHD, kept, x_PI = self.project(x_PH, added, turned)
        k_SKD, where = kv.k[n], kv.pages_of(n)
        step.store(k_SKD, kept, where)
        chosen = None
        if self.indexer is not None:
            chosen = step.chosen = self.indexer(x_PH, x_PI, kv, n, step, m.heads)
        elif m.indexer is not None:
            chosen = step.chosen
        q_PHD, values = q_PHD * m.score_scale, k_SKD[..., : m.latent]
        seen = attend(q_PHD, k_SKD, values, step, m.window, self.front, where, chosen)
        return self.output(seen.to(x_PH.dtype).view(len(x_PH), m.heads, -1), added)

    def project(
        self, x_PH: Tensor, added: Convolved, turned: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [P, heads, latent + rotated] in float32 (float64 for float64), what is kept of rows, [P, 1, the same],
        and the queries' latents. turned: rotates heads. added: see `convolved`."""
        m, ops, sums = self.mixer, self.ops, wide(x_PH.dtype)
        latent, key = ops.linear(x_PH, *self.keys).split((m.latent, m.rope.dim), -1)
        latent = self.key_norm(added(1, latent.contiguous()))
        kept = torch.cat((latent[:, None], turned(key[:, None].to(sums)).to(x_PH.dtype)), -1)
        x_PI = x_PH
        if self.compress is not None and self.query_norm is not None:
            x_PI = self.query_norm(added(0, ops.linear(x_PH, *self.compress)))
        queries = ops.linear(x_PI, *self.queries).view(len(x_PH), m.heads, -1)
        plain, turning = queries.split((m.nope, m.rope.dim), -1)
        parts = ops.of_heads(plain, self.absorb).to(sums), turned(turning.to(sums))
        return torch.cat(parts, -1), kept, x_PI

    def output(self, seen_PHC: Tensor, added: Convolved) -> Tensor:
        """[P, hidden] of the latents that heads saw."""
        values_PV = self.ops.of_heads(seen_PHC, self.expand).flatten(1)
        return self.ops.linear(added(2, values_PV), *self.out)

    def convolved(
        self, part: int, x_PC: Tensor, kv: KVStorage, n: int, step: Step | None
    ) -> Tensor:
        """With what a convolution adds, where there are any. part: of `LatentAttention.convolved`."""
        if not self.mixer.conv:
            return x_PC
        assert step is not None
        first = sum([*self.mixer.convolved.values()][:part])
        inputs = x_PC.to(wide(x_PC.dtype))
        added = convolved(inputs, self.taps[part], kv, n, step, first)
        filled = step.once(("filled", self.mixer.conv), lambda: self._filled(step))
        return (inputs + added.masked_fill(~filled, 0.0)).to(x_PC.dtype)

    def _filled(self, step: Step) -> Tensor:
        """bool [P, 1]: rows that are not among a text's first ones, to which a convolution adds nothing."""
        rows = step.rows
        begins = [len(x) - rows.positions[start] for x, start in zip(rows.contexts, rows.starts)]
        before = rows.positions + np.repeat(np.array(begins), np.diff(rows.starts))
        filled = padded(before, step.padded) >= self.mixer.conv - 1
        return torch.from_numpy(filled)[:, None].to(step.device)
