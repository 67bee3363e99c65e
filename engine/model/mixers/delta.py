"""The gated delta net: a recurrence whose state is a matrix of each head, behind a short convolution.

Yang et al., arXiv 2412.06464. Rows run one after the other, never in chunk form: the state has the same bits however a
text was cut. What a row adds (its gate, key, delta, and the convolution's input) is kept until it is folded in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.kv.state.layout import RunningState
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.norms import NormModule, RmsNorm
from fastslow.engine.model.ops import Linear, Ops, wide
from fastslow.engine.model.parts import Step, WeightReader, too_small
from fastslow.engine.model.tensor_spec import TensorSpec, linear
from fastslow.engine.rows import RunningRows

TINY = 1e-6  # beside sums of squares of queries and keys


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """`value_heads` heads [key_dim, value_dim], of which each run of value_heads / key_heads shares queries and keys.

    kernel: tokens that the convolution sees. eps: of the norm of outputs. tiled: value head n reads key head
    n % key_heads. decay_applied: files hold -exp(A_log) as `decay`, not A_log."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    eps: float = 1e-6
    tiled: bool = False
    decay_applied: bool = False

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys, values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state(self) -> RunningState:
        head = (self.value_heads, self.key_dim, self.value_dim)
        row = (
            (self.value_heads,),
            (self.key_heads, self.key_dim),
            (self.value_heads, self.value_dim),
        )
        inputs = (self.channels,), *row
        return RunningState(((self.kernel - 1, self.channels), head), inputs)

    def of_values(self, x_KD: Tensor) -> Tensor:
        """The row of key heads that each value head reads; of a token, or of each of several."""
        r = self.value_heads // self.key_heads
        return torch.cat([x_KD] * r, -2) if self.tiled else x_KD.repeat_interleave(r, -2)

    def misfits(self) -> Iterator[str]:
        heads = {"linear_num_key_heads": self.key_heads, "linear_num_value_heads": self.value_heads}
        dims = {"linear_key_head_dim": self.key_dim, "linear_value_head_dim": self.value_dim}
        yield from too_small(**heads, **dims)
        if self.value_heads % self.key_heads:
            yield (
                f"linear_num_value_heads {self.value_heads} must be a multiple of "
                f"linear_num_key_heads {self.key_heads}"
            )
        if self.kernel < 2:
            yield f"linear_conv_kernel_dim {self.kernel} must be at least 2"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        own, values = f"{prefix}.linear_attn", self.value_heads * self.value_dim
        rows = {"qkv": self.channels, "z": values, "b": self.value_heads, "a": self.value_heads}
        for name, size in rows.items():
            yield from linear(f"{own}.in_proj_{name}", size, hidden, False)
        yield TensorSpec(f"{own}.conv1d.weight", (self.channels, 1, self.kernel))
        yield TensorSpec(f"{own}.{self.decay}", (self.value_heads,))
        yield TensorSpec(f"{own}.dt_bias", (self.value_heads,))
        yield TensorSpec(f"{own}.norm.weight", (self.value_dim,))
        yield from linear(f"{own}.out_proj", hidden, values, False)

    @property
    def decay(self) -> str:
        """Name of what decays are made of in files."""
        return "decay" if self.decay_applied else "A_log"

    def load(self, prefix: str, reader: WeightReader) -> DeltaModule:
        return DeltaModule.load(self, prefix, reader)


def decay_of(a_log: Tensor) -> Tensor:
    """The rate of a gate's decay: -exp(A_log)."""
    return a_log.exp().neg()


class State(NamedTuple):
    """The last inputs of the convolution [kernel - 1, channels], and the heads [value heads, key_dim, value_dim]."""

    window: Tensor
    heads: Tensor


class RowInputs(NamedTuple):
    """Inputs that a row adds to the state: the convolution's input [channels], gate [value heads, 1, 1], key, delta."""

    mixed: Tensor
    gate: Tensor
    key: Tensor
    delta: Tensor


