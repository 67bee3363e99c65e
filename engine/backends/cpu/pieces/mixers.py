"""The pieces of a mixer of each kind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import (
    Format,
    Formats,
    MatrixRuns,
    PackedMatrix,
    Piece,
    SinkTiles,
    TurnedMatrix,
    Vector,
)
from fastslow.engine.backends.cpu.pieces.matrices import bias_piece, head_counts, matrix, norm
from fastslow.engine.backends.cpu.pieces.orders import heads_order, plain_order
from fastslow.engine.model.mixers.delta import GatedDelta, decay_of
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.indexer import Indexer
from fastslow.engine.model.mixers.latent import SINK_KEYS, SINK_LATENTS, LatentAttention
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.norms import LayerNorm, RmsNorm
from fastslow.engine.types import Ints


def attention(
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
            rows = heads_order(heads, a.head_dim, dims) if a.norms_whole else dims
            rows = rows[rows >= 0]
            yield norm(alike, f"{n}.{side}_norm", len(rows), f"{prefix}.{side[0]}_norm", rows)
    if a.sink_logits:
        yield Vector(f"{n}.sink_logits", a.heads, f32, (f"{prefix}.sinks",))
    if a.sinks:
        size = a.sinks, a.kv_heads, a.head_dim
        key_norm = f"{prefix}.k_norm.weight" if a.key_norm else ""
        offset = a.key_norm.offset if isinstance(a.key_norm, RmsNorm) else 0.0
        learned = f"{prefix}.param_sink_key"
        yield SinkTiles(
            f"{n}.sink_keys", *size, learned, tuple(a.order), key_norm, offset, alike.eps
        )
        values = f"{prefix}.param_sink_value" if a.sink_values else ""
        yield SinkTiles(f"{n}.sink_values", *size, values)
    yield from _qkv(a, hidden, formats, n, prefix, dims)
    width, rows = a.heads * a.value_width, plain_order(hidden)
    yield from matrix(f"{n}.out", formats, width, rows, [f"{prefix}.o_proj"], a.out_bias)


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
        yield from matrix(f"{n}.gates", formats, hidden, gates, sources[:1], a.qkv_bias)
    if not formats.apart(names):
        yield from matrix(f"{n}.qkv", formats, hidden, heads, sources, a.qkv_bias)
        return
    runs = (
        PackedMatrix("", formats.matrix((name,)), hidden, heads_order(count, *part), (name,))
        for name, count, part in zip(names, counts, parts)
    )
    yield MatrixRuns(f"{n}.qkv", tuple(runs))
    if a.qkv_bias:
        yield bias_piece(f"{n}.qkv", heads, sources)


def latent(
    m: LatentAttention, hidden: int, formats: Formats, n: int, prefix: str
) -> Iterator[Piece]:
    f32, order = torch.float32, np.array(m.rope.order)
    kind, inputs, queries = m.norm, hidden, "q_proj"
    offset = kind.offset if isinstance(kind, RmsNorm) else 0.0

    def vector(key: str, size: int, name: str) -> Vector:
        return Vector(f"{n}.{key}", size, f32, (f"{prefix}.{name}.weight",), offset=offset)

    if m.query_latent:
        inputs, queries = m.query_latent, "q_b_proj"
        rows = plain_order(inputs)
        yield from matrix(f"{n}.mixed", formats, hidden, rows, [f"{prefix}.q_a_proj"], False)
        yield vector("query_norm", inputs, "q_a_layernorm")
    keys = heads_order(1, 0, np.concatenate((np.arange(m.latent), m.latent + order)))
    yield from matrix(f"{n}.z", formats, hidden, keys, [f"{prefix}.kv_a_proj_with_mqa"], False)
    yield vector("key_norm", m.latent, "kv_a_layernorm")
    heads = heads_order(
        m.heads, m.nope + m.rope.dim, np.concatenate((np.arange(m.nope), m.nope + order))
    )
    yield from matrix(f"{n}.queries", formats, inputs, heads, [f"{prefix}.{queries}"], False)
    both = f"{prefix}.kv_b_proj.weight"
    form = formats.matrix((both,))
    latents, values = heads_order(m.heads, m.latent), np.arange(m.value_dim)
    apart = [f"{prefix}.{name}_b_proj.weight" for name in "kv"]
    own = [formats.types.get(name, Format.FLOAT32) for name in apart]
    if all(Format.Q4_0 <= kind <= Format.MXFP4 for kind in own):  # as a file has them
        rows = heads_order(m.heads, m.value_dim, values)
        yield PackedMatrix(f"{n}.absorb", own[0], m.nope, latents, (apart[0],))
        yield PackedMatrix(f"{n}.expand", own[1], m.latent, rows, (apart[1],))
    else:
        turned = form if library.packs(form) else formats.layers
        yield TurnedMatrix(f"{n}.absorb", turned, m.nope, latents, (both,), m.heads)
        rows = heads_order(m.heads, m.nope + m.value_dim, m.nope + values)
        yield PackedMatrix(f"{n}.expand", form, m.latent, rows, (both,))
    if m.convolved:
        names = [f"{prefix}.{name}.weight" for name in m.convolved]
        yield _taps(n, sum(m.convolved.values()), m.conv, *names)
    if m.sinks:
        size, learned = (m.sinks, 1, m.rows.key_dim), f"{prefix}.{SINK_LATENTS}"
        normed = f"{prefix}.kv_a_layernorm.weight", offset, kind.eps
        dims = *range(m.latent), *(m.latent + order)
        beside = f"{prefix}.{SINK_KEYS}"
        yield SinkTiles(f"{n}.sink_keys", *size, learned, dims, *normed, beside)
        yield SinkTiles(f"{n}.sink_values", *size, learned, (), *normed)
    if m.indexer is not None and not m.indexer.shared:
        yield from _indexer(m.indexer, m, hidden, formats, n, f"{prefix}.indexer")
    out, inner = plain_order(hidden), m.heads * m.value_dim
    yield from matrix(f"{n}.out", formats, inner, out, [f"{prefix}.o_proj"], False)


def _indexer(
    x: Indexer, m: LatentAttention, hidden: int, formats: Formats, n: int, prefix: str
) -> Iterator[Piece]:
    f32, dims = torch.float32, np.array(x.order(m.rope))
    for key, inputs, heads, name in (
        ("queries", m.query_latent, x.heads, "wq_b"),
        ("keys", hidden, 1, "wk"),
    ):
        rows, source = heads_order(heads, x.dim, dims), [f"{prefix}.{name}"]
        yield from matrix(f"{n}.index_{key}", formats, inputs, rows, source, False)
    weights = (f"{prefix}.weights_proj.weight",)
    yield PackedMatrix(f"{n}.rates", Format.FLOAT32, hidden, plain_order(x.heads), weights)
    offset, norm = x.norm.offset if isinstance(x.norm, RmsNorm) else 0.0, f"{prefix}.k_norm"
    yield Vector(f"{n}.index_norm", x.dim, f32, (f"{norm}.weight",), dims, offset)
    if isinstance(x.norm, LayerNorm):
        yield Vector(f"{n}.index_bias", x.dim, f32, (f"{norm}.bias",), dims)


def delta(m: GatedDelta, hidden: int, formats: Formats, n: int, prefix: str) -> Iterator[Piece]:
    f32, values = torch.float32, m.value_heads * m.value_dim
    for key, rows in (("qkv", m.channels), ("z", values)):
        name = "mixed" if key == "qkv" else key
        yield from matrix(
            f"{n}.{name}", formats, hidden, plain_order(rows), [f"{prefix}.in_proj_{key}"], False
        )
    rates = tuple(f"{prefix}.in_proj_{key}.weight" for key in "ab")
    yield PackedMatrix(f"{n}.rates", Format.FLOAT32, hidden, plain_order(2 * m.value_heads), rates)
    yield _taps(n, m.channels, m.kernel, f"{prefix}.conv1d.weight")
    turn = None if m.decay_applied else decay_of
    yield Vector(f"{n}.decay", m.value_heads, f32, (f"{prefix}.{m.decay}",), turn=turn)
    yield Vector(f"{n}.dt_bias", m.value_heads, f32, (f"{prefix}.dt_bias",))
    yield Vector(f"{n}.value_norm", m.value_dim, f32, (f"{prefix}.norm.weight",))
    yield from matrix(
        f"{n}.out", formats, values, plain_order(hidden), [f"{prefix}.out_proj"], False
    )


def short_conv(m: ShortConv, hidden: int, formats: Formats, n: int, prefix: str) -> Iterator[Piece]:
    rows = plain_order(3 * m.channels)
    yield from matrix(f"{n}.mixed", formats, hidden, rows, [f"{prefix}.in_proj"], False)
    yield _taps(n, m.channels, m.kernel, f"{prefix}.conv.weight")
    out = [f"{prefix}.out_proj"]
    yield from matrix(f"{n}.out", formats, m.channels, plain_order(hidden), out, False)


def _taps(n: int, channels: int, kernel: int, *sources: str) -> Vector:
    """Those of all channels side by side, of the oldest row first."""
    order = np.arange(kernel * channels).reshape(channels, kernel).T.ravel()
    return Vector(f"{n}.conv", len(order), torch.float32, sources, order)
