"""Qwen2 and 2.5: biases of q, k and v, and windows in the layers from some number on."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import (
    FULL,
    SLIDING,
    decoder,
    window_of,
    windows_by_type,
)
from fastslow.engine.model.families.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.fields import boolean, count
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """Biases are always there."""
    shape = decoder(raw)
    return replace(shape, qkv_bias=True, windows=late_windows(raw, shape.layers))


def late_windows(raw: ConfigJson, layers: int) -> tuple[int, ...]:
    """Windows where `use_sliding_window` is true: by `layer_types`, else from `max_window_layers` on,
    which is 28 where it is missing, as the window is 4096, both as in transformers."""
    window = window_of(raw, 4096, switch=boolean(raw, "use_sliding_window", False))
    first = 28 if raw.get("max_window_layers") is None else count(raw, "max_window_layers")
    usual = [SLIDING if window and n >= first else FULL for n in range(layers)]
    return windows_by_type(raw, window, usual)


FAMILY = Family(("Qwen2ForCausalLM",), read, GgufNames("qwen2", GGUF_LAYER))
