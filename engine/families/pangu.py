"""openPangu Pro MoE (72B): a shared expert, and routed ones in groups of which each runs one (MoGE: Tang et al., arXiv
2505.21411). And V2 (openPangu-R-72B): learned sinks, norms of keys and after sublayers, partial rotation, one group of
experts, a layer that drafts."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import decoder, dense_layers
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    boolean,
    count,
    integer,
    number,
    text,
)
from fastslow.engine.model.shape import DecoderShape, Router

MOST_SINKS = 65_536
MOST_SCALE = 1e6
FIRST, LAST = "interleaved-first", "halves-last"  # the first is that of Huawei's own inference code
RENAMES = (
    (".mlp.shared_experts.", ".mlp.shared_expert."),
    (".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
    (".self_attn.k_layernorm.", ".self_attn.k_norm."),
    (".pre_mlp_layernorm.", ".pre_feedforward_layernorm."),
    (".post_mlp_layernorm.", ".post_feedforward_layernorm."),
)


def _experts(shape: DecoderShape, raw: ConfigJson) -> DecoderShape:
    return replace(
        shape,
        experts=integer(raw, "num_experts", most=MOST_EXPERTS),
        moe_intermediate_size=integer(raw, "moe_intermediate_size", most=MOST_WIDTH),
        shared_intermediate_size=integer(raw, "shared_expert_intermediate_size", most=MOST_WIDTH),
        mlp_only_layers=dense_layers(raw),
    )


def _moge(raw: ConfigJson) -> DecoderShape:
    """`num_experts_per_tok` is the number of groups."""
    shape = _experts(decoder(raw, dense=bool(dense_layers(raw))), raw)
    groups, bias = integer(raw, "num_experts_per_tok"), boolean(raw, "bias", True)
    return replace(shape, groups=groups, qkv_bias=bias, out_bias=bias)


def _v2(raw: ConfigJson) -> DecoderShape:
    """`qk_rope_dim` of a head's dims are rotated, and its values have `v_channels`."""
    head_dim = None
    if raw.get("qk_nope_dim") is not None:
        head_dim = integer(raw, "qk_nope_dim") + integer(raw, "qk_rope_dim")
    shape = _experts(decoder(raw, head_dim=head_dim, dense=bool(dense_layers(raw))), raw)
    rotary = integer(raw, "qk_rope_dim", default=shape.head_dim)
    if rotary % 2 or rotary > shape.head_dim:
        raise ValueError(f"qk_rope_dim {rotary} must be even and at most {shape.head_dim}")
    values = integer(raw, "v_channels", default=shape.head_dim)
    if values > shape.head_dim:
        raise ValueError(f"v_channels {values} must be at most {shape.head_dim}, the keys' size")
    layout = text(raw, "rotary_layout", default=FIRST) or FIRST
    if layout not in (FIRST, LAST):
        raise ValueError(f"rotary_layout {shown(layout)} is not one of {FIRST}, {LAST}")
    for field in ("bias", "attention_bias", "qkv_bias"):
        if boolean(raw, field, False):
            raise ValueError(f"{field} True is not supported with this architecture")
    return replace(
        shape,
        key_norm=True,
        router=Router(
            "sigmoid",
            integer(raw, "num_experts_per_tok"),
            normed=boolean(raw, "norm_topk_prob", True),
            scale=number(raw, "routed_scaling_factor", 1.0, most=MOST_SCALE),
            choice_bias=boolean(raw, "router_enable_expert_bias", False),
        ),
        post_norms=boolean(raw, "sandwich_norm", False),
        qkv_fused=True,
        value_dim=values,
        rotary_dim=rotary,
        rotary_layout=layout,
        sinks=count(raw, "param_sink_number", most=MOST_SINKS),
        sink_values=boolean(raw, "param_sink_with_value", False),
        mtp_layers=count(raw, "num_mtp_layers"),
        renames=RENAMES,
    )


MOGE = Family(("PanguProMoEForCausalLM",), _moge)
V2 = Family(("PanguProMoEV2ForCausalLM",), _v2)
