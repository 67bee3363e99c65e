"""The dense decoders that differ from Llama in a field or two: Llama, Mistral, SmolLM3, openPangu Embedded."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    SLIDING,
    attending,
    decoder,
    feeding,
    window_of,
    windows_by_type,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.shape import DecoderShape, Layer


def _llama(raw: ConfigJson) -> DecoderShape:
    """Biases of all four matrices of attention, or of all three of the MLP, where switched on."""
    mlp = feeding(raw, bias=raw.boolean("mlp_bias"))
    return decoder(raw, Layer(attending(raw, bias="attention_bias"), mlp))


def _mistral(raw: ConfigJson) -> DecoderShape:
    """All layers may see a window only: 4096 where `sliding_window` is missing, as in transformers; null is none."""
    mixer = replace(attending(raw), window=window_of(raw, 4096))
    return decoder(raw, Layer(mixer, feeding(raw)))


def _smollm3(raw: ConfigJson) -> DecoderShape:
    """Layers with a 0 in `no_rope_layers`, else each `no_rope_layer_interval`-th, do not rotate."""
    layers, turns = raw.layers, raw.get("no_rope_layers")
    interval = raw.integer("no_rope_layer_interval", 4)
    if turns is None:
        turns = [int((n + 1) % interval != 0) for n in range(layers)]
    if not isinstance(turns, list) or len(turns) < layers or set(map(str, turns)) - {"0", "1"}:
        raise ValueError(
            f"no_rope_layers {shown(turns)} must be a list of 0 and 1 for each of {layers} layers"
        )
    window = window_of(raw, switch=raw.boolean("use_sliding_window"))
    usual = [FULL if turns[n] or not window else SLIDING for n in range(layers)]
    windows = windows_by_type(raw, window, usual)
    mixer = attending(raw, theta=2e6, bias="attention_bias")
    ropes = [mixer.rope if turn else None for turn in turns]
    each = (replace(mixer, rope=rope, window=window) for rope, window in zip(ropes, windows))
    ffn = feeding(raw, bias=raw.boolean("mlp_bias"))
    return decoder(raw, Layer(mixer, ffn), tied=True).mixing(each)


def _embedded(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k, v, o, unless `bias` is false. openPangu-R-7B-2512, another network, is refused by its fields."""
    return decoder(raw, Layer(attending(raw, bias="bias", biased=True), feeding(raw)))


LLAMA = Family(("LlamaForCausalLM",), _llama, GgufNames("llama", GGUF_LAYER, interleaved=True))
MISTRAL = Family(("MistralForCausalLM",), _mistral)  # GGUF files call it llama
SMOLLM3 = Family(
    ("SmolLM3ForCausalLM",), _smollm3, GgufNames("smollm3", GGUF_LAYER, interleaved=True)
)
EMBEDDED = Family(("PanguEmbeddedForCausalLM",), _embedded)
