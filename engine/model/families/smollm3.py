"""SmolLM3: Llama in which some layers do not rotate."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.host.files import shown
from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import (
    FULL,
    SLIDING,
    decoder,
    window_of,
    windows_by_type,
)
from fastslow.engine.model.families.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.fields import boolean, integer
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """`no_rope_layers` has a 0 for every layer that does not rotate; where it is missing, each
    `no_rope_layer_interval`-th does not. Windows, where used, are those layers'."""
    shape = decoder(raw, theta=2e6, tied=True)
    turns = raw.get("no_rope_layers")
    interval = integer(raw, "no_rope_layer_interval", 4)
    if turns is None:
        turns = [int((n + 1) % interval != 0) for n in range(shape.layers)]
    if (
        not isinstance(turns, list)
        or len(turns) < shape.layers
        or set(map(str, turns)) - {"0", "1"}
    ):
        raise ValueError(
            f"no_rope_layers {shown(turns)} must be a list of 0 and 1 for each of {shape.layers} layers"
        )
    still = frozenset(n for n in range(shape.layers) if not turns[n])
    window = window_of(raw, switch=boolean(raw, "use_sliding_window", False))
    usual = [SLIDING if window and n in still else FULL for n in range(shape.layers)]
    bias = boolean(raw, "attention_bias", False)
    return replace(
        shape,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=boolean(raw, "mlp_bias", False),
        unrotated=still,
        windows=windows_by_type(raw, window, usual),
    )


FAMILY = Family(("SmolLM3ForCausalLM",), read, GgufNames("smollm3", GGUF_LAYER, interleaved=True))
