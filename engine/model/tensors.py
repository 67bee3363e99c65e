"""The tensors of a checkpoint: names, shapes, how many weights, and how ranks cut them."""

from __future__ import annotations

import re
from enum import Enum
from math import prod
from typing import NamedTuple

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families.pangu_v2_config import PanguV2Config

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

    groups: routed groups that run, or without groups experts; None = all, 0 = shared experts only.
    """
    running = config.chosen if groups is None else min(groups, config.chosen)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    routed = sum(config.routed(n) for n in range(config.layers))
    return parameters(config) - routed * (config.experts - running) * expert


def layer_shapes(config: ModelConfig, n: int) -> Shapes:
    """The tensors of layer `n`."""
    if config.pangu_v2 is not None:
        return pangu_v2_layer_shapes(config, config.pangu_v2, n)
    hidden = config.hidden_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = f"model.layers.{n}"
    shapes: Shapes = {f"{layer}.input_layernorm.weight": (hidden,)}
    sides = (
        ("q", queries, hidden),
        ("k", keys, hidden),
        ("v", keys, hidden),
        ("o", hidden, queries),
    )
    for name, rows, columns in sides:
        shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, columns)
        if config.out_bias if name == "o" else config.qkv_bias:
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
    shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    if not config.routed(n):
        return shapes | mlp_shapes(
            f"{layer}.mlp", hidden, config.intermediate_size, config.mlp_bias
        )
    shapes[f"{layer}.mlp.gate.weight"] = (config.experts, hidden)
    shapes[f"{layer}.mlp.router_scale"] = (1, config.experts)
    return shapes | _expert_shapes(config, f"{layer}.mlp", "shared_expert")


def pangu_v2_layer_shapes(config: ModelConfig, family: PanguV2Config, n: int) -> Shapes:
    """The tensors of layer `n` of openPangu V2: q, k and v come as one matrix."""
    hidden, heads, kv_heads = config.hidden_size, config.heads, config.kv_heads
    layer = f"model.layers.{n}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    rows = (heads + kv_heads) * config.head_dim + kv_heads * family.value_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_mlp_layernorm", "post_mlp_layernorm"] if family.sandwich else []
    shapes: Shapes = {
        **{f"{layer}.{name}.weight": (hidden,) for name in norms},
        f"{attention}.qkv_proj.weight": (rows, hidden),
        f"{attention}.o_proj.weight": (hidden, heads * family.value_dim),
        f"{attention}.k_layernorm.weight": (config.head_dim,),
    }
    if family.sinks:
        shapes[f"{attention}.param_sink_key"] = (family.sinks, kv_heads, config.head_dim)
    if family.sinks and family.sink_values:
        shapes[f"{attention}.param_sink_value"] = (family.sinks, kv_heads, family.value_dim)
    if n in config.mlp_only_layers:
        return shapes | mlp_shapes(mlp, hidden, config.intermediate_size)
    shapes[f"{mlp}.gate.weight"] = (config.experts, hidden)
    if family.expert_bias:
        shapes[f"{mlp}.gate.e_score_correction_bias"] = (config.experts,)
    return shapes | _expert_shapes(config, mlp, "shared_experts")


def _expert_shapes(config: ModelConfig, mlp: str, shared: str) -> Shapes:
    hidden = config.hidden_size
    shapes = mlp_shapes(f"{mlp}.{shared}", hidden, config.shared_intermediate_size)
    for e in range(config.experts):
        shapes |= mlp_shapes(f"{mlp}.experts.{e}", hidden, config.moe_intermediate_size)
    return shapes


def mtp_shapes(config: ModelConfig) -> Shapes:
    """What a checkpoint may hold besides: a layer that predicts the token after the next one.

    It stands behind the model's layers and has their tensors, with `enorm` and `hnorm` in front of
    `eh_proj`, and `shared_head.norm`. Embedding and head are the model's own, whatever copies there are.
    """
    family, hidden = config.pangu_v2, config.hidden_size
    if family is None or not family.draft_layers:
        return {}
    layer = f"model.layers.{config.layers}"
    shapes: Shapes = {
        f"{layer}.enorm.weight": (hidden,),
        f"{layer}.hnorm.weight": (hidden,),
        f"{layer}.eh_proj.weight": (hidden, 2 * hidden),
        f"{layer}.shared_head.norm.weight": (hidden,),
    }
    return shapes | pangu_v2_layer_shapes(config, family, config.layers)


def canonical(name: str, config: ModelConfig) -> str:
    """The name that `tensor_shapes` has for a tensor that exports spell in several ways."""
    if config.pangu_v2 is None:
        return name
    name = name.replace(".mlp.shared_expert.", ".mlp.shared_experts.")
    return name.replace(".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias")


def mlp_shapes(prefix: str, hidden: int, inner: int, bias: bool = False) -> Shapes:
    """gate, up and down projection of one MLP."""
    shapes: Shapes = {}
    sides = (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner))
    for name, rows, columns in sides:
        shapes[f"{prefix}.{name}_proj.weight"] = (rows, columns)
        if bias:
            shapes[f"{prefix}.{name}_proj.bias"] = (rows,)
    return shapes


class Over(Enum):
    """Which ranks share a tensor's cut axis, and in units of what."""

    NOBODY = "every rank holds all of it"
    ALL = "all ranks"
    HEADS = "the ranks of one replica of attention, whole query heads each"
    KV_HEADS = "the ranks of one replica of attention, whole KV heads each"
    EXPERTS = "the ranks that hold the expert's group; the others hold nothing of it"
    FIRST_OF_ALL = "held by the first rank alone, since it is added once"
    FIRST_OF_HEADS = "held by the first rank of each replica of attention alone"


