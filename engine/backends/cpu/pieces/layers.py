"""All pieces of a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from fastslow.engine.backends.alike import KERNELS, AlikeLayers, dense
from fastslow.engine.backends.cpu.formats import (
    EMBEDDING,
    Format,
    Formats,
    PackedMatrix,
    Piece,
    ScreenNorms,
    Vector,
)
from fastslow.engine.backends.cpu.pieces.matrices import matrix, norm
from fastslow.engine.backends.cpu.pieces.mixers import attention, delta, latent, short_conv
from fastslow.engine.backends.cpu.pieces.orders import gate_up_order, heads_order, plain_order
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import GroupRouter, Router
from fastslow.engine.model.ffn.streams import MERGE, MODULES, WHOLE_NORM
from fastslow.engine.model.ffn.token_input import PROJECTION, PROJECTION_NORM
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.shape import Layer, MtpLayer
from fastslow.engine.model.tensors import PRE

NORMS = {  # of a layer, by use: names of the kernels
    "mixer": "attention_norm",
    "mixer_added": "attention_post_norm",
    "ffn": "mlp_norm",
    "ffn_added": "mlp_post_norm",
}
PIECE = 512  # numbers of a stream that lie together for all outputs, as in kernels/streams.h
PARALLEL_NORMS = "dense_post_norm", "expert_norm", "expert_post_norm"  # as in ParallelFfn.norms


def pieces(config: ModelConfig, formats: Formats) -> Iterator[Piece]:
    """All that a model needs, in the order of a step: a core then reads one stream."""
    alike = AlikeLayers.of(config.with_mtp, KERNELS)
    for n, layer in enumerate(config.layers):
        yield from _layer(layer, alike, config.hidden_size, formats, n, f"model.layers.{n}")
    hidden, vocabulary = config.hidden_size, config.vocab_size
    tied = config.tie_word_embeddings
    if (table := config.per_layer_embedding) is not None:
        rows = heads_order(table.layers, table.width)
        yield from matrix("token_projection", formats, hidden, rows, [PROJECTION], False)
        yield norm(alike, "token_projection_norm", table.width, PROJECTION_NORM)
    if (streams := config.streams) is not None:
        yield _mix("merge_mix", MERGE, streams.count, streams.count, hidden, "_pre")
    yield norm(alike, "norm", hidden, "model.norm", factor=config.logit_scale)
    head = EMBEDDING if tied else "lm_head.weight"
    if formats.screens:
        yield PackedMatrix("screen", Format.INT8, hidden, plain_order(vocabulary), (head,))
        yield ScreenNorms("screen_norms", vocabulary, head)
    yield PackedMatrix("head", formats.head, hidden, plain_order(vocabulary), (head,))
    for k, drafting in enumerate(() if config.mtp is None else config.mtp.heads):
        yield from _mtp(drafting, alike, hidden, formats, k, len(config.layers) + k)
    if (assists := config.assists) is not None:
        yield from matrix("entry", formats, 2 * assists.hidden, plain_order(hidden), [PRE], False)
    elif formats.tiles is None:
        yield Vector("embedding", vocabulary * hidden, formats.embedding, (EMBEDDING,))
    elif not tied:
        rows = plain_order(vocabulary)
        yield PackedMatrix("embedding", formats.tiles, hidden, rows, (EMBEDDING,))


def _mtp(
    mtp: MtpLayer, alike: AlikeLayers, hidden: int, formats: Formats, k: int, n: int
) -> Iterator[Piece]:
    for key in ("embedding_norm", "hidden_norm", "norm"):
        yield norm(alike, f"mtp.{k}.{key}", hidden, getattr(mtp, key))
    rows = plain_order(hidden)
    yield from matrix(f"mtp.{k}.entry", formats, 2 * hidden, rows, [mtp.entry], False)
    yield from _layer(mtp.layer, alike, hidden, formats, n, mtp.prefix)


def _layer(
    layer: Layer, alike: AlikeLayers, hidden: int, formats: Formats, n: int, name: str
) -> Iterator[Piece]:
    norms = {
        use: norm(alike, f"{n}.{key}", hidden, f"{name}.{layer.norms.names[use]}")
        for use, key in NORMS.items()
        if use in layer.norms.names
    }
    if layer.norms.before:
        yield norms.pop("mixer")
    if isinstance(layer.mixer, GroupedAttention):
        yield from attention(layer.mixer, alike, hidden, formats, n, f"{name}.self_attn")
    elif isinstance(layer.mixer, LatentAttention):
        yield from latent(layer.mixer, hidden, formats, n, f"{name}.self_attn")
    elif isinstance(layer.mixer, GatedDelta):
        yield from delta(layer.mixer, hidden, formats, n, f"{name}.linear_attn")
    elif isinstance(layer.mixer, ShortConv):
        yield from short_conv(layer.mixer, hidden, formats, n, f"{name}.conv")
    if layer.norms.after:
        yield norms.pop("mixer_added")
    if layer.norms.before:
        yield norms.pop("ffn")
    if (streams := layer.streams) is not None:
        for sublayer, key in (("mixer", "attention_mix"), ("ffn", "mlp_mix")):
            outputs = streams.count * (streams.count + 2)
            yield _mix(f"{n}.{key}", f"{name}.{MODULES[sublayer]}", streams.count, outputs, hidden)
        if streams.whole_norm is not None:
            order, whole = heads_order(streams.count, hidden), f"{name}.{WHOLE_NORM}"
            yield norm(alike, f"{n}.streams_norm", len(order), whole, order)
    if (mlp := dense(layer)) is not None:
        yield from _mlp(n, "", formats, hidden, mlp, f"{name}.mlp")
    if (routed := layer.routed) is not None:
        yield from _routed(routed, hidden, formats, n, f"{name}.mlp")
    if isinstance(layer.ffn, ParallelFfn):
        for key, source in zip(PARALLEL_NORMS, layer.ffn.norms(name), strict=True):
            yield norm(alike, f"{n}.{key}", hidden, source)
    yield from norms.values()
    if (part := layer.token_input) is not None:
        for key, source, outputs, inputs in (
            ("token_gate", "per_layer_input_gate", part.width, hidden),
            ("token_up", "per_layer_projection", hidden, part.width),
        ):
            rows = plain_order(outputs)
            yield from matrix(f"{n}.{key}", formats, inputs, rows, [f"{name}.{source}"], False)
        yield norm(alike, f"{n}.token_norm", hidden, f"{name}.post_per_layer_input_norm")
    if layer.scaled:
        yield Vector(f"{n}.layer_scale", 1, torch.float32, (f"{name}.layer_scalar",))


def _mix(key: str, module: str, count: int, outputs: int, hidden: int, last: str = "") -> Vector:
    """What weights of streams are made with: factors are multiplied into the matrix, and biases come behind it."""
    names = "phi.weight", "norm_gamma", f"branch_alpha{last}", f"branch_beta{last}"
    rows = heads_order(outputs * count, hidden).reshape(outputs, count, -1)
    cuts = range(PIECE, rows.shape[2], PIECE)
    each = (x.ravel() for s in range(count) for x in np.split(rows[:, s], cuts, 1))
    order = np.concatenate((*each, outputs * count * hidden + np.arange(outputs)))
    turn = partial(_with_factors, count, outputs)
    sources = tuple(f"{module}.{name}" for name in names)
    return Vector(key, len(order), torch.float32, sources, order, turn=turn)


def _with_factors(count: int, outputs: int, numbers: torch.Tensor) -> torch.Tensor:
    parts = (count, count, count * count)[: 1 if outputs == count else 3]
    width = (len(numbers) - len(parts) - outputs) // (outputs + 1)
    phi, gamma, alpha, beta = numbers.split((outputs * width, width, len(parts), outputs))
    factors = alpha.repeat_interleave(torch.tensor(parts))
    return torch.cat(((phi.view(outputs, width) * gamma * factors[:, None]).flatten(), beta))


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


def _mlp(
    n: int, key: str, formats: Formats, hidden: int, mlp: DenseMlp, prefix: str
) -> Iterator[Piece]:
    inner, bias = mlp.width, mlp.bias
    both = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
    yield from matrix(f"{n}.{key}gate_up", formats, hidden, gate_up_order(inner), both, bias)
    down = [f"{prefix}.down_proj"]
    yield from matrix(f"{n}.{key}down", formats, inner, plain_order(hidden), down, bias)
