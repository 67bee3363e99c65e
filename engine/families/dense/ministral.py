"""Ministral 3, and the text part of Mistral Small 3: queries are the larger the further they are in a text."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    ORIGINAL,
    TEXT_PART,
    attending,
    decoder,
    feeding,
    norm_of,
    rope_fields,
    window_of,
)
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.shape import DecoderShape, Layer

BETA = "llama_4_scaling_beta"
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    ORIGINAL: 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    BETA: 0.1,
}


def _ministral3(raw: ConfigJson) -> DecoderShape:
    """Texts of Mistral Small have no such factor, and are read as Mistral's own."""
    usual = {} if raw.get("model_type") == "mistral" else YARN
    fields = rope_fields(raw) or ConfigJson(usual)
    rest = {n: x for n, x in fields.items() if n not in (BETA, "max_position_embeddings")}
    mixer = attending(raw.changed(rope_scaling=rest, rope_parameters=None), head_dim=128)
    scale = None
    if fields.get(BETA) is not None:
        length = fields.integer(ORIGINAL, raw.integer("max_position_embeddings"))
        scale = fields.number(BETA), length
    mixer = replace(mixer, window=window_of(raw), position_scale=scale)
    shape = decoder(raw, Layer(mixer, feeding(raw)), norm=norm_of(raw, 1e-5))
    return replace(shape, renames=TEXT_PART)


MINISTRAL3 = Family(
    ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
    _ministral3,
    GgufNames(
        "mistral3",
        GGUF_LAYER,
        interleaved=True,
        fields={
            "rope.scaling.yarn_log_multiplier": "rope_scaling.mscale_all_dim",
            "attention.temperature_scale": f"rope_scaling.{BETA}",
        },
        given={"rope_scaling.mscale": 1.0},
    ),
)
