"""Layouts that a file's tensors may have: one by one, all experts of a layer in one, or matrices of a mixer in one.

MXFP4 (OCP Microscaling Formats 1.0): 32 weights of 4 bits share a power of two. Files of safetensors hold the
weights 2i and 2i + 1 of a block in byte i; GGUF files hold i and i + 16 there, after the exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.shape import DecoderShape, Layer

FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors spells them


@dataclass(frozen=True, slots=True)
class Expected:
    """Shapes and dtypes that a tensor may have, and whether it may be missing."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...] = FLOATS
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The usual one."""
        return self.shapes[0]


class Fact(NamedTuple):
    """Dtype, as safetensors spells it, and shape that a file states for a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, found: Any) -> Fact:
        return cls(found.get_dtype(), tuple(found.get_shape()))


Facts = Mapping[str, Fact]
Slices = Callable[[str], Any]  # gives the slice of a file by a tensor's name
Outputs = slice | Tensor  # a run of rows, or their numbers
Take = Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True, slots=True)
class Fused:
    """A layout that a file may have for several tensors of the model.

    tensors: of the file; [experts, ...] each, or a matrix. parts: the model's tensors in them: an expert's number, or
    all of a matrix, and which of its outputs. take: a tensor of the model from what an expert has of the file's, and
    those outputs. take_packed: the same as rows of GGUF's MXFP4; None where the file has floats."""

    tensors: Mapping[str, Expected]
    parts: Mapping[str, tuple[int | slice, Outputs]]
    take: Take
    take_packed: Take | None = None

    @property
    def form(self) -> str | None:
        return None if self.take_packed is None else "MXFP4"

    def read(self, name: str, slices: Slices) -> Tensor:
        return self._taken(self.take, name, slices)

    def read_packed(self, name: str, slices: Slices) -> Tensor:
        assert self.take_packed is not None
        return self._taken(self.take_packed, name, slices)

    def _taken(self, take: Take, name: str, slices: Slices) -> Tensor:
        number, outputs = self.parts[name]
        return take([slices(tensor)[number] for tensor in self.tensors], outputs)


IN_TURN = "experts in turn"
STACKED_METHOD = "mxfp4"  # `quant_method` of files whose stacked experts are MXFP4
BLOCK = 32
BIAS = 127  # of the exponent
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # and their negatives


def _codes(blocks: Tensor) -> Tensor:
    return torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)


