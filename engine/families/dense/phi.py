"""Phi-3, Phi-4 and their small ones: matrices of attention in one, gates and ups in one, heads that rotate in part, and
factors of frequencies for short and for long texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import (
    ORIGINAL,
    attending,
    decoder,
    feeding,
    halves,
    norm_of,
    share_rotated,
    window_of,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.shape import DecoderShape, Layer


def _phi3(raw: ConfigJson) -> DecoderShape:
    """All layers see a window, where `sliding_window` names one."""
    raw.get(ORIGINAL)  # which is often there where nothing is stretched
    if raw.integer("full_attn_mod", 1) != 1:
        raise ValueError(f"full_attn_mod {shown(raw['full_attn_mod'])} is not supported, only 1 is")
    mixer = replace(attending(raw, partial=1.0), qkv_fused=True, window=window_of(raw))
    shape = decoder(raw, Layer(mixer, feeding(raw)), norm=norm_of(raw, 1e-5))
    return replace(shape, fused=("gate_up",))


def _header(raw: dict[str, Any]) -> None:
    """Without lists of factors the length before scaling means nothing; a window of 0 is none."""
    share_rotated(raw)
    raw["sliding_window"] = raw.get("sliding_window") or None
    if "long_factor" not in raw["rope_scaling"]:
        raw["rope_scaling"] = {"rope_type": "default"}


PHI3 = Family(
    ("Phi3ForCausalLM",),
    _phi3,
    GgufNames(
        "phi3",
        {n: p for n, p in GGUF_LAYER.items() if n not in ("attn_q", "attn_k", "attn_v", "ffn_gate")}
        | {"attn_qkv": "self_attn.qkv_proj"},
        fields={
            "rope.dimension_count": ROTATED,
            "rope.scaling.attn_factor": "rope_scaling.attention_factor",
            "attention.sliding_window": "sliding_window",
        },
        finish=_header,
        parts={"ffn_up": halves},
    ),
)
