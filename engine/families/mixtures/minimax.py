"""MiniMax-M2: norms over all heads together, rotation of half a head, and a sigmoid router whose choice has a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.mixture import (
    FIELDS,
    SIGMOID,
    TENSORS,
    check_gate,
)
from fastslow.engine.families.reading import NUMBERED, attending, decoder, mixture, norm_of
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer

EXPECTED = {
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "use_routing_bias": True,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",  # of a shared expert, where there is one
    "attn_type_list": 1,
    **{f"layernorm_{part}_beta": 1 for part in ("full_attention", "linear_attention", "mlp")},
}
RENAMES = (
    (".block_sparse_moe.", ".mlp."),
    (".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
    *NUMBERED,
)


def _read(raw: ConfigJson) -> DecoderShape:
    """`rotary_dim` of a head's dims are rotated, where that field is there."""
    raw.expect(EXPECTED)
    mixer = attending(raw, theta=5e6, head_dim=128, partial=1.0, head_norm=norm_of(raw))
    assert mixer.rope is not None
    if raw.get("rotary_dim") is not None:
        turned = raw.integer("rotary_dim", most=mixer.head_dim)
        mixer = replace(mixer, rope=replace(mixer.rope, width=turned % mixer.head_dim))
    router = Router("sigmoid", raw.integer("num_experts_per_tok", 8), choice_bias=True)
    ffn = mixture(raw, router, "num_local_experts", "intermediate_size")
    shape = decoder(raw, Layer(replace(mixer, norms_whole=True), ffn))
    return replace(shape, drafts_inside=True, fused=("experts",), renames=RENAMES)


def _header(raw: dict[str, Any]) -> None:
    check_gate(raw, SIGMOID)
    raw["rotary_dim"] = raw.pop(ROTATED, None)


MINIMAX_M2 = Family(
    ("MiniMaxM2ForCausalLM",),
    _read,
    GgufNames(
        "minimax-m2",
        GGUF_LAYER | GGUF_HEAD_NORMS | TENSORS,
        fields={
            **FIELDS,
            "expert_count": "num_local_experts",
            "expert_feed_forward_length": "intermediate_size",
            "rope.dimension_count": ROTATED,
        },
        finish=_header,
    ),
)
