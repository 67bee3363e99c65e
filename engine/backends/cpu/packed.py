"""The weights of a model in the order and the form in which the kernels read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import EMBEDDING, Format, Formats
from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.backends.cpu.orders import gate_up_order, heads_order, plain_order
from fastslow.engine.backends.cpu.sink_tiles import SinkTiles
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.int8 import QuantLinear, ReadQuant
from fastslow.engine.model.tensors import layer_norms
from fastslow.engine.types import Ints

Bytes = NDArray[np.uint8]
Read = Callable[[str], Tensor]
ReadBlocks = Callable[[str], "NDArray[np.uint8] | None"]


@dataclass(frozen=True, slots=True)
class Sources:
    """How a checkpoint's tensors are read by name: as floats; and as 4-bit blocks or in int8, where it
    has them so. at_once: pieces that are packed at a time; more than 1 where reading makes no copies."""

    read: Read
    blocks: ReadBlocks
    linear: ReadQuant
    at_once: int = 1


TOO_SMALL = 1e-36  # a row whose largest weight is no larger is zeros in int8, see kernels/blocks.h
SMALLEST = 2.0**-126  # of normal float32


def pack_rows(
    into: Bytes, form: Format, inputs: int, order: Ints, rows: Callable[[Tensor], Tensor]
) -> None:
    """Pack a matrix into memory. rows: gives those of some numbers; `order` -1 is a row of zeros.

    A few tiles at a time: a whole matrix in float32 may be larger than what it is packed to.
    """
    step = max(TILE, (1 << 22) // inputs // TILE * TILE)
    tile = library.tile_bytes(form, inputs)
    for first in range(0, len(order), step):
        picked = order[first : first + step]
        some = np.ascontiguousarray(rows(torch.from_numpy(np.maximum(picked, 0))).float().numpy())
        if some.shape != (len(picked), inputs):
            raise ValueError(f"rows to pack are {some.shape}, not {(len(picked), inputs)}")
        some[picked < 0] = 0
        library.pack(into[first // TILE * tile :], form, some)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed matrix. sources: names of the tensors whose rows, below each other, `order` picks."""

    key: str
    format: Format
    inputs: int
    order: Ints
    sources: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        return self.outputs // TILE * library.tile_bytes(self.format, self.inputs)

    def write(self, into: Bytes, sources: Sources) -> None:
        """Pack into `nbytes` bytes, from 4-bit blocks or int8 where the source has them."""
        if self.format is Format.INT8:
            matrices = [m for name in self.sources if (m := sources.linear(name)) is not None]
            if len(matrices) == len(self.sources):
                self._keep(into, QuantLinear.stack(matrices))
                return
        if library.block_of(self.format)[0]:
            found = [(name, sources.blocks(name)) for name in self.sources]
            parts = [part for _, part in found if part is not None]
            if len(parts) == len(found):
                library.pack_gguf(into, self.format, parts, self.order, self.inputs)
                return
            if self.format is not Format.INT4:  # which floats are packed in, too
                missing = ", ".join(name for name, part in found if part is None)
                raise ValueError(f"{missing}: not in {self.format.name} in the file")
        whole = torch.cat([sources.read(name) for name in self.sources])
        pack_rows(into, self.format, self.inputs, self.order, whole.__getitem__)

    def _keep(self, into: Bytes, matrix: QuantLinear) -> None:
        rows = _ordered(matrix.weight_OI.numpy(), self.order)
        scales = _ordered(matrix.scale_O.numpy(), self.order)
        library.pack_int8(into, self.format, rows, scales)


@dataclass(frozen=True, slots=True)
class MatrixRuns:
    """Matrices below each other, each in a format of its own."""

    key: str
    runs: tuple[PackedMatrix, ...]

    @property
    def outputs(self) -> int:
        return sum(run.outputs for run in self.runs)

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self.runs)

    def write(self, into: Bytes, sources: Sources) -> None:
        """Pack one behind the other."""
        at = 0
        for run in self.runs:
            run.write(into[at : at + run.nbytes], sources)
            at += run.nbytes


@dataclass(frozen=True, slots=True)
class Vector:
    """Plain numbers, in `order` where given, plus `offset`: norms, biases, scales, the embedding."""

    key: str
    count: int
    dtype: torch.dtype
    sources: tuple[str, ...]
    order: Ints | None = None
    offset: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def write(self, into: Bytes, sources: Sources) -> None:
        """Copy to `nbytes` bytes."""
        values = torch.cat([sources.read(name).flatten() for name in self.sources]).to(self.dtype)
        if self.offset:
            values = values + self.offset
        if self.order is not None:
            picked = values.numpy()[np.maximum(self.order, 0)]
            picked[self.order < 0] = 0
            values = torch.from_numpy(picked)
        if len(values) != self.count:
            raise ValueError(f"{self.key} has {len(values)} numbers, not {self.count}")
        into[:] = values.contiguous().view(torch.uint8).numpy()


