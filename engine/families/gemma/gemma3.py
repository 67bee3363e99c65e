"""Gemma 3: norms around sublayers that multiply by 1 + weight; windows and another RoPE in most layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastslow.engine.families.gemma.gguf import APPLIED, GEMMA3
from fastslow.engine.families.gemma.typed import given, of_type, shape_of, types_of
from fastslow.engine.families.reading import SLIDING, attending, feeding, norm_of, window_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer


def _read(raw: ConfigJson) -> DecoderShape:
    """Scores are divided by the root of `query_pre_attn_scalar`."""
    raw = given(raw, vocab_size=262208)
    if raw.boolean("use_bidirectional_attention"):
        raise ValueError(
            "use_bidirectional_attention true is not supported: a row sees no later one"
        )
    norm = RmsNorm(norm_of(raw).eps, offset=float(not raw.boolean(APPLIED)))
    scale, window = raw.number("query_pre_attn_scalar", 256.0) ** -0.5, window_of(raw, 4096)

    def layers() -> Iterator[Layer]:
        for kind in types_of(raw):
            mixer = attending(of_type(raw, kind, {}), bias="attention_bias", head_norm=norm)
            seen = window if kind == SLIDING else 0
            mixer = replace(mixer, window=seen, score_scale=scale)
            yield Layer(mixer, feeding(raw), LayerNorms(norm, after=True))

    return shape_of(raw, layers(), norm)


GEMMA_3 = Family(("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), _read, GEMMA3)
