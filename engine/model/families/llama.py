"""Llama and what has its layers: the plain decoder."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import decoder
from fastslow.engine.model.families.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.fields import boolean
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """Biases of all four matrices of attention, or of all three of the MLP, where switched on."""
    bias = boolean(raw, "attention_bias", False)
    return replace(
        decoder(raw), qkv_bias=bias, out_bias=bias, mlp_bias=boolean(raw, "mlp_bias", False)
    )


FAMILY = Family(("LlamaForCausalLM",), read, GgufNames("llama", GGUF_LAYER, interleaved=True))
