"""Several residual streams, which every sublayer reads, adds to and mixes by weights that it makes of them.

Manifold-constrained hyper-connections: Xie et al., arXiv 2512.24880. Streams of a row lie one after the other. Weights
are made in float32 (float64 for float64), and sums run stream by stream: a row's bits depend on it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastslow.engine.model.norms import USUAL_NORM, Connection, NormModule, RmsNorm, Sublayer
from fastslow.engine.model.ops import Ops, sigmoid, wide
from fastslow.engine.model.parts import WeightReader
from fastslow.engine.model.tensor_spec import TensorSpec

LEAST = 1e-6  # beside what is divided by, and of a stream that is read
MOST_STREAMS, MOST_ROUNDS = 16, 64
MERGE = "model.merge_mhc_module"
WHOLE_NORM = "block_post_layernorm"
MODULES = {"mixer": "attn_mhc_module", "ffn": "mlp_mhc_module"}


@dataclass(frozen=True, slots=True)
class Streams:
    """Of a layer: how both of its sublayers stand in `count` streams.

    rounds: of Sinkhorn's algorithm, which makes the matrix that mixes streams doubly stochastic. norm: of all streams
    together, of which weights are made; merge_norm: the same at the end. whole_norm: of all streams together, after the layer; None: there is none. At the end of the decoder the streams become one."""

    count: int = 4
    rounds: int = 20
    norm: RmsNorm = USUAL_NORM
    merge_norm: RmsNorm = USUAL_NORM
    whole_norm: RmsNorm | None = None

    def misfits(self) -> Iterator[str]:
        for name, value, most in (
            ("mhc_num_stream", self.count, MOST_STREAMS),
            ("mhc_recur_norm", self.rounds, MOST_ROUNDS),
        ):
            if not 1 <= value <= most:
                yield f"{name} {value} must be from 1 to {most}"

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        """Those of a layer."""
        width, made = self.count * hidden, self.count * (self.count + 2)
        for name in MODULES.values():
            yield TensorSpec(f"{prefix}.{name}.phi.weight", (made, width))
            yield TensorSpec(f"{prefix}.{name}.branch_alpha", (3,))
            yield TensorSpec(f"{prefix}.{name}.branch_beta", (made,))
            yield TensorSpec(f"{prefix}.{name}.norm_gamma", (width,))
        if self.whole_norm is not None:
            yield TensorSpec(f"{prefix}.{WHOLE_NORM}.weight", (width,))

    def merge_tensors(self, hidden: int) -> Iterator[TensorSpec]:
        """Those of the decoder's end."""
        width = self.count * hidden
        yield TensorSpec(f"{MERGE}.phi.weight", (self.count, width))
        yield TensorSpec(f"{MERGE}.branch_alpha_pre", (1,))
        yield TensorSpec(f"{MERGE}.branch_beta_pre", (self.count,))
        yield TensorSpec(f"{MERGE}.norm_gamma", (width,))

    def load(self, prefix: str, reader: WeightReader) -> dict[str, Connection]:
        """How each of a layer's sublayers stands in them."""
        return {
            use: self._module(f"{prefix}.{name}", reader, self.norm)
            for use, name in MODULES.items()
        }

    def merge(self, reader: WeightReader) -> StreamsModule:
        """What makes one of them at the decoder's end."""
        return self._module(MERGE, reader, self.merge_norm, "_pre")

    def _module(
        self, name: str, reader: WeightReader, kind: RmsNorm, last: str = ""
    ) -> StreamsModule:
        """last: what names of learned factors end with."""
        names = "phi.weight", "norm_gamma", f"branch_alpha{last}", f"branch_beta{last}"
        each = (reader.plain(f"{name}.{x}", dtype=wide(reader.dtype)) for x in names)
        (phi, gamma, alpha, beta), ops = each, reader.ops
        return StreamsModule(self, ops, NormModule(ops, kind, gamma), ops.pack(phi), alpha, beta)


@dataclass(slots=True)
class StreamsModule:
    """Streams on plain torch, around one sublayer or at the decoder's end.

    norm: [S * H]. phi: [S + S + S * S, S * H], for what is read of S streams, what they take, and how they are mixed, or
    its first S rows alone. alpha: [3], or [1]. beta: of each row of phi. All in float32 (float64 for float64)."""

    streams: Streams
    ops: Ops
    norm: NormModule
    phi: Tensor
    alpha: Tensor
    beta: Tensor

    def __call__(self, x_PF: Tensor, sublayer: Sublayer) -> Tensor:
        """[P, S * H] after a sublayer [P, H] -> [P, H] that stands in the streams."""
        count = self.streams.count
        made, alpha = self._made(x_PF), self.alpha
        read, taken, mixed = made.split((count, count, count * count), -1)
        first, second, third = self.beta.split((count, count, count * count))
        own = self._read(x_PF, read * alpha[0] + first)
        fresh = sublayer(own).to(made.dtype)
        taken = 2 * sigmoid(taken * alpha[1] + second)
        each = x_PF.to(made.dtype).unflatten(-1, (count, -1)).split(1, 1)
        mixing = self._doubly((mixed * alpha[2] + third).unflatten(-1, (count, count)))
        mixed_in = [mixing[:, old, :, None] * stream for old, stream in enumerate(each)]
        found = _added([taken[..., None] * fresh[:, None], *mixed_in])
        return found.flatten(1).to(x_PF.dtype)

    def merged(self, x_PF: Tensor) -> Tensor:
        """[P, H] of all streams, at the end."""
        return self._read(x_PF, self._made(x_PF) * self.alpha + self.beta)

    def _made(self, x_PF: Tensor) -> Tensor:
        """What weights are made of: [P, rows of phi]."""
        return self.ops.linear(self.norm(x_PF.to(wide(x_PF.dtype))), self.phi)

    def _read(self, x_PF: Tensor, fit_PS: Tensor) -> Tensor:
        """[P, H]: the streams by how well each fits."""
        weights = sigmoid(fit_PS) + LEAST
        parts = x_PF.to(weights.dtype).chunk(self.streams.count, -1)
        return _added([weights[:, s, None] * part for s, part in enumerate(parts)]).to(x_PF.dtype)

    def _doubly(self, logits_PSS: Tensor) -> Tensor:
        """Positive matrices whose rows and columns add up to 1 nearly, the columns last."""
        found = (logits_PSS - logits_PSS.amax(-1, keepdim=True)).exp()
        found = found / _total(found, -1) + LEAST
        found = found / (_total(found, -2) + LEAST)
        for _ in range(self.streams.rounds - 1):
            found = found / (_total(found, -1) + LEAST)
            found = found / (_total(found, -2) + LEAST)
        return found


def _total(x: Tensor, axis: int) -> Tensor:
    """The sum over an axis, which stays, on the CPU one after the other."""
    if x.device.type != "cpu":
        return x.sum(axis, keepdim=True)
    return _added(x.unbind(axis)).unsqueeze(axis)


def _added(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
