"""Gemma 3: norms around sublayers that multiply by 1 + weight; windows and another RoPE in most layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastslow.engine.families.gemma.typed import given, of_type, shape_of, types_of
from fastslow.engine.families.reading import FULL, SLIDING, attending, feeding, norm_of, window_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER_AROUND, Family, GgufNames
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer

# Fields that GGUF files stand for, and no config.json has.
APPLIED = "weights_applied"  # norms have the one that checkpoints leave out
PATTERN = "sliding_window_pattern"
# Layers of the one Gemma 3 whose scores are divided by the root of hidden_size / heads.
LARGEST = 62


def by_type(raw: dict[str, Any]) -> None:
    """Layer types of a GGUF file, which marks the layers that see a window."""
    marks = raw.get(PATTERN)
    if isinstance(marks, list):
        raw["layer_types"] = [SLIDING if mark else FULL for mark in raw.pop(PATTERN)]


def _from_gguf(raw: dict[str, Any]) -> None:
    by_type(raw)
    said, scale = ConfigJson(raw), raw.get("head_dim", 256)
    if said.layers == LARGEST:
        scale = said.width("hidden_size") // said.heads("num_attention_heads")
    raw["query_pre_attn_scalar"] = scale
    if "sliding_window" not in raw:
        raw[PATTERN] = 1


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


GEMMA3 = GgufNames(
    "gemma3",
    GGUF_LAYER_AROUND | GGUF_HEAD_NORMS,
    fields={
        "attention.sliding_window": "sliding_window",
        f"attention.{PATTERN}": PATTERN,
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    given={APPLIED: True},
    finish=_from_gguf,
)
GEMMA_3 = Family(("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), _read, GEMMA3)
