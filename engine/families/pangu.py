"""openPangu Pro MoE (72B): a shared expert, and routed ones in groups of which each runs one (MoGE: Tang et al., arXiv
2505.21411). And V2 (openPangu-R-72B): learned sinks, norms of keys and after sublayers, partial rotation, one group of
experts, a layer that drafts."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    attending,
    decoder,
    dense_layers,
    mixture,
    norm_of,
    with_dense,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family
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
    ffn = mixture(raw, router, shared=raw.width("shared_expert_intermediate_size"))
    return with_dense(raw, decoder(raw, Layer(mixer, ffn)), dense_layers(raw))


def _moge(raw: ConfigJson) -> DecoderShape:
    """`num_experts_per_tok` is the number of groups."""
    router = GroupRouter(raw.integer("num_experts_per_tok"))
    return _decoder(raw, attending(raw, bias="bias", biased=True), router)


def _v2(raw: ConfigJson) -> DecoderShape:
    """`qk_rope_dim` of a head's dims are rotated, and its values have `v_channels`."""
    head_dim = None
    if raw.get("qk_nope_dim") is not None:
        head_dim = raw.integer("qk_nope_dim") + raw.integer("qk_rope_dim")
    mixer = attending(raw, head_dim=head_dim)
    rotary = raw.integer("qk_rope_dim", default=mixer.head_dim)
    if rotary % 2 or rotary > mixer.head_dim:
        raise ValueError(f"qk_rope_dim {rotary} must be even and at most {mixer.head_dim}")
    values = raw.integer("v_channels", default=mixer.head_dim)
    if values > mixer.head_dim:
        raise ValueError(f"v_channels {values} must be at most {mixer.head_dim}, the keys' size")
    layout = raw.text("rotary_layout", default=FIRST) or FIRST
    if layout not in (FIRST, LAST):
        raise ValueError(f"rotary_layout {shown(layout)} is not one of {FIRST}, {LAST}")
    for field in ("bias", "attention_bias", "qkv_bias"):
        if raw.boolean(field):
            raise ValueError(f"{field} True is not supported with this architecture")
    assert mixer.rope is not None
    mixer = replace(
        mixer,
        rope=replace(mixer.rope, width=rotary, layout=layout),
        key_norm=norm_of(raw),
        qkv_fused=True,
        value_dim=values,
        sinks=raw.count("param_sink_number", most=MOST_SINKS),
        sink_values=raw.boolean("param_sink_with_value"),
    )
    router = Router(
        "sigmoid",
        raw.integer("num_experts_per_tok"),
        normed=raw.boolean("norm_topk_prob", True),
        scale=raw.number("routed_scaling_factor", 1.0, most=MOST_SCALE),
        choice_bias=raw.boolean("router_enable_expert_bias"),
    )
    shape = _decoder(raw, mixer, router)
    sandwich = raw.boolean("sandwich_norm")
    shape = shape.each(lambda n, x: replace(x, norms=replace(x.norms, after=sandwich)))
    mtp = None
    if raw.count("num_mtp_layers"):
        layer = next((x for x in shape.layers if x.routed), shape.layers[-1])
        mtp = MtpLayer.numbered(layer, len(shape.layers), shape.norm)
    return replace(shape, mtp=mtp, drafts_inside=True, renames=RENAMES)


MOGE = Family(("PanguProMoEForCausalLM",), _moge)
V2 = Family(("PanguProMoEV2ForCausalLM",), _v2)