@dataclass
class DeltaModule:
    """A gated delta net on plain torch. conv: [kernel, channels]. decay: -exp(A_log) [value heads]. norm: [value_dim]."""

    mixer: GatedDelta
    ops: Ops
    qkv: Linear
    z: Linear
    b: Linear
    a: Linear
    conv: Tensor
    decay: Tensor
    dt_bias: Tensor
    norm: NormModule
    out: Linear

    @classmethod
    def load(cls, mixer: GatedDelta, prefix: str, reader: WeightReader) -> Self:
        own, sums = f"{prefix}.linear_attn", wide(reader.dtype)
        decay = reader.plain(f"{own}.{mixer.decay}", dtype=sums)
        qkv, z, b, a = (reader.matrix(f"{own}.in_proj_{name}") for name in ("qkv", "z", "b", "a"))
        return cls(
            mixer,
            reader.ops,
            qkv,
            z,
            b,
            a,
            reader.plain(f"{own}.conv1d.weight", dtype=sums)[:, 0].T.contiguous(),
            decay if mixer.decay_applied else decay_of(decay),
            reader.plain(f"{own}.dt_bias", dtype=sums),
            reader.norm(f"{own}.norm", RmsNorm(mixer.eps)),
            reader.matrix(f"{own}.out_proj"),
        )

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """[P, hidden]. Folds in what was accepted since the last step, then runs the rows."""
        sums, linear = wide(x_PH.dtype), self.ops.linear
        mixed, b, a = (linear(x_PH, *part).to(sums) for part in (self.qkv, self.b, self.a))
        assert kv.running is not None
        out = self._recur((mixed, a, b), kv.running, n, step).to(x_PH.dtype)
        both = torch.cat((linear(x_PH, *self.z), self.norm(out).flatten(1)), -1)
        return linear(self.ops.gated(both, "silu"), *self.out)

    def _recur(
        self, projected: tuple[Tensor, Tensor, Tensor], kv: RunningStates, n: int, step: Step
    ) -> Tensor:
        """[P, value heads, value_dim]. projected: see `_run`, of all rows."""
        mixed, heads = projected[0], (self.mixer.value_heads, self.mixer.value_dim)
        out = mixed.new_zeros(len(mixed), *heads)
        for running, own, parents in step.rows.each_running():
            rings = [part[running.place] for part in kv.rows[n]]
            inputs = tuple(part[own] for part in projected)
            self._run(running, parents.tolist(), kv.state[n], rings, inputs, out[own])
        return out

    def _run(
        self,
        running: RunningRows,
        parents: Sequence[int],
        states: Sequence[Tensor],
        rings: Sequence[Tensor],
        projected: Sequence[Tensor],
        out: Tensor,
    ) -> None:
        """Run the rows of one request.

        states: see `RunningStates`. rings: the request's. projected: of the rows, the convolution's inputs [T, channels], and those
        of gates and betas [T, value heads]. out: [T, value heads, value_dim]."""
        state = State(*(part[running.place].clone() for part in states))
        copies = (*running.snapshots, (running.folds + running.stable, running.place))

        def keep(found: State, folded: int) -> None:
            for place in [to for count, to in copies if count == folded]:
                for part, value in zip(states, found, strict=True):
                    part[place] = value

        for folded, at in enumerate(running.before.tolist(), 1):
            state = self._folded(state, RowInputs(*(ring[at] for ring in rings)))
            keep(state, folded)
        after, last = {-1: state}, {parent: i for i, parent in enumerate(parents)}
        for i, parent in enumerate(parents):
            above = after[parent] if last[parent] > i else after.pop(parent)
            inputs, out[i], made = self._row(above, *(part[i] for part in projected))
            if i in last:
                after[i] = made
            if i < running.stable:
                keep(made, running.folds + i + 1)
                continue
            for ring, value in zip(rings, inputs, strict=True):
                ring[running.at[i]] = value

    def _row(
        self, above: State, mixed: Tensor, a: Tensor, b: Tensor
    ) -> tuple[RowInputs, Tensor, State]:
        """Return the inputs of a row, its output [value heads, value_dim], and the state after it.

        Row by row, since the end of a vector may round otherwise than its middle."""
        m = self.mixer
        gate, beta = (self.decay * F.softplus(a + self.dt_bias)).exp(), b.sigmoid()
        q, k, v = self._heads((torch.cat((above.window, mixed[None])) * self.conv).sum(0))
        kept = above.heads * gate[:, None, None]
        read = (kept * m.of_values(k)[..., None]).sum(1)
        inputs = RowInputs(mixed, gate, k, (v - read) * beta[:, None])
        made = self._folded(above, inputs)
        return inputs, (made.heads * m.of_values(q)[..., None]).sum(1), made

    def _heads(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys [..., key heads, key_dim], and values, of the convolution's sums [..., channels]."""
        m = self.mixer
        keys = m.key_heads * m.key_dim
        q, k, v = F.silu(sums).split((keys, keys, m.value_heads * m.value_dim), -1)
        q, k = (x.unflatten(-1, (-1, m.key_dim)) for x in (q, k))
        q, k = (x * (x.square().sum(-1, True) + TINY).rsqrt() for x in (q, k))
        return q * m.key_dim**-0.5, k, v.unflatten(-1, (-1, m.value_dim))

    def _folded(self, state: State, row: RowInputs) -> State:
        """The state after a row, by the same operations wherever it is folded in."""
        key = self.mixer.of_values(row.key)
        heads = state.heads * row.gate[:, None, None] + key[..., None] * row.delta[:, None]
        return State(torch.cat((state.window[1:], row.mixed[None])), heads)
