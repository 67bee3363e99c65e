"""Pieces that a model's weights are packed to, and where each lies in memory or in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from threading import Lock, local
from typing import BinaryIO

import numpy as np
import torch

from fastslow.engine.backends.alike import KERNELS, AlikeLayers, dense
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.compiled.orders import gate_up_order, heads_order, plain_order
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
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import GroupRouter, Router
from fastslow.engine.model.ffn.token_input import PROJECTION, PROJECTION_NORM
from fastslow.engine.model.mixers.delta import GatedDelta, decay_of
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.model.shape import Layer, MtpLayer
from fastslow.engine.types import Ints

NORMS = {  # of a layer, by use: names of the kernels
    "mixer": "attention_norm",
    "mixer_added": "attention_post_norm",
    "ffn": "mlp_norm",
    "ffn_added": "mlp_post_norm",
}
PARALLEL_NORMS = "dense_post_norm", "expert_norm", "expert_post_norm"  # as in ParallelFfn.norms
SIDES = "queries", "keys", "values"
COLD = ("embedding",)  # read a row at a time: it can stay in the file
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
    alike = AlikeLayers.of(config.with_mtp, KERNELS)
    for n, layer in enumerate(config.layers):
        yield from _layer(layer, alike, config.hidden_size, formats, n, f"model.layers.{n}")
    hidden, vocabulary = config.hidden_size, config.vocab_size
    tied = config.tie_word_embeddings
    if (table := config.per_layer_embedding) is not None:
        rows = heads_order(table.layers, table.width)
        yield from _matrix("token_projection", formats, hidden, rows, [PROJECTION], False)
        yield _norm(alike, "token_projection_norm", table.width, PROJECTION_NORM)
    yield _norm(alike, "norm", hidden, "model.norm", factor=config.logit_scale)
    head = EMBEDDING if tied else "lm_head.weight"
    if formats.screens:
        yield PackedMatrix("screen", Format.INT8, hidden, plain_order(vocabulary), (head,))
        yield ScreenNorms("screen_norms", vocabulary, head)
    yield PackedMatrix("head", formats.head, hidden, plain_order(vocabulary), (head,))
    if config.mtp is not None:
        yield from _mtp(config.mtp, alike, hidden, formats, len(config.layers))
    if formats.tiles is None:
        yield Vector("embedding", vocabulary * hidden, formats.embedding, (EMBEDDING,))
    elif not tied:
        rows = plain_order(vocabulary)
        yield PackedMatrix("embedding", formats.tiles, hidden, rows, (EMBEDDING,))


def _mtp(
    mtp: MtpLayer, alike: AlikeLayers, hidden: int, formats: Formats, n: int
) -> Iterator[Piece]:
    for key in ("embedding_norm", "hidden_norm", "norm"):
        yield _norm(alike, f"mtp.{key}", hidden, getattr(mtp, key))
    rows = plain_order(hidden)
    yield from _matrix("mtp.entry", formats, 2 * hidden, rows, [mtp.entry], False)
    yield from _layer(mtp.layer, alike, hidden, formats, n, mtp.prefix)


def _layer(
    layer: Layer, alike: AlikeLayers, hidden: int, formats: Formats, n: int, name: str
) -> Iterator[Piece]:
    norms = {
        use: _norm(alike, f"{n}.{key}", hidden, f"{name}.{layer.norms.names[use]}")
        for use, key in NORMS.items()
        if use in layer.norms.names
    }
    if layer.norms.before:
        yield norms.pop("mixer")
    if isinstance(layer.mixer, GroupedAttention):
        yield from _attention(layer.mixer, alike, hidden, formats, n, f"{name}.self_attn")
    elif isinstance(layer.mixer, GatedDelta):
        yield from _delta(layer.mixer, hidden, formats, n, f"{name}.linear_attn")
    elif isinstance(layer.mixer, ShortConv):
        yield from _short_conv(layer.mixer, hidden, formats, n, f"{name}.conv")
    if layer.norms.after:
        yield norms.pop("mixer_added")
    if layer.norms.before:
        yield norms.pop("ffn")
    if (mlp := dense(layer)) is not None:
        yield from _mlp(n, "", formats, hidden, mlp, f"{name}.mlp")
    if (routed := layer.routed) is not None:
        yield from _routed(routed, hidden, formats, n, f"{name}.mlp")
    if isinstance(layer.ffn, ParallelFfn):
        for key, source in zip(PARALLEL_NORMS, layer.ffn.norms(name), strict=True):
            yield _norm(alike, f"{n}.{key}", hidden, source)
    yield from norms.values()
    if (part := layer.token_input) is not None:
        for key, source, outputs, inputs in (
            ("token_gate", "per_layer_input_gate", part.width, hidden),
            ("token_up", "per_layer_projection", hidden, part.width),
        ):
            rows = plain_order(outputs)
            yield from _matrix(f"{n}.{key}", formats, inputs, rows, [f"{name}.{source}"], False)
        yield _norm(alike, f"{n}.token_norm", hidden, f"{name}.post_per_layer_input_norm")
    if layer.scaled:
        yield Vector(f"{n}.layer_scale", 1, torch.float32, (f"{name}.layer_scalar",))


def _norm(
    alike: AlikeLayers,
    key: str,
    size: int,
    source: str,
    order: Ints | None = None,
    factor: float = 1.0,
) -> Vector:
    kind = alike.norms.kind
    offset = kind.offset * factor if isinstance(kind, RmsNorm) else 0.0
    turn = None if factor == 1 else partial(torch.mul, factor)
    return Vector(key, size, torch.float32, (f"{source}.weight",), order, offset, turn)


def _attention(
    a: GroupedAttention,
    alike: AlikeLayers,
    hidden: int,
    formats: Formats,
    n: int,
    prefix: str,
) -> Iterator[Piece]:
    f32, dims = torch.float32, np.array(a.order)
    for side, normed in (("query", a.query_norm), ("key", a.key_norm)):
        if normed is not None:
            heads = a.heads if side == "query" else a.kv_heads
            order = heads_order(heads, a.head_dim, dims) if a.norms_whole else dims
            order = order[order >= 0]
            yield _norm(alike, f"{n}.{side}_norm", len(order), f"{prefix}.{side[0]}_norm", order)
    if a.sink_logits:
        yield Vector(f"{n}.sink_logits", a.heads, f32, (f"{prefix}.sinks",))
    if a.sinks:
        size = a.sinks, a.kv_heads, a.head_dim
        norm = f"{prefix}.k_norm.weight" if a.key_norm else ""
        offset = a.key_norm.offset if isinstance(a.key_norm, RmsNorm) else 0.0
        learned = f"{prefix}.param_sink_key"
        yield SinkTiles(f"{n}.sink_keys", *size, learned, tuple(a.order), norm, offset, alike.eps)
        values = f"{prefix}.param_sink_value" if a.sink_values else ""
        yield SinkTiles(f"{n}.sink_values", *size, values)
    yield from _qkv(a, hidden, formats, n, prefix, dims)
    width, rows = a.heads * a.value_width, plain_order(hidden)
    yield from _matrix(f"{n}.out", formats, width, rows, [f"{prefix}.o_proj"], a.out_bias)


def _delta(m: GatedDelta, hidden: int, formats: Formats, n: int, prefix: str) -> Iterator[Piece]:
    f32, values = torch.float32, m.value_heads * m.value_dim
    for key, rows in (("qkv", m.channels), ("z", values)):
        name = "mixed" if key == "qkv" else key
        yield from _matrix(
            f"{n}.{name}", formats, hidden, plain_order(rows), [f"{prefix}.in_proj_{key}"], False
        )
    rates = tuple(f"{prefix}.in_proj_{key}.weight" for key in "ab")
    yield PackedMatrix(f"{n}.rates", Format.FLOAT32, hidden, plain_order(2 * m.value_heads), rates)
    yield _taps(n, m.channels, m.kernel, f"{prefix}.conv1d.weight")
    turn = None if m.decay_applied else decay_of
    yield Vector(f"{n}.decay", m.value_heads, f32, (f"{prefix}.{m.decay}",), turn=turn)
    yield Vector(f"{n}.dt_bias", m.value_heads, f32, (f"{prefix}.dt_bias",))
    yield Vector(f"{n}.value_norm", m.value_dim, f32, (f"{prefix}.norm.weight",))
    yield from _matrix(
        f"{n}.out", formats, values, plain_order(hidden), [f"{prefix}.out_proj"], False
    )


def _short_conv(
    m: ShortConv, hidden: int, formats: Formats, n: int, prefix: str
) -> Iterator[Piece]:
    rows = plain_order(3 * m.channels)
    yield from _matrix(f"{n}.mixed", formats, hidden, rows, [f"{prefix}.in_proj"], False)
    yield _taps(n, m.channels, m.kernel, f"{prefix}.conv.weight")
    out = [f"{prefix}.out_proj"]
    yield from _matrix(f"{n}.out", formats, m.channels, plain_order(hidden), out, False)


def _taps(n: int, channels: int, kernel: int, source: str) -> Vector:
    """Those of all channels side by side, of the oldest row first."""
    order = np.arange(kernel * channels).reshape(channels, kernel).T.ravel()
    return Vector(f"{n}.conv", len(order), torch.float32, (source,), order)


def _routed(ffn: RoutedExperts, hidden: int, formats: Formats, n: int, mlp: str) -> Iterator[Piece]:
    f32, router = torch.float32, ffn.router
    gate, sources = f"{mlp}.gate", [f"{mlp}.gate.weight"]
    if ffn.shared_gate:
        sources.append(f"{mlp}.shared_expert_gate.weight")
    rows = plain_order(ffn.experts + ffn.shared_gate)
    yield PackedMatrix(f"{n}.router", Format.FLOAT32, hidden, rows, tuple(sources))
    experts = np.where(rows < ffn.experts, rows, -1)
    if isinstance(router, GroupRouter):
        scale = (f"{mlp}.router_scale",)
        yield Vector(f"{n}.router_scale", len(experts), f32, scale, experts)
    elif router.bias:
        yield Vector(f"{n}.router_bias", len(experts), f32, (f"{gate}.bias",), experts)
    if isinstance(router, Router) and router.choice_bias:
        source = (f"{gate}.e_score_correction_bias",)
        yield Vector(f"{n}.choice_bias", len(experts), f32, source, experts)
    if isinstance(router, Router) and router.input_norm is not None:
        turn = partial(torch.mul, hidden**-0.5)
        yield Vector(f"{n}.router_norm", hidden, f32, (f"{gate}.scale",), turn=turn)
    if isinstance(router, Router) and router.per_expert_scale:
        scale = (f"{gate}.per_expert_scale",)
        yield Vector(f"{n}.router_scale", len(experts), f32, scale, experts)
    if ffn.shared is not None:
        yield from _mlp(n, "", formats, hidden, ffn.shared, f"{mlp}.shared_expert")
    alike = formats.alike(f"{mlp}.experts.{e}" for e in range(ffn.experts))
    for e in range(ffn.experts):
        yield from _mlp(n, f"expert{e}.", alike, hidden, ffn.expert, f"{mlp}.experts.{e}")


def _qkv(
    a: GroupedAttention, hidden: int, formats: Formats, n: int, prefix: str, dims: Ints
) -> Iterator[Piece]:
    sources, dim = [f"{prefix}.{x}_proj" for x in a.sides], a.head_dim
    missing = dim - a.value_width  # values narrower than keys are filled up with zeros
    values = np.pad(np.arange(a.value_width), (0, missing), constant_values=-1)
    each = dim * (1 + a.out_gate)  # rows of a query's head
    parts = ((each, dims), (dim, dims), (a.value_width, values))
    names, first, below = [f"{source}.weight" for source in sources], 0, []
    counts = head_counts(a)
    for count, (rows, order) in zip(counts, parts):
        below.append(heads_order(count, rows, order, first))
        first += count * rows
    heads = np.concatenate(below)
    if a.out_gate:
        gates = heads_order(a.heads, each, np.arange(dim, each))
        yield from _matrix(f"{n}.gates", formats, hidden, gates, sources[:1], a.qkv_bias)
    if not formats.apart(names):
        yield from _matrix(f"{n}.qkv", formats, hidden, heads, sources, a.qkv_bias)
        return
    runs = (
        PackedMatrix("", formats.matrix((name,)), hidden, heads_order(count, *part), (name,))
        for name, count, part in zip(names, counts, parts)
    )
    yield MatrixRuns(f"{n}.qkv", tuple(runs))
    if a.qkv_bias:
        yield _bias(f"{n}.qkv", heads, sources)


def _mlp(
    n: int, key: str, formats: Formats, hidden: int, mlp: DenseMlp, prefix: str
) -> Iterator[Piece]:
    inner, bias = mlp.width, mlp.bias
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


def head_counts(a: GroupedAttention) -> list[int]:
    """Heads of queries, keys and values, as far as a layer has matrices of its own for them."""
    if a.shares is not None:
        return [a.heads]
    return [a.heads, a.kv_heads] + [a.kv_heads] * (not a.keys_as_values)


def head_matrices(
    whole: structures.CMatrix, counts: Sequence[int], head_rows: int
) -> dict[str, structures.CMatrix]:
    """Queries, keys and values of one packed matrix, so many heads in this order, `head_rows` rows a head."""
    found, first = {}, 0
    for name, count in zip(SIDES, counts):
        found[name] = part_of(whole, first, count * head_rows)
        first += count * head_rows
    return found


def part_of(whole: structures.CMatrix, first: int, rows: int) -> structures.CMatrix:
    """Rows of a packed matrix, whole tiles of them."""
    tiles = whole.tiles + first // TILE * library.tile_bytes(whole.format, whole.inputs)
    bias = whole.bias + 4 * first if whole.bias else None
    return structures.CMatrix(tiles, bias, whole.format, whole.inputs, rows)
