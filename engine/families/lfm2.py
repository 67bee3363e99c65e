"""LFM2 and 2.5: gated short convolutions, and attention with head norms in some layers; LFM2 MoE with experts behind a
sigmoid router."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import FULL, attending, decoder, layer_count
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    LEAST_EPS,
    MOST_EPS,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    boolean,
    count,
    integer,
    integers,
    number,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.model.parts import FeedForward
from fastslow.engine.model.shape import DecoderShape, Layer

CONV = "conv"
WEIGHTS_EPS = 1e-6  # beside the sum that the weights of experts are divided by
SAME = {"conv_dim": "hidden_size", "conv_dim_out": "hidden_size", "block_dim": "hidden_size"}
SAME |= {"num_heads": "num_attention_heads", "block_norm_eps": "norm_eps", "theta": "rope_theta"}
RENAMES = (
    ("model.embedding_norm.", "model.norm."),
    (".operator_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".self_attn.out_proj.", ".self_attn.o_proj."),
    (".self_attn.q_layernorm.", ".self_attn.q_norm."),
    (".self_attn.k_layernorm.", ".self_attn.k_norm."),
    (".feed_forward.expert_bias", ".mlp.gate.e_score_correction_bias"),
    (".feed_forward.", ".mlp."),
    (".w1.", ".gate_proj."),
    (".w3.", ".up_proj."),
    (".w2.", ".down_proj."),
)


def _dense(raw: ConfigJson) -> DecoderShape:
    """MLPs of two thirds of the width that is said, unless `block_auto_adjust_ff_dim` is false."""
    name = "intermediate_size" if raw.get("block_ff_dim") is None else "block_ff_dim"
    width = integer(raw, name, most=MOST_WIDTH)
    adjusts = boolean(raw, "block_auto_adjust_ff_dim", True)
    factor, unit = raw.get("block_ffn_dim_multiplier", 1.0), integer(raw, "block_multiple_of", 256)
    if adjusts:
        width = int(2 * width / 3)
        if factor is not None:
            width = int(number(raw, "block_ffn_dim_multiplier", 1.0) * width)
            width = unit * -(-width // unit)
    return _mixed(raw, DenseMlp(width))


def _moe(raw: ConfigJson) -> DecoderShape:
    """The first `num_dense_layers` are dense."""
    router = Router(
        "sigmoid",
        integer(raw, "num_experts_per_tok", 4),
        normed=boolean(raw, "norm_topk_prob", True),
        scale=number(raw, "routed_scaling_factor", 1.0),
        choice_bias=boolean(raw, "use_expert_bias", True),
        weights_eps=WEIGHTS_EPS,
    )
    expert = DenseMlp(integer(raw, "moe_intermediate_size", most=MOST_WIDTH))
    routed = RoutedExperts(router, integer(raw, "num_experts", most=MOST_EXPERTS), expert)
    dense = DenseMlp(integer(raw, "intermediate_size", most=MOST_WIDTH))
    plain = 2 if raw.get("num_dense_layers") is None else count(raw, "num_dense_layers")
    return _mixed(raw, *[dense] * plain, routed)


def _mixed(raw: ConfigJson, *ffns: FeedForward) -> DecoderShape:
    """A decoder with these in its first layers; the last of them is that of all others, too."""
    norm = RmsNorm(number(raw, "norm_eps", 1e-5, LEAST_EPS, MOST_EPS))
    for name, other in SAME.items():
        said, usual = raw.get(name), raw.get(other)
        if None not in (said, usual) and said != usual:
            raise ValueError(f"{name} {shown(said)} must be {other} {shown(usual)}")
    for name in ("block_use_swiglu", "use_pos_enc"):
        if not boolean(raw, name, True):
            raise ValueError(f"{name} false is not supported")
    attention = replace(attending(raw, theta=1e6), query_norm=norm, key_norm=norm)
    kernel, bias = integer(raw, "conv_L_cache", 3), boolean(raw, "conv_bias", False)
    conv = ShortConv(integer(raw, "hidden_size", most=MOST_WIDTH), kernel, bias)
    types, last = _types(raw), len(ffns) - 1

    def one(n: int, layer: Layer) -> Layer:
        mixer = attention if types[n] == FULL else conv
        return replace(layer, mixer=mixer, ffn=ffns[min(n, last)])

    tied = boolean(raw, "tie_embedding", boolean(raw, "tie_word_embeddings", True))
    shape = decoder(raw, Layer(attention, ffns[last]), norm=norm).each(one)
    return replace(shape, tie_word_embeddings=tied, renames=RENAMES)


def _types(raw: ConfigJson) -> list[str]:
    """`layer_types`, else attention in the layers `full_attn_idxs`, else in all."""
    layers, types = layer_count(raw), raw.get("layer_types")
    full = integers(raw, "full_attn_idxs")
    if types is None:
        every = raw.get("full_attn_idxs") is None
        return [FULL if every or n in full else CONV for n in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise ValueError(f"layer_types {shown(types)} must be a list of {layers} types")
    for kind in types:
        if kind not in (FULL, CONV):
            raise ValueError(f"layer_types has {shown(kind)}, which is not one of {FULL}, {CONV}")
    return types


LFM2 = Family(("Lfm2ForCausalLM",), _dense)
LFM2_MOE = Family(("Lfm2MoeForCausalLM",), _moe)
