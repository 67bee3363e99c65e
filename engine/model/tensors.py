"""The tensors of a checkpoint: names, shapes, how many weights, and how ranks cut them."""

from __future__ import annotations

import re
from enum import Enum
from math import prod
from typing import NamedTuple

from fastslow.engine.model.shape import DecoderShape

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: DecoderShape) -> Shapes:
    """Every tensor that a checkpoint of this config holds, in file order, with its shape."""
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for n in range(config.layers):
        shapes |= decoder_layer(config, n)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def parameters(config: DecoderShape) -> int:
    """Count the weights of the checkpoint, embedding and head included."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def active_parameters(config: DecoderShape, groups: int | None = None) -> int:
    """Weights in use for one token. groups: routed groups (or experts) that run; None = all, 0 = shared alone."""
    running = config.chosen if groups is None else min(groups, config.chosen)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    if config.expert_bias:
        expert += 2 * config.moe_intermediate_size + config.hidden_size
    routed = sum(config.routed(n) for n in range(config.layers))
    return parameters(config) - routed * (config.experts - running) * expert


def layer_norms(c: DecoderShape) -> dict[str, str]:
    """The norms of a layer by use: before a sublayer, or post norms of what it adds."""
    if not c.post_norms:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    return {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }


def decoder_layer(c: DecoderShape, n: int) -> Shapes:
    hidden = c.hidden_size
    queries, keys, values = (
        c.heads * c.head_dim,
        c.kv_heads * c.head_dim,
        c.kv_heads * c.value_width,
    )
    layer = f"model.layers.{n}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    first, *norms = (f"{layer}.{name}.weight" for name in layer_norms(c).values())
    shapes: Shapes = {first: (hidden,)}
    rows = {"q": queries, "k": keys, "v": values, "qkv": queries + keys + values}
    for name in c.qkv_names:
        shapes |= _linear(f"{attention}.{name}_proj", rows[name], hidden, c.qkv_bias)
    shapes |= _linear(f"{attention}.o_proj", hidden, c.heads * c.value_width, c.out_bias)
    for side, normed in (("q", c.query_norm), ("k", c.key_norm)):
        if normed:
            shapes[f"{attention}.{side}_norm.weight"] = (c.head_dim,)
    if c.sink_logits:
        shapes[f"{attention}.sinks"] = (c.heads,)
    if c.sinks:
        shapes[f"{attention}.param_sink_key"] = (c.sinks, c.kv_heads, c.head_dim)
    if c.sinks and c.sink_values:
        shapes[f"{attention}.param_sink_value"] = (c.sinks, c.kv_heads, c.value_width)
    shapes |= dict.fromkeys(norms, (hidden,))
    if not c.routed(n):
        return shapes | _mlp_shapes(mlp, hidden, c.intermediate_size, c.mlp_bias)
    if c.router is None:
        shapes[f"{mlp}.gate.weight"] = (c.experts, hidden)
        shapes[f"{mlp}.router_scale"] = (1, c.experts)
    else:
        shapes |= _linear(f"{mlp}.gate", c.experts, hidden, c.router.bias)
        if c.router.choice_bias:
            shapes[f"{mlp}.gate.e_score_correction_bias"] = (c.experts,)
    return shapes | _expert_shapes(c, mlp)


def mtp_shapes(c: DecoderShape) -> Shapes:
    """A further layer that predicts the token after the next one: a decoder layer after the model's, with
    `enorm` and `hnorm` before `eh_proj`, and `shared_head.norm`."""
    if not c.mtp_layers:
        return {}
    layer, hidden = f"model.layers.{c.layers}", c.hidden_size
    shapes: Shapes = {f"{layer}.{name}.weight": (hidden,) for name in ("enorm", "hnorm")}
    shapes[f"{layer}.eh_proj.weight"] = (hidden, 2 * hidden)
    shapes[f"{layer}.shared_head.norm.weight"] = (hidden,)
    return shapes | decoder_layer(c, c.layers)


def _expert_shapes(c: DecoderShape, mlp: str) -> Shapes:
    hidden, inner = c.hidden_size, c.shared_intermediate_size
    shapes = _mlp_shapes(f"{mlp}.shared_expert", hidden, inner) if inner else {}
    for e in range(c.experts):
        prefix = f"{mlp}.experts.{e}"
        shapes |= _mlp_shapes(prefix, hidden, c.moe_intermediate_size, c.expert_bias)
    return shapes


def _mlp_shapes(prefix: str, hidden: int, inner: int, bias: bool = False) -> Shapes:
    sides = (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner))
    shapes: Shapes = {}
    for name, rows, columns in sides:
        shapes |= _linear(f"{prefix}.{name}_proj", rows, columns, bias)
    return shapes


def _linear(prefix: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{prefix}.weight": (rows, columns)}
    return shapes | {f"{prefix}.bias": (rows,)} if bias else shapes


def canonical(name: str, config: DecoderShape) -> str:
    """The name that `tensor_shapes` has for a tensor that files spell in several ways."""
    for theirs, ours in config.renames:
        name = name.replace(theirs, ours)
    return name


class ShardAxis(Enum):
    """Ranks that share a tensor's cut axis, and the unit that is cut."""

    NOBODY = "every rank holds all of it"
    ALL = "all ranks"
    HEADS = "the ranks of one replica of attention, whole query heads each"
    KV_HEADS = "the ranks of one replica of attention, whole KV heads each"
    QKV = "as query heads and KV heads, which lie below each other in one matrix"
    EXPERTS = "the ranks that hold the expert's group; the others hold nothing of it"
    FIRST_OF_ALL = "held by the first rank alone, since it is added once"
    FIRST_OF_HEADS = "held by the first rank of each replica of attention alone"
    FIRST_OF_EXPERTS = "held by the first of the ranks that share the expert alone"