@dataclass(frozen=True, slots=True)
class ScreenNorms:
    """float32 [2, outputs]: norms of a matrix' rows in bfloat16, and of what int8 makes of them less.

    Both are rounded up, and infinite where they are too large for float32 or some weight is not finite.
    Rows of padding have no norm and an endless error: nothing is known of them.
    """

    key: str
    rows: int
    source: str

    @property
    def outputs(self) -> int:
        return -(-self.rows // TILE) * TILE

    @property
    def nbytes(self) -> int:
        return 2 * self.outputs * 4

    def write(self, into: Bytes, sources: Sources) -> None:
        """Compute into `nbytes` bytes."""
        found = into.view(np.float32).reshape(2, self.outputs)
        found[0], found[1] = 0.0, np.inf
        whole = sources.read(self.source)
        for first in range(0, self.rows, 4096):
            last = min(first + 4096, self.rows)
            some = whole[first:last].float()
            exact = some.bfloat16().float()
            largest = some.abs().amax(-1, keepdim=True)
            inverse = torch.where(largest > TOO_SMALL, 127 / largest, 0.0)
            int8 = (some * inverse).round() * (largest / 127)
            found[0, first:last] = _lengths(exact).numpy()
            found[1, first:last] = _lengths(exact - int8).numpy()


def _lengths(rows: Tensor) -> Tensor:
    """f32 [n], the rows' norms, none below the true one. In float64, in which no square is lost."""
    exact = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64) * (1 + 2**-20)
    return torch.where(exact == 0, 0.0, exact.clamp_min(SMALLEST)).nan_to_num(torch.inf).float()


Piece = PackedMatrix | MatrixRuns | Vector | ScreenNorms | SinkTiles
COLD = ("embedding",)  # read a row at a time: it can stay in the file


def pieces(config: ModelConfig, formats: Formats) -> Iterator[Piece]:
    """All that a model needs, in the order of a step: a core then reads one stream."""
    for n in range(config.layers):
        yield from _layer(config, formats, n)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    tied = config.tie_word_embeddings
    yield _norm(config, "norm", hidden, "model.norm")
    head = EMBEDDING if tied else "lm_head.weight"
    if formats.screens:
        yield PackedMatrix("screen", Format.INT8, hidden, plain_order(vocabulary), (head,))
        yield ScreenNorms("screen_norms", vocabulary, head)
    yield PackedMatrix("head", formats.head, hidden, plain_order(vocabulary), (head,))
    if formats.tiles is None:
        yield Vector("embedding", vocabulary * hidden, formats.embedding, (EMBEDDING,))
    elif not tied:
        yield PackedMatrix(
            "embedding", formats.tiles, hidden, plain_order(vocabulary), (EMBEDDING,)
        )


def _layer(c: ModelConfig, formats: Formats, n: int) -> Iterator[Piece]:
    name = f"model.layers.{n}"
    norms = {
        use: _norm(c, f"{n}.{use}", c.hidden_size, f"{name}.{tensor}")
        for use, tensor in layer_norms(c).items()
    }
    yield norms.pop("attention_norm")
    yield from _attention(c, formats, n)
    if c.post_norms:
        yield norms.pop("attention_post_norm")
    yield norms.pop("mlp_norm")
    if c.routed(n):
        yield from _routed(c, formats, n)
    else:
        inner = c.intermediate_size
        yield from _mlp(n, "", formats, c.hidden_size, inner, f"{name}.mlp", c.mlp_bias)
    yield from norms.values()


def _norm(c: ModelConfig, key: str, size: int, source: str, order: Ints | None = None) -> Vector:
    return Vector(key, size, torch.float32, (f"{source}.weight",), order, c.norm_offset)


