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
    rope_fields,
    window_of,
    windows_by_type,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_EXPERTS, GGUF_LAYER_POST, Family, GgufNames
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
    mixer = attending(raw, theta=THETA, head_dim=64, bias="attention_bias", biased=True)
    if activation_of(raw) != "silu":
        raise ValueError(
            f"hidden_act {shown(raw.get('hidden_act'))} is not supported, only 'silu' is"
        )
    usual = [FULL if n % 2 else SLIDING for n in range(raw.layers)]
    windows = windows_by_type(raw, window_of(raw, 128), usual)
    top_k = raw.integer("num_experts_per_tok", 4)
    if raw.integer("experts_per_token", top_k) != top_k:
        raise ValueError(f"experts_per_token must be num_experts_per_tok {top_k}")
    experts = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    swiglu = ClampedSwiglu(raw.number("swiglu_alpha", 1.702), raw.number("swiglu_limit", 7.0))
    expert = DenseMlp(raw.width("intermediate_size"), swiglu, bias=True)
    ffn = RoutedExperts(Router("chosen", top_k, bias=True), raw.experts(experts), expert)
    each = (replace(mixer, window=window, sink_logits=True) for window in windows)
    shape = decoder(raw, Layer(mixer, ffn)).mixing(each)
    return replace(shape, fused=("experts in turn",), renames=((".mlp.router.", ".mlp.gate."),))


FAMILY = Family(
    ("GptOssForCausalLM",),
    read,
    GgufNames(
        "gpt-oss",
        {
            **{n: place for n, place in GGUF_LAYER_POST.items() if not n.startswith("ffn_")},
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
