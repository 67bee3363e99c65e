"""openPangu Pro MoE V2 (openPangu-R-72B): what config.json says, and the tensors of its layers.

Two spellings are known: the published config.json's (`num_experts`, `mlp_only_layers`,
`num_mtp_layers`) and the one of public inference code (`n_routed_experts`, `first_k_dense_replace`,
`num_nextn_predict_layers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import decoder, dense_layers
from fastslow.engine.model.families.family import Family
from fastslow.engine.model.fields import (
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_WIDTH,
    boolean,
    count,
    integer,
    number,
    text,
)
from fastslow.engine.model.layer_shapes import Shapes, expert_shapes, mlp_shapes
from fastslow.engine.model.shape import DecoderShape, PanguV2Config, Router
from fastslow.engine.model.shard_rules import ATTENTION, LAYER, MLP, ShardAxis, ShardRule

MOST_SINKS = 65_536
MOST_SCALE = 1e6
OTHER_NAMES = (
    *("n_routed_experts", "num_nextn_predict_layers", "n_shared_experts"),
    *("first_k_dense_replace", "qk_nope_dim"),
)
FIRST, LAST = "interleaved-first", "halves-last"


def read(raw: ConfigJson) -> DecoderShape:
    """A sigmoid router over one group of experts, norms of keys, and what `PanguV2Config` says."""
    dense = dense_layers(raw)
    shape = decoder(raw, dense=bool(dense))
    family = _own(raw, shape.head_dim)
    return replace(
        shape,
        experts=integer(raw, "num_experts", most=MOST_EXPERTS),
        moe_intermediate_size=integer(raw, "moe_intermediate_size", most=MOST_WIDTH),
        shared_intermediate_size=integer(raw, "shared_expert_intermediate_size", most=MOST_WIDTH),
        mlp_only_layers=dense,
        key_norm=True,
        router=Router(
            "sigmoid",
            family.top_k,
            family.expert_norm,
            family.expert_scale,
            choice_bias=family.expert_bias,
        ),
        pangu_v2=family,
    )


def _own(raw: ConfigJson, head_dim: int) -> PanguV2Config:
    rotary = integer(raw, "qk_rope_dim", default=head_dim)
    if rotary % 2 or rotary > head_dim:
        raise ValueError(f"qk_rope_dim {rotary} must be even and at most {head_dim}")
    values = integer(raw, "v_channels", default=head_dim)
    if values > head_dim:
        raise ValueError(f"v_channels {values} must be at most {head_dim}, the keys' size")
    layout = text(raw, "rotary_layout", default=FIRST) or FIRST
    if layout not in (FIRST, LAST):
        raise ValueError(f"rotary_layout {shown(layout)} is not one of {FIRST}, {LAST}")
    experts = integer(raw, "num_experts")
    top_k = integer(raw, "num_experts_per_tok")
    if top_k > experts:
        raise ValueError(f"num_experts_per_tok {top_k} must be at most num_experts {experts}")
    for field in ("bias", "attention_bias", "qkv_bias"):
        if boolean(raw, field, False):
            raise ValueError(f"{field} True is not supported with this architecture")
    return PanguV2Config(
        top_k=top_k,
        value_dim=values,
        rotary_dim=rotary,
        rotary_layout=layout,
        sinks=count(raw, "param_sink_number", most=MOST_SINKS),
        sink_values=boolean(raw, "param_sink_with_value", False),
        expert_bias=boolean(raw, "router_enable_expert_bias", False),
        expert_norm=boolean(raw, "norm_topk_prob", True),
        expert_scale=number(raw, "routed_scaling_factor", 1.0, most=MOST_SCALE),
        sandwich=boolean(raw, "sandwich_norm", False),
        draft_layers=count(raw, "num_mtp_layers"),
    )


def published(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the published spelling, with `head_dim` of the two parts that it has."""
    fields = {
        name: value
        for theirs, name in (
            ("n_routed_experts", "num_experts"),
            ("num_nextn_predict_layers", "num_mtp_layers"),
        )
        if (value := raw.get(theirs)) is not None
    }
    if raw.get("n_shared_experts") is not None:
        shared = integer(raw, "n_shared_experts") * integer(raw, "moe_intermediate_size")
        fields["shared_expert_intermediate_size"] = shared
    if raw.get("first_k_dense_replace") is not None:
        layers = integer(raw, "num_hidden_layers", most=MOST_LAYERS)
        fields["mlp_only_layers"] = list(range(count(raw, "first_k_dense_replace", most=layers)))
    if raw.get("qk_nope_dim") is not None:
        fields["head_dim"] = integer(raw, "qk_nope_dim") + integer(raw, "qk_rope_dim")
    kept = {k: v for k, v in raw.items() if v is not None and k not in OTHER_NAMES}
    return {**fields, **kept}


def layer_shapes(config: DecoderShape, n: int) -> Shapes:
    """The tensors of layer `n`: q, k and v come as one matrix."""
    family = config.pangu_v2
    assert family is not None
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
    return shapes | expert_shapes(config, mlp, "shared_experts")


def draft_shapes(config: DecoderShape) -> Shapes:
    """A layer that predicts the token after the next one.

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
    return shapes | layer_shapes(config, config.layers)


def canonical(name: str) -> str:
    """Exports spell some tensors in several ways."""
    name = name.replace(".mlp.shared_expert.", ".mlp.shared_experts.")
    return name.replace(".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias")


FAMILY = Family(
    ("PanguProMoEV2ForCausalLM",),
    read,
    spelled=published,
    canonical=canonical,
    layer_shapes=layer_shapes,
    draft_shapes=draft_shapes,
    cuts=(
        (LAYER + r"(pre|post)_mlp_layernorm\.weight", ShardRule(ShardAxis.NOBODY)),
        (ATTENTION + r"qkv_proj\.weight", ShardRule(ShardAxis.QKV, 0)),
        (ATTENTION + r"k_layernorm\.weight", ShardRule(ShardAxis.NOBODY)),
        (ATTENTION + r"param_sink_(key|value)", ShardRule(ShardAxis.KV_HEADS, 1)),
        (MLP + r"gate\.e_score_correction_bias", ShardRule(ShardAxis.NOBODY)),
        (MLP + r"shared_experts\.(gate|up)_proj\.weight", ShardRule(ShardAxis.ALL, 0)),
        (MLP + r"shared_experts\.down_proj\.weight", ShardRule(ShardAxis.ALL, 1)),
    ),
)
