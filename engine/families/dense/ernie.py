"""ERNIE 4.5 without experts: dims 2i and 2i + 1 of a head rotate together."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import attending, decoder, feeding, norm_of
from fastslow.engine.model.family import GGUF_LAYER, ConfigJson, Family, GgufNames, boolean, text
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer

LAYOUT = "rotary_layout"  # of a file whose rows of queries and keys are read in another order


def paired(raw: ConfigJson) -> GroupedAttention:
    """Attention whose heads rotate so, with 128 dims where `head_dim` is missing, and not null."""
    mixer = attending(raw, theta=500000.0, head_dim=None if "head_dim" in raw else 128)
    bias, layout = boolean(raw, "use_bias", False), text(raw, LAYOUT, "interleaved-first")
    assert mixer.rope is not None and layout is not None
    rope = replace(mixer.rope, layout=layout)
    return replace(mixer, rope=rope, qkv_bias=bias, out_bias=bias)


def _ernie(raw: ConfigJson) -> DecoderShape:
    """Biases of all matrices, where `use_bias` switches them on."""
    ffn = feeding(raw, bias=boolean(raw, "use_bias", False))
    return decoder(raw, Layer(paired(raw), ffn), norm=norm_of(raw, 1e-5), tied=True)


ERNIE4_5 = Family(
    ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    _ernie,
    GgufNames("ernie4_5", GGUF_LAYER, interleaved=True, given={LAYOUT: "halves-first"}),
)