def dequantised(blocks_OG: Tensor, scales_OG: Tensor) -> Tensor:
    """float32 [O, 32 * G], exact, from uint8 [O, G, 16] and [O, G]."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    exponents = scales_OG.to(torch.int32) - BIAS
    return torch.ldexp(table[_codes(blocks_OG).int()], exponents[..., None]).flatten(-2)


def gguf_rows(blocks_OG: Tensor, scales_OG: Tensor) -> Tensor:
    """uint8 [O, 17 * G]: the same numbers as blocks of a GGUF file, bit for bit."""
    codes = _codes(blocks_OG)
    halves = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << 4
    return torch.cat((scales_OG[..., None], halves), -1).flatten(-2)


def fused_tensors(shape: DecoderShape) -> Iterator[Fused]:
    """The layouts that the family says its files may have, `DecoderShape.fused`, of each layer."""
    layers = [(f"model.layers.{n}", layer) for n, layer in enumerate(shape.layers)]
    if shape.mtp is not None:
        layers += [(head.prefix, head.layer) for head in shape.mtp.heads]
    for kind in shape.fused:
        for prefix, layer in layers:
            yield from LAYOUTS[kind](prefix, layer, shape.hidden_size)


def _each(
    own: str, experts: int, sides: Mapping[str, slice], kind: str = "weight"
) -> dict[str, tuple[int | slice, Outputs]]:
    """Parts of a tensor with all experts: which outputs each side of an expert has."""
    names = [(f"{own}.{e}.{side}_proj.{kind}", e, side) for e in range(experts) for side in sides]
    return {name: (e, sides[side]) for name, e, side in names}


def _experts(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """All experts of a layer in one tensor, gates above ups: floats [experts, out, in]."""
    if (routed := layer.routed) is None:
        return
    inner, own = routed.expert.width, f"{prefix}.mlp.experts"
    for stem, size, sides in (
        ("gate_up_proj", (2 * inner, hidden), {"gate": slice(inner), "up": slice(inner, None)}),
        ("down_proj", (hidden, inner), {"down": slice(None)}),
    ):
        whole = {f"{own}.{stem}": Expected(((routed.experts, *size),))}
        yield Fused(whole, _each(own, routed.experts, sides), lambda x, at: x[0][at])


def _experts_in_turn(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """All experts of a layer in one tensor, gates and ups in turn: floats [experts, in, out], or MXFP4
    [experts, out, in / 32, 16] with exponents; and their biases."""
    if (routed := layer.routed) is None:
        return
    inner, experts, own = routed.expert.width, routed.experts, f"{prefix}.mlp.experts"
    gate_up = {"gate": slice(None, None, 2), "up": slice(1, None, 2)}
    for stem, inputs, outputs, sides in (
        ("gate_up_proj", hidden, 2 * inner, gate_up),
        ("down_proj", inner, hidden, {"down": slice(None)}),
    ):
        weights, biases = (_each(own, experts, sides, kind) for kind in ("weight", "bias"))
        name = f"{own}.{stem}"
        blocks = (experts, outputs, inputs // BLOCK)
        yield Fused(
            {name: Expected(((experts, inputs, outputs),))},
            weights,
            lambda x, at: x[0][:, at].T,
        )
        yield Fused(
            {
                f"{name}_blocks": Expected(((*blocks, 16),), ("U8",)),
                f"{name}_scales": Expected((blocks,), ("U8",)),
            },
            weights,
            lambda x, at: dequantised(x[0][at], x[1][at]),
            lambda x, at: gguf_rows(x[0][at], x[1][at]),
        )
        yield Fused(
            {f"{name}_bias": Expected(((experts, outputs),))}, biases, lambda x, at: x[0][at]
        )


def _delta(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """Two matrices of a gated delta net, in which each key head has its rows of all that they are of: query, key,
    values and what gates outputs; betas and gates."""
    if not isinstance(m := layer.mixer, GatedDelta):
        return
    own, each = f"{prefix}.linear_attn.in_proj", m.value_heads // m.key_heads
    values = each * m.value_dim
    for name, sizes, places in (
        ("qkvz", (m.key_dim, m.key_dim, values, values), {"qkv": (0, 1, 2), "z": (3,)}),
        ("ba", (each, each), {"b": (0,), "a": (1,)}),
    ):
        rows = torch.arange(m.key_heads * sum(sizes)).view(m.key_heads, -1).split(sizes, 1)
        parts = {
            f"{own}_{side}.weight": (slice(None), torch.cat([rows[i].flatten() for i in inside]))
            for side, inside in places.items()
        }
        whole = Expected(((m.key_heads * sum(sizes), hidden),))
        yield Fused({f"{own}_{name}.weight": whole}, parts, lambda x, at: x[0][at])


def _gate_up(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """The gate and up matrices of a dense MLP, or of a shared expert, below each other."""
    mlp: object = layer.ffn
    own = f"{prefix}.mlp"
    if (routed := layer.routed) is not None:
        mlp, own = routed.shared, f"{own}.shared_expert"
    if not isinstance(mlp, DenseMlp):
        return
    inner = mlp.width
    parts = {
        f"{own}.{side}_proj.weight": (slice(None), slice(n * inner, (n + 1) * inner))
        for n, side in enumerate(("gate", "up"))
    }
    whole = Expected(((2 * inner, hidden),))
    yield Fused({f"{own}.gate_up_proj.weight": whole}, parts, lambda x, at: x[0][at])


def _choice_row(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """The bias of the choice as a matrix of one row."""
    if (routed := layer.routed) is None:
        return
    whole = {f"{prefix}.mlp.moe_statics.e_score_correction_bias": Expected(((1, routed.experts),))}
    parts = {f"{prefix}.mlp.gate.e_score_correction_bias": (0, slice(None))}
    yield Fused(whole, parts, lambda x, at: x[0][at])


def _latent(prefix: str, layer: Layer, hidden: int) -> Iterator[Fused]:
    """Keys' and values' matrices of a latent apart: floats [heads, latent, keys] and [heads, values, latent], of which the
    first two axes may be one."""
    if not isinstance(m := layer.mixer, LatentAttention):
        return
    own = f"{prefix}.self_attn"
    shapes = {"k_b_proj": (m.latent, m.nope), "v_b_proj": (m.value_dim, m.latent)}
    whole = {
        f"{own}.{name}.weight": Expected(((m.heads, *x), (m.heads * x[0], x[1])))
        for name, x in shapes.items()
    }
    parts: dict[str, tuple[int | slice, Outputs]] = {
        f"{own}.kv_b_proj.weight": (slice(None), slice(None))
    }

    def take(x: Sequence[Tensor], at: Any) -> Tensor:
        keys, values = (side.reshape(m.heads, *size) for side, size in zip(x, shapes.values()))
        return torch.cat((keys.mT, values), 1).flatten(0, 1)[at]

    yield Fused(whole, parts, take)


LAYOUTS = {
    "latent": _latent,
    "experts": _experts,
    IN_TURN: _experts_in_turn,
    "delta": _delta,
    "choice row": _choice_row,
    "gate_up": _gate_up,
}