class Cut(NamedTuple):
    """How a tensor is cut where several ranks share a model. axis: None where it is not cut.

    Matrices are [out, in]. Cutting the outs of one matrix and the ins of the next (Megatron-LM,
    Shoeybi et al., arXiv 1909.08053) leaves every rank with a partial sum; the sum over all ranks
    is whole.
    """

    over: Over
    axis: int | None = None


_LAYER = r"model\.layers\.\d+\."
_ATTENTION = _LAYER + r"self_attn\."
_MLP = _LAYER + r"mlp\."

CUTS: tuple[tuple[str, Cut], ...] = (
    (r"model\.embed_tokens\.weight|lm_head\.weight", Cut(Over.ALL, 0)),
    (r"model\.norm\.weight", Cut(Over.NOBODY)),
    (_LAYER + r"(input|post_attention)_layernorm\.weight", Cut(Over.NOBODY)),
    (_ATTENTION + r"q_proj\.(weight|bias)", Cut(Over.HEADS, 0)),
    (_ATTENTION + r"[kv]_proj\.(weight|bias)", Cut(Over.KV_HEADS, 0)),
    (_ATTENTION + r"o_proj\.weight", Cut(Over.HEADS, 1)),
    (_ATTENTION + r"o_proj\.bias", Cut(Over.FIRST_OF_HEADS)),
    (_MLP + r"gate\.weight|" + _MLP + r"router_scale", Cut(Over.NOBODY)),
    (_MLP + r"experts\.\d+\.(gate|up)_proj\.weight", Cut(Over.EXPERTS, 0)),
    (_MLP + r"experts\.\d+\.down_proj\.weight", Cut(Over.EXPERTS, 1)),
    (_MLP + r"(shared_expert\.)?(gate|up)_proj\.(weight|bias)", Cut(Over.ALL, 0)),
    (_MLP + r"(shared_expert\.)?down_proj\.weight", Cut(Over.ALL, 1)),
    (_MLP + r"down_proj\.bias", Cut(Over.FIRST_OF_ALL)),
)

_COMPILED = tuple((re.compile(pattern), cut) for pattern, cut in CUTS)
_EXPERT = re.compile(_MLP + r"experts\.(\d+)\.")


def cut_of(name: str) -> Cut:
    """How the tensor of this name is cut.

    Raises:
        ValueError: no rule knows it.
    """
    for pattern, cut in _COMPILED:
        if pattern.fullmatch(name):
            return cut
    raise ValueError(f"tensor {name} has no rule by which several ranks could share it")


def expert_of(name: str) -> int:
    """The expert's number in a tensor's name."""
    found = _EXPERT.match(name)
    if found is None:
        raise ValueError(f"tensor {name} is none of an expert")
    return int(found.group(1))
