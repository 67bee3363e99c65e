"""The dense decoders that differ from Llama in a field or two: Llama, Mistral, SmolLM3, openPangu Embedded."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import FULL, SLIDING, decoder, window_of, windows_by_type
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import GGUF_LAYER, ConfigJson, Family, GgufNames, boolean, integer
from fastslow.engine.model.shape import DecoderShape


def _llama(raw: ConfigJson) -> DecoderShape:
    """Biases of all four matrices of attention, or of all three of the MLP, where switched on."""
    bias = boolean(raw, "attention_bias", False)
    return replace(
        decoder(raw), qkv_bias=bias, out_bias=bias, mlp_bias=boolean(raw, "mlp_bias", False)
    )


def _mistral(raw: ConfigJson) -> DecoderShape:
    """All layers may see a window only: 4096 where `sliding_window` is missing, as in transformers; null is none."""
    shape, window = decoder(raw), window_of(raw, 4096)
    return replace(shape, windows=(window,) * shape.layers if window else ())


def _smollm3(raw: ConfigJson) -> DecoderShape:
    """Layers with a 0 in `no_rope_layers`, else each `no_rope_layer_interval`-th, do not rotate."""
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


def _embedded(raw: ConfigJson) -> DecoderShape:
    """Biases of q, k, v, o, unless `bias` is false. openPangu-R-7B-2512, another network, is refused by its fields."""
    bias = boolean(raw, "bias", True)
    return replace(decoder(raw), qkv_bias=bias, out_bias=bias)


LLAMA = Family(("LlamaForCausalLM",), _llama, GgufNames("llama", GGUF_LAYER, interleaved=True))
MISTRAL = Family(("MistralForCausalLM",), _mistral)  # GGUF files call it llama
SMOLLM3 = Family(
    ("SmolLM3ForCausalLM",), _smollm3, GgufNames("smollm3", GGUF_LAYER, interleaved=True)
)
EMBEDDED = Family(("PanguEmbeddedForCausalLM",), _embedded)
