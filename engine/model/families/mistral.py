"""Mistral: Llama whose layers may all see a window only. GGUF files call it llama."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import decoder, window_of
from fastslow.engine.model.families.family import Family
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """Where `sliding_window` is missing it is 4096, as in transformers; null is none."""
    shape, window = decoder(raw), window_of(raw, 4096)
    return replace(shape, windows=(window,) * shape.layers if window else ())


FAMILY = Family(("MistralForCausalLM",), read)