def _attention(c: ModelConfig, formats: Formats, n: int) -> Iterator[Piece]:
    prefix, f32, dims = f"model.layers.{n}.self_attn", torch.float32, np.array(c.rotary_order)
    for side, normed in (("query", c.query_norm), ("key", c.key_norm)):
        if normed:
            yield _norm(c, f"{n}.{side}_norm", c.head_dim, f"{prefix}.{side[0]}_norm", dims)
    if c.sink_logits:
        yield Vector(f"{n}.sink_logits", c.heads, f32, (f"{prefix}.sinks",))
    if c.sinks:
        size, order = (c.sinks, c.kv_heads, c.head_dim), tuple(dims.tolist())
        norm = f"{prefix}.k_norm.weight" if c.key_norm else ""
        learned, eps = f"{prefix}.param_sink_key", c.rms_norm_eps
        yield SinkTiles(f"{n}.sink_keys", *size, learned, order, norm, c.norm_offset, eps)
        values = f"{prefix}.param_sink_value" if c.sink_values else ""
        yield SinkTiles(f"{n}.sink_values", *size, values)
    yield from _qkv(c, formats, n, dims)
    width, rows = c.heads * c.value_width, plain_order(c.hidden_size)
    yield from _matrix(f"{n}.out", formats, width, rows, [f"{prefix}.o_proj"], c.out_bias)


def _routed(c: ModelConfig, formats: Formats, n: int) -> Iterator[Piece]:
    mlp, hidden, f32 = f"model.layers.{n}.mlp", c.hidden_size, torch.float32
    experts, gate = plain_order(c.experts), f"{mlp}.gate"
    yield PackedMatrix(f"{n}.router", Format.FLOAT32, hidden, experts, (f"{gate}.weight",))
    if c.router is None:
        scale = (f"{mlp}.router_scale",)
        yield Vector(f"{n}.router_scale", len(experts), f32, scale, experts)
    elif c.router.bias:
        yield Vector(f"{n}.router_bias", len(experts), f32, (f"{gate}.bias",), experts)
    if c.router is not None and c.router.choice_bias:
        source = (f"{gate}.e_score_correction_bias",)
        yield Vector(f"{n}.choice_bias", len(experts), f32, source, experts)
    if inner := c.shared_intermediate_size:
        yield from _mlp(n, "", formats, hidden, inner, f"{mlp}.shared_expert", False)
    alike = formats.alike(f"{mlp}.experts.{e}" for e in range(c.experts))
    for e in range(c.experts):
        expert, inner = f"{mlp}.experts.{e}", c.moe_intermediate_size
        yield from _mlp(n, f"expert{e}.", alike, hidden, inner, expert, c.expert_bias)


def _qkv(c: ModelConfig, formats: Formats, n: int, dims: Ints) -> Iterator[Piece]:
    sources, dim = [f"model.layers.{n}.self_attn.{x}_proj" for x in c.qkv_names], c.head_dim
    missing = dim - c.value_width  # values narrower than keys are filled up with zeros
    values = np.pad(np.arange(c.value_width), (0, missing), constant_values=-1)
    parts = ((c.heads, dim, dims), (c.kv_heads, dim, dims), (c.kv_heads, c.value_width, values))
    names, first, below = [f"{source}.weight" for source in sources], 0, []
    for count, rows, order in parts:
        below.append(heads_order(count, rows, order, first))
        first += count * rows
    heads = np.concatenate(below)
    if not formats.apart(names):
        yield from _matrix(f"{n}.qkv", formats, c.hidden_size, heads, sources, c.qkv_bias)
        return
    runs = (
        PackedMatrix("", formats.matrix((name,)), c.hidden_size, heads_order(*part), (name,))
        for name, part in zip(names, parts, strict=True)
    )
    yield MatrixRuns(f"{n}.qkv", tuple(runs))
    if c.qkv_bias:
        yield _bias(f"{n}.qkv", heads, sources)


def _mlp(
    n: int, key: str, formats: Formats, hidden: int, inner: int, prefix: str, bias: bool
) -> Iterator[Piece]:
    both = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
    yield from _matrix(f"{n}.{key}gate_up", formats, hidden, gate_up_order(inner), both, bias)
    down = [f"{prefix}.down_proj"]
    yield from _matrix(f"{n}.{key}down", formats, inner, plain_order(hidden), down, bias)


def _matrix(
    key: str, formats: Formats, inputs: int, rows: Ints, sources: Sequence[str], bias: bool
) -> Iterator[Piece]:
    names = tuple(f"{s}.weight" for s in sources)
    yield PackedMatrix(key, formats.matrix(names), inputs, rows, names)
    if bias:
        yield _bias(key, rows, sources)


def _bias(key: str, rows: Ints, sources: Sequence[str]) -> Vector:
    names = tuple(f"{source}.bias" for source in sources)
    return Vector(f"{key}_bias", len(rows), torch.float32, names, rows)


def _ordered(rows: NDArray[Any], picked: Ints) -> NDArray[Any]:
    some = rows[np.maximum(picked, 0)]
    some[picked < 0] = 0
    return some
