"""Pieces that a model's weights are packed to, where each lies in memory or in a file, and in which order the
kernels want the rows of a matrix, by number; -1 is a row of zeros."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from threading import Lock, local
from typing import BinaryIO

import numpy as np
import torch

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import (
    EMBEDDING,
    Bytes,
    Format,
    Formats,
    MatrixRuns,
    PackedMatrix,
    Piece,
    ScreenNorms,
    SinkTiles,
    Sources,
    Vector,
)
from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.tensors import layer_norms
from fastslow.engine.types import Ints

COLD = ("embedding",)  # read a row at a time: it can stay in the file
HALF = TILE // 2
ALIGN, PAGE = 64, 4096  # bytes


@dataclass(frozen=True, slots=True)
class Arena:
    """Places of all pieces in one run of memory. hot: bytes that every step reads from; the rest, from a new page
    on, is cold."""

    pieces: dict[str, Piece]
    offsets: dict[str, int]
    hot: int
    nbytes: int

    @property
    def cold_rows(self) -> bool:
        """True where every cold piece has rows that lie in one piece each."""
        return all(isinstance(self.pieces[key], Vector) for key in COLD if key in self.pieces)

    @classmethod
    def of(cls, config: ModelConfig, formats: Formats) -> Arena:
        """Lay the pieces one after the other, each from a new cache line on."""
        found = {piece.key: piece for piece in pieces(config, formats)}
        offsets, at, hot = {}, 0, 0
        for key in sorted(found, key=lambda key: key in COLD):  # stable: else in a step's order
            if key in COLD and not hot:
                hot = at = -(-at // PAGE) * PAGE
            offsets[key] = at
            at += -(-found[key].nbytes // ALIGN) * ALIGN
        return cls(found, offsets, hot or at, at)  # all is hot where nothing is cold

    def write(self, into: Bytes, sources: Sources) -> None:
        """Fill memory of `nbytes` bytes that begins on a cache line."""

        def write(key: str) -> None:
            piece = self.pieces[key]
            piece.write(into[self.offsets[key] :][: piece.nbytes], sources)

        self._each(write, sources)

    def save(self, file: BinaryIO, sources: Sources) -> None:
        """Fill a file, piece by piece: in a mapped one each page would be a fault, 40 times slower."""
        turn, own = Lock(), local()  # each thread has one room, since new memory faults, too

        def save(key: str) -> None:
            piece = self.pieces[key]
            if len(getattr(own, "room", b"")) < piece.nbytes:
                own.room = np.frombuffer(mmap(-1, piece.nbytes), np.uint8)
            made = own.room[: piece.nbytes]
            made[:] = 0
            piece.write(made, sources)
            with turn:
                file.seek(self.offsets[key])
                file.write(made.data)

        self._each(save, sources)

    def _each(self, write: Callable[[str], None], sources: Sources) -> None:
        left = iter(self.pieces)  # a future for each takes as long as to pack a small one

        def some() -> None:
            for key in left:
                write(key)

        with ThreadPoolExecutor(sources.at_once, "fastslow-pack") as pool:
            try:
                for over in as_completed([pool.submit(some) for _ in range(sources.at_once)]):
                    over.result()
            finally:
                list(left)  # where one failed, or Ctrl-C came, the others end


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
        rows = plain_order(vocabulary)
        yield PackedMatrix("embedding", formats.tiles, hidden, rows, (EMBEDDING,))


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


@cache
def plain_order(rows: int) -> Ints:
    """As they are, up to whole tiles. Shared by all who ask, so nobody can write to it."""
    order = _padded(np.arange(rows), TILE)
    order.flags.writeable = False
    return order


def heads_order(count: int, dim: int, dims: Ints | None = None, first: int = 0) -> Ints:
    """Every head of `dim` rows padded to whole tiles, so that a kernel holds a head at a time.

    dims: a head's rows in the kernels' order; None: as they are. first: the first head's first row.
    """
    own = _padded(np.arange(dim) if dims is None else dims, TILE)
    return np.concatenate([np.where(own < 0, -1, own + first + n * dim) for n in range(count)])


def head_matrices(
    whole: library.CMatrix, heads: int, kv_heads: int, head_rows: int
) -> dict[str, library.CMatrix]:
    """Queries, keys and values of one packed matrix, which lie in this order, `head_rows` rows a head."""
    found, first, counts = {}, 0, (heads, kv_heads, kv_heads)
    for name, count in zip(("queries", "keys", "values"), counts):
        tiles = whole.tiles + first // TILE * library.tile_bytes(whole.format, whole.inputs)
        bias = whole.bias + 4 * first if whole.bias else None
        found[name] = library.CMatrix(tiles, bias, whole.format, whole.inputs, count * head_rows)
        first += count * head_rows
    return found


@cache
def gate_up_order(neurons: int) -> Ints:
    """Sixteen gates and then their sixteen ups, of a source that has all gates and then all ups: a tile holds both
    sides of a product."""
    gates = _padded(np.arange(neurons), HALF).reshape(-1, 1, HALF)
    ups = np.where(gates < 0, -1, gates + neurons)
    order = np.concatenate([gates, ups], axis=1).reshape(-1)
    order.flags.writeable = False
    return order


def _padded(rows: Ints, step: int) -> Ints:
    return np.pad(rows, (0, -len(rows) % step), constant_values=-1)
