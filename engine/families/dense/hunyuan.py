"""HunYuan without experts: heads are normed after they are rotated, and a fixed `alpha` stretches the rotary base."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import attending, decoder, feeding, norm_of, rope_fields
from fastslow.engine.model.config_json import MOST_STRETCH, ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.shape import DecoderShape, Layer

NOTHING = "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"  # beside alpha
OF_ALPHA = "alpha", "rope_type", "type", *NOTHING
RENAMES = (
    (".self_attn.query_layernorm.", ".self_attn.q_norm."),
    (".self_attn.key_layernorm.", ".self_attn.k_norm."),
)


def turned(raw: ConfigJson) -> GroupedAttention:
    """Attention of HunYuan models: with `alpha`, a scaling called dynamic is the same for every text."""
    fields, alpha = rope_fields(raw), 1.0
    if fields.get("alpha") and "dynamic" in (fields.get("rope_type"), fields.get("type")):
        alpha = fields.number("alpha", most=MOST_STRETCH)
        rest = {n: x for n, x in fields.items() if n not in OF_ALPHA}
        raw = raw.changed(rope_scaling={"rope_type": "default", **rest})
    mixer = attending(raw, bias="attention_bias", head_norm=norm_of(raw, 1e-5))
    rope = mixer.rope
    assert rope is not None
    rope = replace(rope, theta=rope.theta * alpha ** (rope.dim / max(rope.dim - 2, 1)))
    return replace(mixer, rope=rope, norm_turned=True)


def _dense(raw: ConfigJson) -> DecoderShape:
    shape = decoder(raw, Layer(turned(raw), feeding(raw)), norm=norm_of(raw, 1e-5))
    return replace(shape, renames=RENAMES)


def no_scaling(raw: dict[str, Any]) -> None:
    """Headers have the stretched base, and say further fields of a scaling that is none."""
    if raw["rope_scaling"].get("rope_type") == "none":
        raw["rope_scaling"] = {"rope_type": "default"}


HUNYUAN_DENSE = Family(
    ("HunYuanDenseV1ForCausalLM",),
    _dense,
    GgufNames("hunyuan-dense", GGUF_LAYER | GGUF_HEAD_NORMS, finish=no_scaling),
)
