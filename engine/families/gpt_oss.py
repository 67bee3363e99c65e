"""gpt-oss: a learned logit per head that takes a share of attention, windows in every second layer, and in
all layers the best of many experts, with biases and a clamped SwiGLU."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    activation_of,
    attending,
    decoder,
    layer_count,
    rope_fields,
    window_of,
    windows_by_type,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    GGUF_EXPERTS,
    GGUF_LAYER,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    GgufNames,
    boolean,
    integer,
    number,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.ops import ClampedSwiglu
from fastslow.engine.model.shape import DecoderShape, Layer

THETA = 150000.0
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read(raw: ConfigJson) -> DecoderShape:
    """Softmax over the logits of the chosen experts. Missing fields have the values of transformers."""
    if not rope_fields(raw):
        raw = raw.changed(rope_scaling=YARN)
    mixer = attending(raw, theta=THETA, head_dim=64)
    if activation_of(raw) != "silu":
        raise ValueError(
            f"hidden_act {shown(raw.get('hidden_act'))} is not supported, only 'silu' is"
        )
    usual = [FULL if n % 2 else SLIDING for n in range(layer_count(raw))]
    windows = windows_by_type(raw, window_of(raw, 128), usual)
    bias = boolean(raw, "attention_bias", True)
    top_k = integer(raw, "num_experts_per_tok", 4)
    if integer(raw, "experts_per_token", top_k) != top_k:
        raise ValueError(f"experts_per_token must be num_experts_per_tok {top_k}")
    experts = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    swiglu = ClampedSwiglu(number(raw, "swiglu_alpha", 1.702), number(raw, "swiglu_limit", 7.0))
    width = integer(raw, "intermediate_size", most=MOST_WIDTH)
    ffn = RoutedExperts(
        Router("chosen", top_k, bias=True),
        integer(raw, experts, most=MOST_EXPERTS),
        DenseMlp(width, swiglu, bias=True),
    )
    mixer = replace(mixer, qkv_bias=bias, out_bias=bias, sink_logits=True)

    def one(n: int, layer: Layer) -> Layer:
        return replace(layer, mixer=replace(mixer, window=windows[n]))

    shape = decoder(raw, Layer(mixer, ffn)).each(one)
    return replace(shape, fused=("experts in turn",), renames=((".mlp.router.", ".mlp.gate."),))


FAMILY = Family(
    ("GptOssForCausalLM",),
    read,
    GgufNames(
        "gpt-oss",
        {
            **{name: place for name, place in GGUF_LAYER.items() if not name.startswith("ffn_")},
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
            **GGUF_EXPERTS,
        },
        fields={
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
            "attention.sliding_window": "sliding_window",
        },
        given={"rope_scaling.truncate": False},
    ),
)
