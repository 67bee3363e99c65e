"""Qwen2 and 2.5 (biases, windows in late layers), Qwen3 (head norms), Qwen3 MoE (the best of many experts)."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    activation_of,
    attending,
    decoder,
    feeding,
    layer_count,
    norm_of,
    sparse_layers,
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
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer


def _qwen2(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k and v are always there."""
    return _late_windows(raw, replace(attending(raw), qkv_bias=True))


def _late_windows(raw: ConfigJson, mixer: GroupedAttention) -> DecoderShape:
    """By `layer_types`, else from `max_window_layers` on; defaults as in transformers."""
    layers, window = (
        layer_count(raw),
        window_of(raw, 4096, switch=boolean(raw, "use_sliding_window", False)),
    )
    first = 28 if raw.get("max_window_layers") is None else count(raw, "max_window_layers")
    usual = [SLIDING if window and n >= first else FULL for n in range(layers)]
    windows = windows_by_type(raw, window, usual)

    def one(n: int, layer: Layer) -> Layer:
        return replace(layer, mixer=replace(mixer, window=windows[n]))

    return decoder(raw, Layer(mixer, feeding(raw))).each(one)


def _qwen3(raw: ConfigJson) -> DecoderShape:
    """Heads have 128 dims where `head_dim` is missing."""
    return _late_windows(raw, _normed(raw))


def _normed(raw: ConfigJson) -> GroupedAttention:
    if not boolean(raw, "use_qk_norm", True):  # some configs say it
        raise ValueError("use_qk_norm false is not known here")
    bias, norm = boolean(raw, "attention_bias", False), norm_of(raw)
    mixer = attending(raw, head_dim=128)
    return replace(mixer, qkv_bias=bias, out_bias=bias, query_norm=norm, key_norm=norm)


def _qwen3_moe(raw: ConfigJson) -> DecoderShape:
    """Softmax over all experts, of which the largest run. A window, where one is used, is every layer's."""
    layers, sparse = layer_count(raw), sparse_layers(raw)
    switch = boolean(raw, "use_sliding_window", False)
    if switch and count(raw, "max_window_layers") not in (0, layers):
        raise ValueError("max_window_layers must be 0 where use_sliding_window is true")
    mixer = replace(_normed(raw), window=window_of(raw, 4096, switch=switch))
    experts = "num_experts" if "num_experts" in raw else "num_local_experts"
    router = Router(
        "softmax",
        integer(raw, "num_experts_per_tok"),
        normed=boolean(raw, "norm_topk_prob", False),
    )
    width = integer(raw, "moe_intermediate_size", most=MOST_WIDTH)
    expert = DenseMlp(width, activation_of(raw))
    routed = RoutedExperts(router, integer(raw, experts, most=MOST_EXPERTS), expert)
    dense = feeding(raw) if len(sparse) < layers else None

    def one(n: int, layer: Layer) -> Layer:
        return layer if n in sparse or dense is None else replace(layer, ffn=dense)

    return decoder(raw, Layer(mixer, routed)).each(one)


def _mimo(raw: ConfigJson) -> DecoderShape:
    """Qwen2 with a layer that drafts; it reads the hidden state first."""
    if not boolean(raw, "attention_bias", True):
        raise ValueError("attention_bias false is not supported")
    shape, p = _qwen2(raw), "model.mtp_layers.0"
    token, hidden, entry, last = (
        f"{p}.{name}"
        for name in ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
    )
    layer, kind = shape.layers[0], shape.norm
    mtp = MtpLayer(layer, p, token, hidden, entry, last, kind, embedding_first=False)
    return replace(shape, mtp=mtp if count(raw, "num_nextn_predict_layers", most=1) else None)


MIMO = Family(("MiMoForCausalLM",), _mimo)
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
