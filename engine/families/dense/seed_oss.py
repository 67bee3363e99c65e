"""Seed-OSS: biases of queries, keys and values, and of each other matrix where its own field says so."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import attending, decoder, feeding
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER_POST, Family, GgufNames
from fastslow.engine.model.shape import DecoderShape, Layer


def _seed_oss(raw: ConfigJson) -> DecoderShape:
    mixer = replace(
        attending(raw, head_dim=128),
        qkv_bias=raw.boolean("attention_bias", True),
        out_bias=raw.boolean("attention_out_bias"),
    )
    return decoder(raw, Layer(mixer, feeding(raw, bias=raw.boolean("mlp_bias"))))


SEED_OSS = Family(
    ("SeedOssForCausalLM",),
    _seed_oss,
    GgufNames("seed_oss", GGUF_LAYER_POST),
)
