"""The tensors of a checkpoint: names, shapes and how many weights, from a config."""

from __future__ import annotations

from math import prod

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.extras import Extras

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Every tensor that a checkpoint of this config holds, in file order, with its shape.

    With tied embeddings there is no `lm_head.weight`.
    """
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    for n in range(config.layers):
        shapes |= layer_shapes(config, n)
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


def parameters(config: ModelConfig) -> int:
    """How many weights the checkpoint holds, embedding and head included."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def active_parameters(config: ModelConfig, groups: int | None = None) -> int:
    """Weights in use for one token: `parameters` less the experts that do not run.

    groups: routed groups that run; None = all, 0 = shared experts only.
    """
    running = config.chosen if groups is None else min(groups, config.chosen)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    routed = sum(config.routed(n) for n in range(config.layers))
    return parameters(config) - routed * (config.experts - running) * expert


def layer_shapes(config: ModelConfig, n: int) -> Shapes:
    """The tensors of layer `n`."""
    if config.extras is not None:
        return extra_layer_shapes(config, config.extras, n)
    hidden = config.hidden_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = f"model.layers.{n}"
    shapes: Shapes = {f"{layer}.input_layernorm.weight": (hidden,)}
    for name, rows, columns in (
        ("q", queries, hidden),
        ("k", keys, hidden),
        ("v", keys, hidden),
        ("o", hidden, queries),
    ):
        shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, columns)
        if config.attention_bias:
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
    shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    if not config.routed(n):
        return shapes | mlp_shapes(
            f"{layer}.mlp", hidden, config.intermediate_size, config.mlp_bias
        )
    shapes[f"{layer}.mlp.gate.weight"] = (config.experts, hidden)
    shapes[f"{layer}.mlp.router_scale"] = (1, config.experts)
    shapes |= mlp_shapes(f"{layer}.mlp.shared_expert", hidden, config.shared_intermediate_size)
    for e in range(config.experts):
        shapes |= mlp_shapes(f"{layer}.mlp.experts.{e}", hidden, config.moe_intermediate_size)
    return shapes


def extra_layer_shapes(config: ModelConfig, extras: Extras, n: int) -> Shapes:
    """The tensors of layer `n` of an architecture with extras: q, k and v come as one matrix."""
    hidden, heads, kv_heads = config.hidden_size, config.heads, config.kv_heads
    layer = f"model.layers.{n}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    rows = (heads + kv_heads) * config.head_dim + kv_heads * extras.value_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_mlp_layernorm", "post_mlp_layernorm"] if extras.sandwich else []
    shapes: Shapes = {
        **{f"{layer}.{name}.weight": (hidden,) for name in norms},
        f"{attention}.qkv_proj.weight": (rows, hidden),
        f"{attention}.o_proj.weight": (hidden, heads * extras.value_dim),
        f"{attention}.k_layernorm.weight": (config.head_dim,),
    }
    if extras.sinks:
        shapes[f"{attention}.param_sink_key"] = (extras.sinks, kv_heads, config.head_dim)
    if extras.sinks and extras.sink_values:
        shapes[f"{attention}.param_sink_value"] = (extras.sinks, kv_heads, extras.value_dim)
    if n in config.mlp_only_layers:
        return shapes | mlp_shapes(mlp, hidden, config.intermediate_size)
    shapes[f"{mlp}.gate.weight"] = (config.experts, hidden)
    if extras.expert_bias:
        shapes[f"{mlp}.gate.e_score_correction_bias"] = (config.experts,)
    shapes |= mlp_shapes(f"{mlp}.shared_experts", hidden, config.shared_intermediate_size)
    for e in range(config.experts):
        shapes |= mlp_shapes(f"{mlp}.experts.{e}", hidden, config.moe_intermediate_size)
    return shapes


def draft_shapes(config: ModelConfig) -> Shapes:
    """What a checkpoint may hold besides: a layer that predicts the token after the next one.

    It stands behind the model's layers and has their tensors, with `enorm` and `hnorm` in front of
    `eh_proj`, and `shared_head.norm`. Embedding and head are the model's own, whatever copies there are.
    """
    extras, hidden = config.extras, config.hidden_size
    if extras is None or not extras.draft_layers:
        return {}
    layer = f"model.layers.{config.layers}"
    shapes: Shapes = {
        f"{layer}.enorm.weight": (hidden,),
        f"{layer}.hnorm.weight": (hidden,),
        f"{layer}.eh_proj.weight": (hidden, 2 * hidden),
        f"{layer}.shared_head.norm.weight": (hidden,),
    }
    return shapes | extra_layer_shapes(config, extras, config.layers)


def canonical(name: str, config: ModelConfig) -> str:
    """The name that `tensor_shapes` has for a tensor that exports spell in several ways."""
    if config.extras is None:
        return name
    name = name.replace(".mlp.shared_expert.", ".mlp.shared_experts.")
    return name.replace(".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias")


def mlp_shapes(prefix: str, hidden: int, inner: int, bias: bool = False) -> Shapes:
    """gate, up and down projection of one MLP."""
    shapes: Shapes = {}
    for name, rows, columns in (
        ("gate", inner, hidden),
        ("up", inner, hidden),
        ("down", hidden, inner),
    ):
        shapes[f"{prefix}.{name}_proj.weight"] = (rows, columns)
        if bias:
            shapes[f"{prefix}.{name}_proj.bias"] = (rows,)
    return shapes
