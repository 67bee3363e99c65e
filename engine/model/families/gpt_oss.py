"""gpt-oss: a learned logit per head that takes a share of attention, windows in every second layer, and in
all layers the best of many experts, with biases and a clamped SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastslow.engine.model import mxfp4
from fastslow.engine.model.expected import Expected
from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import (
    FULL,
    SLIDING,
    decoder,
    window_of,
    windows_by_type,
)
from fastslow.engine.model.families.family import GGUF_EXPERTS, GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.fields import MOST_EXPERTS, MOST_WIDTH, boolean, integer, number
from fastslow.engine.model.fused import Fused
from fastslow.engine.model.rope_scaling import RopeScaling
from fastslow.engine.model.shape import ClampedSwiglu, DecoderShape, Router
from fastslow.engine.model.shard_rules import ATTENTION, EXPERT, MLP, ShardAxis, ShardRule

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
    shape = decoder(raw, theta=THETA, head_dim=64, dense=False)
    if not (raw.get("rope_scaling") or raw.get("rope_parameters")):
        shape = replace(shape, rope_scaling=RopeScaling.read(YARN, shape.max_positions))
    window = window_of(raw, 128)
    usual = [FULL if n % 2 else SLIDING for n in range(shape.layers)]
    bias = boolean(raw, "attention_bias", True)
    top_k = integer(raw, "num_experts_per_tok", 4)
    if integer(raw, "experts_per_token", top_k) != top_k:
        raise ValueError(f"experts_per_token must be num_experts_per_tok {top_k}")
    experts = "num_local_experts" if "num_local_experts" in raw else "num_experts"
    return replace(
        shape,
        qkv_bias=bias,
        out_bias=bias,
        windows=windows_by_type(raw, window, usual),
        sink_logits=True,
        experts=integer(raw, experts, most=MOST_EXPERTS),
        moe_intermediate_size=integer(raw, "intermediate_size", most=MOST_WIDTH),
        router=Router("chosen", top_k, bias=True),
        expert_bias=True,
        swiglu=ClampedSwiglu(number(raw, "swiglu_alpha", 1.702), number(raw, "swiglu_limit", 7.0)),
    )


def canonical(name: str) -> str:
    """Routers are called gates."""
    return name.replace(".mlp.router.", ".mlp.gate.")


def fused(shape: DecoderShape) -> Iterator[Fused]:
    """All experts of a layer in one tensor, gates and ups in turn: in floats [experts, in, out], or as
    MXFP4 [experts, out, in / 32, 16] with exponents; and their biases."""
    hidden, inner, experts = shape.hidden_size, shape.moe_intermediate_size, shape.experts
    for n in range(shape.layers):
        prefix = f"model.layers.{n}.mlp.experts"
        for stem, sides, inputs, outputs in (
            ("gate_up_proj", ("gate", "up"), hidden, 2 * inner),
            ("down_proj", ("down",), inner, hidden),
        ):
            weights, biases = (
                {
                    f"{prefix}.{e}.{side}_proj.{kind}": (e, slice(place, None, len(sides)))
                    for e in range(experts)
                    for place, side in enumerate(sides)
                }
                for kind in ("weight", "bias")
            )
            name = f"{prefix}.{stem}"
            blocks = (experts, outputs, inputs // mxfp4.BLOCK)
            yield Fused(
                {name: Expected(((experts, inputs, outputs),))},
                weights,
                lambda x, at: x[0][:, at].T,
            )
            yield Fused(
                {
                    f"{name}_blocks": Expected(((*blocks, 16),), ("U8",)),
                    f"{name}_scales": Expected((blocks,), ("U8",)),
                },
                weights,
                lambda x, at: mxfp4.dequantised(x[0][at], x[1][at]),
                lambda x, at: mxfp4.gguf_rows(x[0][at], x[1][at]),
            )
            yield Fused(
                {f"{name}_bias": Expected(((experts, outputs),))}, biases, lambda x, at: x[0][at]
            )


FAMILY = Family(
    ("GptOssForCausalLM",),
    read,
    GgufNames(
        "gpt-oss",
        {
            **{name: place for name, place in GGUF_LAYER.items() if not name.startswith("ffn_")},
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks": "self_attn.sinks",  # its ending .weight is GGUF's own
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
    (
        (ATTENTION + r"sinks", ShardRule(ShardAxis.HEADS, 0)),
        (MLP + r"gate\.bias", ShardRule(ShardAxis.NOBODY)),
        (EXPERT + r"(gate|up)_proj\.bias", ShardRule(ShardAxis.EXPERTS, 0)),
        (EXPERT + r"down_proj\.bias", ShardRule(ShardAxis.FIRST_OF_EXPERTS)),
    ),
    canonical=canonical,
    fused=fused,
    packings=("mxfp4",),
)
