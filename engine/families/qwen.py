"""Qwen2 and 2.5 (biases, windows in late layers), Qwen3 (head norms), Qwen3 MoE (the best of many experts)."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    decoder,
    dense_layers,
    window_of,
    windows_by_type,
)
from fastslow.engine.model.family import (
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    GgufNames,
    boolean,
    count,
    integer,
)
from fastslow.engine.model.shape import DecoderShape, Router


def _qwen2(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k and v are always there."""
    shape = decoder(raw)
    return replace(shape, qkv_bias=True, windows=_late_windows(raw, shape.layers))


def _late_windows(raw: ConfigJson, layers: int) -> tuple[int, ...]:
    """By `layer_types`, else from `max_window_layers` on; defaults as in transformers."""
    window = window_of(raw, 4096, switch=boolean(raw, "use_sliding_window", False))
    first = 28 if raw.get("max_window_layers") is None else count(raw, "max_window_layers")
    usual = [SLIDING if window and n >= first else FULL for n in range(layers)]
    return windows_by_type(raw, window, usual)


def _qwen3(raw: ConfigJson) -> DecoderShape:
    """Heads have 128 dims where `head_dim` is missing."""
    shape = _normed(raw, dense=True)
    return replace(shape, windows=_late_windows(raw, shape.layers))


def _normed(raw: ConfigJson, dense: bool) -> DecoderShape:
    if not boolean(raw, "use_qk_norm", True):  # some configs say it
        raise ValueError("use_qk_norm false is not known here")
    bias = boolean(raw, "attention_bias", False)
    shape = decoder(raw, head_dim=128, dense=dense)
    return replace(shape, qkv_bias=bias, out_bias=bias, query_norm=True, key_norm=True)


def _qwen3_moe(raw: ConfigJson) -> DecoderShape:
    """Softmax over all experts, of which the largest run. A window, where one is used, is every layer's."""
    layers = integer(raw, "num_hidden_layers")
    step = integer(raw, "decoder_sparse_step", 1)
    sparse = {n for n in range(layers) if not (n + 1) % step} - dense_layers(raw)
    dense = frozenset(range(layers)) - sparse
    if any(n >= layers for n in dense_layers(raw)):
        dense |= dense_layers(raw)  # refused by name where the shape is checked
    shape = _normed(raw, dense=bool(dense))
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


QWEN2 = Family(("Qwen2ForCausalLM",), _qwen2, GgufNames("qwen2", GGUF_LAYER))
QWEN3 = Family(("Qwen3ForCausalLM",), _qwen3, GgufNames("qwen3", GGUF_LAYER | GGUF_HEAD_NORMS))
QWEN3_MOE = Family(
    ("Qwen3MoeForCausalLM",),
    _qwen3_moe,
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
)
