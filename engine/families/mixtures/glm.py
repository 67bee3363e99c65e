"""GLM-4.5 to 4.7: partial rotation, biases of q, k and v, a sigmoid router, a shared expert, a layer that drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.mixture import (
    NEXTN,
    SIGMOID,
    SPARSE,
    TENSORS,
    check_gate,
    sigmoid_router,
    sparse_decoder,
)
from fastslow.engine.families.reading import attending, norm_of, share_rotated
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER_POST, Family, GgufNames
from fastslow.engine.model.shape import DecoderShape


def _read(raw: ConfigJson) -> DecoderShape:
    """The first `first_k_dense_replace` layers are dense."""
    norm = norm_of(raw) if raw.boolean("use_qk_norm") else None
    mixer = attending(raw, partial=0.5, head_norm=norm)
    mixer = replace(mixer, qkv_bias=raw.boolean("attention_bias"))
    dense = raw.count("first_k_dense_replace", 1)
    return sparse_decoder(raw, mixer, sigmoid_router(raw), range(dense))


def _header(raw: dict[str, Any]) -> None:
    check_gate(raw, SIGMOID)
    share_rotated(raw)


GLM4_MOE = Family(
    ("Glm4MoeForCausalLM",),
    _read,
    GgufNames(
        "glm4moe",
        {**GGUF_LAYER_POST, **GGUF_HEAD_NORMS, **TENSORS, **NEXTN},
        fields={**SPARSE, "rope.dimension_count": ROTATED},
        present={"attn_q.bias": "attention_bias", "attn_q_norm.weight": "use_qk_norm"},
        finish=_header,
    ),
)
