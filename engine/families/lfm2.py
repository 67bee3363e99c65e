"""LFM2 and 2.5: gated short convolutions, and attention with head norms in some layers; LFM2 MoE with experts behind a
sigmoid router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import (
    FULL,
    NUMBERED,
    attending,
    decoder,
    layer_types,
    norm_of,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import (
    GGUF_EXPERT_FIELDS,
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    Family,
    GgufNames,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.short_conv import ShortConv
from fastslow.engine.model.parts import FeedForward
from fastslow.engine.model.shape import DecoderShape, Layer

CONV = "conv"
GATE, SIGMOID = "expert_gating_func", 2  # in headers of GGUF files
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
    *NUMBERED,
)


def _dense(raw: ConfigJson) -> DecoderShape:
    """MLPs of two thirds of the width that is said, unless `block_auto_adjust_ff_dim` is false."""
    name = "intermediate_size" if raw.get("block_ff_dim") is None else "block_ff_dim"
    width = raw.width(name)
    adjusts = raw.boolean("block_auto_adjust_ff_dim", True)
    factor, unit = raw.get("block_ffn_dim_multiplier", 1.0), raw.integer("block_multiple_of", 256)
    if adjusts:
        width = int(2 * width / 3)
        if factor is not None:
            width = int(raw.number("block_ffn_dim_multiplier", 1.0) * width)
            width = unit * -(-width // unit)
    return _mixed(raw, DenseMlp(width))


def _moe(raw: ConfigJson) -> DecoderShape:
    """The first `num_dense_layers` are dense."""
    router = Router(
        "sigmoid",
        raw.integer("num_experts_per_tok", 4),
        normed=raw.boolean("norm_topk_prob", True),
        scale=raw.number("routed_scaling_factor", 1.0),
        choice_bias=raw.boolean("use_expert_bias", True),
        weights_eps=WEIGHTS_EPS,
    )
    expert = DenseMlp(raw.width("moe_intermediate_size"))
    routed = RoutedExperts(router, raw.experts("num_experts"), expert)
    dense = DenseMlp(raw.width("intermediate_size"))
    return _mixed(raw, *[dense] * raw.count("num_dense_layers", 2), routed)


def _mixed(raw: ConfigJson, *ffns: FeedForward) -> DecoderShape:
    """A decoder with these in its first layers; the last of them is that of all others, too. Without `layer_types` the
    layers `full_attn_idxs` have attention, and without these all."""
    norm = norm_of(raw, 1e-5, "norm_eps")
    for name, other in SAME.items():
        said, usual = raw.get(name), raw.get(other)
        if None not in (said, usual) and said != usual:
            raise ValueError(f"{name} {shown(said)} must be {other} {shown(usual)}")
    for name in ("block_use_swiglu", "use_pos_enc"):
        if not raw.boolean(name, True):
            raise ValueError(f"{name} false is not supported")
    attention = attending(raw, theta=1e6, head_norm=norm)
    kernel, bias = raw.integer("conv_L_cache", 3), raw.boolean("conv_bias")
    conv = ShortConv(raw.width("hidden_size"), kernel, bias)
    full, every = raw.integers("full_attn_idxs"), raw.get("full_attn_idxs") is None
    usual = [FULL if every or n in full else CONV for n in range(raw.layers)]
    types, last = layer_types(raw, (FULL, CONV), usual), len(ffns) - 1

    def one(n: int, layer: Layer) -> Layer:
        mixer = attention if types[n] == FULL else conv
        return replace(layer, mixer=mixer, ffn=ffns[min(n, last)])

    tied = raw.boolean("tie_embedding", raw.boolean("tie_word_embeddings", True))
    shape = decoder(raw, Layer(attention, ffns[last]), norm=norm).each(one)
    return replace(shape, tie_word_embeddings=tied, renames=RENAMES)


def _header(raw: dict[str, Any]) -> None:
    """KV heads of each layer are 0 where it has a convolution; MLPs have the width that the file says."""
    heads = raw.get("num_key_value_heads")
    if isinstance(heads, list):
        some = sorted({*heads} - {0})
        if len(some) > 1:
            raise ValueError(
                f"attention.head_count_kv {shown(heads)} must have one number besides 0"
            )
        raw["layer_types"] = [FULL if n else CONV for n in heads]
        raw["num_key_value_heads"] = some[0] if some else None
    if (gate := raw.pop(GATE, SIGMOID)) != SIGMOID:
        raise ValueError(f"{GATE} {shown(gate)} is not supported, only {SIGMOID}, sigmoid, is")


NAMES = GgufNames(
    "lfm2",
    GGUF_LAYER
    | GGUF_HEAD_NORMS
    | {f"shortconv.{x}": f"conv.{x}" for x in ("conv", "in_proj", "out_proj")},
    fields={"attention.layer_norm_rms_epsilon": "norm_eps", "shortconv.l_cache": "conv_L_cache"},
    given={"block_auto_adjust_ff_dim": False},
    finish=_header,
    axes={"shortconv.conv": 1},
    top={"token_embd_norm": "model.norm"},
)
MOE_NAMES = replace(
    NAMES,
    architecture="lfm2moe",
    layer={
        **NAMES.layer,
        **GGUF_EXPERTS,
        "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    },
    fields={
        **NAMES.fields,
        **GGUF_EXPERT_FIELDS,
        "leading_dense_block_count": "num_dense_layers",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob",
        GATE: GATE,
    },
    given={},
)
LFM2 = Family(("Lfm2ForCausalLM",), _dense, NAMES)
LFM2_MOE = Family(("Lfm2MoeForCausalLM",), _moe, MOE_NAMES)
