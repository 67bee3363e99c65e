"""Qwen2 and 2.5 (biases, windows in late layers), Qwen3 (head norms), Qwen3 MoE (the best of many experts)."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    attending,
    decoder,
    feeding,
    mixture,
    norm_of,
    sparse_layers,
    window_of,
    windows_by_type,
    with_dense,
)
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import (
    GGUF_EXPERT_FIELDS,
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    Family,
    GgufNames,
)
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer


def _qwen2(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k and v are always there."""
    return _late_windows(raw, replace(attending(raw), qkv_bias=True))


def _late_windows(raw: ConfigJson, mixer: GroupedAttention) -> DecoderShape:
    """By `layer_types`, else from `max_window_layers` on; defaults as in transformers."""
    window = window_of(raw, 4096, switch=raw.boolean("use_sliding_window"))
    first = raw.count("max_window_layers", 28)
    usual = [SLIDING if window and n >= first else FULL for n in range(raw.layers)]
    each = (replace(mixer, window=some) for some in windows_by_type(raw, window, usual))
    return decoder(raw, Layer(mixer, feeding(raw))).mixing(each)


def _qwen3(raw: ConfigJson) -> DecoderShape:
    """Heads have 128 dims where `head_dim` is missing."""
    return _late_windows(raw, _normed(raw))


def _normed(raw: ConfigJson) -> GroupedAttention:
    if not raw.boolean("use_qk_norm", True):  # some configs say it
        raise ValueError("use_qk_norm false is not known here")
    return attending(raw, head_dim=128, bias="attention_bias", head_norm=norm_of(raw))


def _qwen3_moe(raw: ConfigJson) -> DecoderShape:
    """Softmax over all experts, of which the largest run. A window, where one is used, is every layer's."""
    layers, switch = raw.layers, raw.boolean("use_sliding_window")
    if switch and raw.count("max_window_layers") not in (0, layers):
        raise ValueError("max_window_layers must be 0 where use_sliding_window is true")
    mixer = replace(_normed(raw), window=window_of(raw, 4096, switch=switch))
    experts = "num_experts" if "num_experts" in raw else "num_local_experts"
    chosen, normed = raw.integer("num_experts_per_tok"), raw.boolean("norm_topk_prob")
    ffn = mixture(raw, Router("softmax", chosen, normed=normed), experts)
    dense = set(range(layers)) - sparse_layers(raw)
    return with_dense(raw, decoder(raw, Layer(mixer, ffn)), dense)


def _mimo(raw: ConfigJson) -> DecoderShape:
    """Qwen2 with a layer that drafts; it reads the hidden state first."""
    if not raw.boolean("attention_bias", True):
        raise ValueError("attention_bias false is not supported")
    shape, p = _qwen2(raw), "model.mtp_layers.0"
    token, hidden, entry, last = (
        f"{p}.{name}"
        for name in ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm")
    )
    layer, kind = shape.layers[0], shape.norm
    mtp = MtpLayer(layer, p, token, hidden, entry, last, kind, embedding_first=False)
    return replace(shape, mtp=mtp if raw.count("num_nextn_predict_layers", most=1) else None)


MIMO = Family(("MiMoForCausalLM",), _mimo)
QWEN2 = Family(("Qwen2ForCausalLM",), _qwen2, GgufNames("qwen2", GGUF_LAYER))
QWEN3 = Family(("Qwen3ForCausalLM",), _qwen3, GgufNames("qwen3", GGUF_LAYER | GGUF_HEAD_NORMS))
QWEN3_MOE = Family(
    ("Qwen3MoeForCausalLM",),
    _qwen3_moe,
    GgufNames(
        "qwen3moe",
        GGUF_LAYER | GGUF_HEAD_NORMS | GGUF_EXPERTS,
        fields=GGUF_EXPERT_FIELDS,
        given={"norm_topk_prob": True},
    ),
)
