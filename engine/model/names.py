"""The tensors of a checkpoint: names and shapes, from a config."""

from __future__ import annotations

from fastslow.engine.model.config import ModelConfig

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


def layer_shapes(config: ModelConfig, n: int) -> Shapes:
    """The tensors of layer `n`."""
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
