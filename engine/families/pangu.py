"""openPangu Pro MoE (72B): a shared expert, and routed ones in groups of which each runs one (MoGE: Tang et al., arXiv
2505.21411). And V2 (openPangu-R-72B): learned sinks, norms of keys and after sublayers, partial rotation, one group of
experts, a layer that drafts."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    activation_of,
    attending,
    decoder,
    dense_layers,
    feeding,
    norm_of,
)
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
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import GroupRouter, Router
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

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


def _decoder(
    raw: ConfigJson, mixer: GroupedAttention, router: GroupRouter | Router
) -> DecoderShape:
    """A shared expert and routed ones in all layers, but for those that are dense."""
    act = activation_of(raw)
    ffn = RoutedExperts(
        router,
        integer(raw, "num_experts", most=MOST_EXPERTS),
        DenseMlp(integer(raw, "moe_intermediate_size", most=MOST_WIDTH), act),
        DenseMlp(integer(raw, "shared_expert_intermediate_size", most=MOST_WIDTH), act),
    )
    dense = dense_layers(raw)
    plain = feeding(raw) if dense else None

    def one(n: int, layer: Layer) -> Layer:
        return replace(layer, ffn=plain) if plain is not None and n in dense else layer

    return decoder(raw, Layer(mixer, ffn)).each(one)


def _moge(raw: ConfigJson) -> DecoderShape:
    """`num_experts_per_tok` is the number of groups."""
    bias = boolean(raw, "bias", True)
    mixer = replace(attending(raw), qkv_bias=bias, out_bias=bias)
    return _decoder(raw, mixer, GroupRouter(integer(raw, "num_experts_per_tok")))


def _v2(raw: ConfigJson) -> DecoderShape:
    """`qk_rope_dim` of a head's dims are rotated, and its values have `v_channels`."""
    head_dim = None
    if raw.get("qk_nope_dim") is not None:
        head_dim = integer(raw, "qk_nope_dim") + integer(raw, "qk_rope_dim")
    mixer = attending(raw, head_dim=head_dim)
    rotary = integer(raw, "qk_rope_dim", default=mixer.head_dim)
    if rotary % 2 or rotary > mixer.head_dim:
        raise ValueError(f"qk_rope_dim {rotary} must be even and at most {mixer.head_dim}")
    values = integer(raw, "v_channels", default=mixer.head_dim)
    if values > mixer.head_dim:
        raise ValueError(f"v_channels {values} must be at most {mixer.head_dim}, the keys' size")
    layout = text(raw, "rotary_layout", default=FIRST) or FIRST
    if layout not in (FIRST, LAST):
        raise ValueError(f"rotary_layout {shown(layout)} is not one of {FIRST}, {LAST}")
    for field in ("bias", "attention_bias", "qkv_bias"):
        if boolean(raw, field, False):
            raise ValueError(f"{field} True is not supported with this architecture")
    assert mixer.rope is not None
    mixer = replace(
        mixer,
        rope=replace(mixer.rope, width=rotary, layout=layout),
        key_norm=norm_of(raw),
        qkv_fused=True,
        value_dim=values,
        sinks=count(raw, "param_sink_number", most=MOST_SINKS),
        sink_values=boolean(raw, "param_sink_with_value", False),
    )
    router = Router(
        "sigmoid",
        integer(raw, "num_experts_per_tok"),
        normed=boolean(raw, "norm_topk_prob", True),
        scale=number(raw, "routed_scaling_factor", 1.0, most=MOST_SCALE),
        choice_bias=boolean(raw, "router_enable_expert_bias", False),
    )
    shape = _decoder(raw, mixer, router)
    sandwich = boolean(raw, "sandwich_norm", False)
    shape = shape.each(lambda n, x: replace(x, norms=replace(x.norms, after=sandwich)))
    mtp = None
    if count(raw, "num_mtp_layers"):
        layer = next((x for x in shape.layers if x.routed), shape.layers[-1])
        mtp = MtpLayer.numbered(layer, len(shape.layers), shape.norm)
    return replace(shape, mtp=mtp, drafts_inside=True, renames=RENAMES)


MOGE = Family(("PanguProMoEForCausalLM",), _moge)
V2 = Family(("PanguProMoEV2ForCausalLM",), _v2)
