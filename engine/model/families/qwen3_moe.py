"""Qwen3 MoE: the attention of Qwen3, and in some or all layers the best of many experts."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import dense_layers, window_of
from fastslow.engine.model.families.family import (
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    Family,
    GgufNames,
)
from fastslow.engine.model.families.qwen3 import normed
from fastslow.engine.model.fields import MOST_EXPERTS, MOST_WIDTH, boolean, count, integer
from fastslow.engine.model.shape import DecoderShape, Router
from fastslow.engine.model.shard_rules import HEAD_NORM_CUTS


def read(raw: ConfigJson) -> DecoderShape:
    """Softmax over all experts, of which the largest run. A window, where one is used, is every layer's."""
    layers = integer(raw, "num_hidden_layers")
    step = integer(raw, "decoder_sparse_step", 1)
    sparse = {n for n in range(layers) if not (n + 1) % step} - dense_layers(raw)
    dense = frozenset(range(layers)) - sparse
    if any(n >= layers for n in dense_layers(raw)):
        dense |= dense_layers(raw)  # refused by name where the shape is checked
    shape = normed(raw, dense=bool(dense))
    switch = boolean(raw, "use_sliding_window", False)
    if switch and count(raw, "max_window_layers") not in (0, layers):
        raise ValueError("max_window_layers must be 0 where use_sliding_window is true")
    window = window_of(raw, 4096, switch=switch)
    experts = "num_experts" if "num_experts" in raw else "num_local_experts"
    return replace(
        shape,
        windows=(window,) * layers if window else (),
        experts=integer(raw, experts, most=MOST_EXPERTS),
        moe_intermediate_size=integer(raw, "moe_intermediate_size", most=MOST_WIDTH),
        mlp_only_layers=dense,
        router=Router(
            "softmax",
            integer(raw, "num_experts_per_tok"),
            normed=boolean(raw, "norm_topk_prob", False),
        ),
    )


FAMILY = Family(
    ("Qwen3MoeForCausalLM",),
    read,
    GgufNames(
        "qwen3moe",
        GGUF_LAYER | GGUF_HEAD_NORMS | GGUF_EXPERTS,
        fields={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        given={"norm_topk_prob": True},
    ),
    HEAD_NORM_CUTS,
)
