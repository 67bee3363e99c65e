"""ERNIE 4.5 without experts: dims 2i and 2i + 1 of a head rotate together."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import attending, decoder, feeding, norm_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer

LAYOUT = "rotary_layout"  # of a file whose rows of queries and keys are read in another order


def paired(raw: ConfigJson) -> GroupedAttention:
    """Attention whose heads rotate so, with 128 dims where `head_dim` is missing, and not null."""
    usual = None if "head_dim" in raw else 128
    mixer = attending(raw, theta=500000.0, head_dim=usual, bias="use_bias")
    layout = raw.text(LAYOUT, "interleaved-first")
    assert mixer.rope is not None and layout is not None
    return replace(mixer, rope=replace(mixer.rope, layout=layout))


def _ernie(raw: ConfigJson) -> DecoderShape:
    """Biases of all matrices, where `use_bias` switches them on."""
    ffn = feeding(raw, bias=raw.boolean("use_bias"))
    return decoder(raw, Layer(paired(raw), ffn), norm=norm_of(raw, 1e-5), tied=True)


ERNIE4_5 = Family(
    ("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    _ernie,
    GgufNames("ernie4_5", GGUF_LAYER, interleaved=True, given={LAYOUT: "halves-first"}),
)
