"""The tensors of a checkpoint in file order, and how many weights they hold."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from fastslow.engine.model.norms import norm_tensors
from fastslow.engine.model.shape import DecoderShape, Layer
from fastslow.engine.model.tensor_spec import ShardAxis, ShardRule, TensorSpec

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PRE, POST, CENTROIDS = "pre_projection", "post_projection", "masked_embedding.centroids"
TOKEN_ORDER = (
    "masked_embedding.token_ordering"  # whole numbers [vocabulary], a cluster after the other
)
Shapes = dict[str, tuple[int, ...]]


def tensor_specs(config: DecoderShape) -> Iterator[TensorSpec]:
    """Every tensor that a checkpoint of this config holds."""
    ends, rows = (config.vocab_size, config.hidden_size), ShardRule(ShardAxis.ALL, 0)
    yield TensorSpec(EMBEDDING, ends, rows)
    if config.per_layer_embedding is not None:
        yield from config.per_layer_embedding.tensors(config.hidden_size)
    for n, layer in enumerate(config.layers):
        yield from layer_tensors(layer, f"model.layers.{n}", config.hidden_size)
    if config.streams is not None:
        yield from config.streams.merge_tensors(config.hidden_size)
    yield from norm_tensors("model.norm", config.norm, config.hidden_size)
    if not config.tie_word_embeddings:
        yield TensorSpec(HEAD, ends, rows)
    if (assists := config.assists) is not None:
        hidden = config.hidden_size
        yield TensorSpec(f"{PRE}.weight", (hidden, 2 * assists.hidden))
        yield TensorSpec(f"{POST}.weight", (assists.hidden, hidden))
        if assists.clusters:
            yield TensorSpec(f"{CENTROIDS}.weight", (assists.clusters, hidden))
            yield TensorSpec(TOKEN_ORDER, (config.vocab_size,))


def layer_tensors(layer: Layer, prefix: str, hidden: int) -> Iterator[TensorSpec]:
    """The tensors of a layer."""
    names = [f"{prefix}.{name}" for name in layer.norms.names.values()]
    kind, first = (
        layer.norms.kind,
        int(layer.norms.before),
    )  # of the norms, how many come before the mixer
    for name in names[:first]:
        yield from norm_tensors(name, kind, hidden)
    yield from layer.mixer.tensors(prefix, hidden)
    for name in names[first:]:
        yield from norm_tensors(name, kind, hidden)
    yield from layer.ffn.tensors(prefix, hidden)
    if layer.token_input is not None:
        yield from layer.token_input.tensors(prefix, hidden)
    if layer.scaled:
        yield TensorSpec(f"{prefix}.layer_scalar", (1,))
    if layer.streams is not None:
        yield from layer.streams.tensors(prefix, hidden)


def layer_names(config: DecoderShape, n: int) -> list[str]:
    """Names of the tensors of layer `n`."""
    specs = layer_tensors(config.layers[n], f"model.layers.{n}", config.hidden_size)
    return [spec.name for spec in specs]


def mtp_specs(config: DecoderShape) -> Iterator[TensorSpec]:
    """The tensors of layers for multi-token prediction; none without any."""
    hidden = config.hidden_size
    for mtp in () if config.mtp is None else config.mtp.heads:
        for name in (mtp.embedding_norm, mtp.hidden_norm):
            yield from norm_tensors(name, mtp.norms, hidden)
        yield TensorSpec(f"{mtp.entry}.weight", (hidden, 2 * hidden))
        yield from norm_tensors(mtp.norm, mtp.norms, hidden)
        yield from layer_tensors(mtp.layer, mtp.prefix, hidden)


def tensor_shapes(config: DecoderShape) -> Shapes:
    """Shapes by name, in file order."""
    return {spec.name: spec.shape for spec in tensor_specs(config)}


def mtp_shapes(config: DecoderShape) -> Shapes:
    """Shapes of the tensors of an MTP layer by name."""
    return {spec.name: spec.shape for spec in mtp_specs(config)}


def parameters(config: DecoderShape) -> int:
    """Count the weights of the checkpoint, embedding and head included."""
    return sum(prod(spec.shape) for spec in tensor_specs(config))


def active_parameters(config: DecoderShape, groups: int | None = None) -> int:
    """Weights in use for one token. groups: routed groups (or experts) that run; None = all, 0 = shared alone."""
    idle = 0
    for layer in config.layers:
        if (routed := layer.routed) is not None:
            one = sum(prod(s.shape) for s in routed.expert.inside("", config.hidden_size))
            idle += (routed.experts - routed.router.running(groups)) * one
    return parameters(config) - idle


def canonical(name: str, config: DecoderShape) -> str:
    """The name that `tensor_specs` has for a tensor that files spell in several ways."""
    for theirs, ours in config.renames:
        name = name.replace(theirs, ours)
    return name
