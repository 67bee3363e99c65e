"""Seed-OSS: biases of queries, keys and values, and of each other matrix where its own field says so."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import attending, decoder, feeding
from fastslow.engine.model.family import GGUF_LAYER, ConfigJson, Family, GgufNames, boolean
from fastslow.engine.model.shape import DecoderShape, Layer


def _seed_oss(raw: ConfigJson) -> DecoderShape:
    mixer = replace(
        attending(raw, head_dim=128),
        qkv_bias=boolean(raw, "attention_bias", True),
        out_bias=boolean(raw, "attention_out_bias", False),
    )
    return decoder(raw, Layer(mixer, feeding(raw, bias=boolean(raw, "mlp_bias", False))))


SEED_OSS = Family(
    ("SeedOssForCausalLM",),
    _seed_oss,
    GgufNames(
        "seed_oss",
        {n: p for n, p in GGUF_LAYER.items() if n != "ffn_norm"}
        | {"post_attention_norm": "post_attention_layernorm"},
    ),
)
