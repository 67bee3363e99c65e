"""The tensors of a layer: names and shapes, as the decoder's shape asks for them."""

from __future__ import annotations

from fastslow.engine.model.shape import DecoderShape

Shapes = dict[str, tuple[int, ...]]


def decoder_layer(c: DecoderShape, n: int) -> Shapes:
    """Of a layer whose tensors have the usual names."""
    hidden = c.hidden_size
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = f"model.layers.{n}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    shapes: Shapes = {f"{layer}.input_layernorm.weight": (hidden,)}
    for name in "qkv":
        rows = queries if name == "q" else keys
        shapes |= linear(f"{attention}.{name}_proj", rows, hidden, c.qkv_bias)
    shapes |= linear(f"{attention}.o_proj", hidden, queries, c.out_bias)
    if c.query_norm:
        shapes[f"{attention}.q_norm.weight"] = (c.head_dim,)
    if c.key_norm:
        shapes[f"{attention}.k_norm.weight"] = (c.head_dim,)
    if c.sink_logits:
        shapes[f"{attention}.sinks"] = (c.heads,)
    shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    if not c.routed(n):
        return shapes | mlp_shapes(mlp, hidden, c.intermediate_size, c.mlp_bias)
    if c.router is None:
        shapes[f"{mlp}.gate.weight"] = (c.experts, hidden)
        shapes[f"{mlp}.router_scale"] = (1, c.experts)
    else:
        shapes |= linear(f"{mlp}.gate", c.experts, hidden, c.router.bias)
    return shapes | expert_shapes(c, mlp, "shared_expert")


def expert_shapes(c: DecoderShape, mlp: str, shared: str) -> Shapes:
    """Routed experts, after the shared one where there is one."""
    hidden, inner = c.hidden_size, c.shared_intermediate_size
    shapes = mlp_shapes(f"{mlp}.{shared}", hidden, inner) if inner else {}
    for e in range(c.experts):
        prefix = f"{mlp}.experts.{e}"
        shapes |= mlp_shapes(prefix, hidden, c.moe_intermediate_size, c.expert_bias)
    return shapes


def mlp_shapes(prefix: str, hidden: int, inner: int, bias: bool = False) -> Shapes:
    """gate, up and down projection of one MLP."""
    sides = (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner))
    shapes: Shapes = {}
    for name, rows, columns in sides:
        shapes |= linear(f"{prefix}.{name}_proj", rows, columns, bias)
    return shapes


def linear(prefix: str, rows: int, columns: int, bias: bool) -> Shapes:
    """A matrix [out, in], and its bias where it has one."""
    shapes: Shapes = {f"{prefix}.weight": (rows, columns)}
    return shapes | {f"{prefix}.bias": (rows,)} if bias else shapes
