"""openPangu Embedded 1B and 7B V1.1: Llama with biases of attention. openPangu-R-7B-2512 has the same
architecture's name in config.json and is another network: its fields are refused."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import decoder
from fastslow.engine.model.families.family import Family
from fastslow.engine.model.fields import boolean
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k, v and o, unless `bias` is false."""
    bias = boolean(raw, "bias", True)
    return replace(decoder(raw), qkv_bias=bias, out_bias=bias)


FAMILY = Family(("PanguEmbeddedForCausalLM",), read)