class ShardRule(NamedTuple):
    """Cut of a tensor [out, in] among ranks; axis: None where it is not cut.

    The outs of one matrix are cut and the ins of the next (Megatron-LM, Shoeybi et al., arXiv 1909.08053):
    every rank has a partial sum, and the sum over all ranks is whole."""

    over: ShardAxis
    axis: int | None = None


LAYER = r"model\.layers\.\d+\."
ATTENTION, MLP = LAYER + r"self_attn\.", LAYER + r"mlp\."
EXPERT = MLP + r"experts\.(\d+)\."

_RULES = tuple(
    (re.compile(pattern), ShardRule(over, axis))
    for pattern, over, axis in (
        (r"model\.embed_tokens\.weight|lm_head\.weight", ShardAxis.ALL, 0),
        (r"model\.norm\.weight", ShardAxis.NOBODY, None),
        (LAYER + r"[a-z_]+_layernorm\.weight", ShardAxis.NOBODY, None),
        (ATTENTION + r"q_proj\.(weight|bias)", ShardAxis.HEADS, 0),
        (ATTENTION + r"[kv]_proj\.(weight|bias)", ShardAxis.KV_HEADS, 0),
        (ATTENTION + r"qkv_proj\.(weight|bias)", ShardAxis.QKV, 0),
        (ATTENTION + r"[qk]_norm\.weight", ShardAxis.NOBODY, None),
        (ATTENTION + r"sinks", ShardAxis.HEADS, 0),
        (ATTENTION + r"param_sink_(key|value)", ShardAxis.KV_HEADS, 1),
        (ATTENTION + r"o_proj\.weight", ShardAxis.HEADS, 1),
        (ATTENTION + r"o_proj\.bias", ShardAxis.FIRST_OF_HEADS, None),
        (MLP + r"gate\.(weight|bias|e_score_correction_bias)", ShardAxis.NOBODY, None),
        (MLP + r"router_scale", ShardAxis.NOBODY, None),
        (EXPERT + r"(gate|up)_proj\.(weight|bias)", ShardAxis.EXPERTS, 0),
        (EXPERT + r"down_proj\.weight", ShardAxis.EXPERTS, 1),
        (EXPERT + r"down_proj\.bias", ShardAxis.FIRST_OF_EXPERTS, None),
        (MLP + r"(shared_expert\.)?(gate|up)_proj\.(weight|bias)", ShardAxis.ALL, 0),
        (MLP + r"(shared_expert\.)?down_proj\.weight", ShardAxis.ALL, 1),
        (MLP + r"down_proj\.bias", ShardAxis.FIRST_OF_ALL, None),
    )
)
_EXPERT = re.compile(EXPERT)


def cut_of(name: str) -> ShardRule:
    """Return the rule that cuts the tensor of this name. ValueError: no rule knows it."""
    for pattern, cut in _RULES:
        if pattern.fullmatch(name):
            return cut
    raise ValueError(f"tensor {name} has no rule by which several ranks could share it")


def expert_of(name: str) -> int:
    found = _EXPERT.match(name)
    if found is None:
        raise ValueError(f"tensor {name} is none of an expert")
    return int(found.group(1))
