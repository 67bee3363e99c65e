"""GLM-4.5 to 4.7: partial rotation, biases of q, k and v, a sigmoid router, a shared expert, and a layer that drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.mixture import (
    FIELDS,
    SHARED,
    SHARES,
    SIGMOID,
    TENSORS,
    check_gate,
    mixture,
    with_dense,
)
from fastslow.engine.families.reading import attending, decoder, norm_of, share_rotated
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.family import (
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    GgufNames,
    boolean,
    count,
    integer,
    number,
)
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

DRAFTS = "num_nextn_predict_layers"
WEIGHTS_EPS = 1e-20  # beside the sum that the weights of experts are divided by


def _read(raw: ConfigJson) -> DecoderShape:
    """The first `first_k_dense_replace` layers are dense. Where no field says it, the files show whether there is a
    layer that drafts."""
    norm = norm_of(raw) if boolean(raw, "use_qk_norm", False) else None
    bias = boolean(raw, "attention_bias", False)
    mixer = replace(attending(raw, partial=0.5), qkv_bias=bias, query_norm=norm, key_norm=norm)
    groups, kept = integer(raw, "n_group", 1), integer(raw, "topk_group", 1)
    router = Router(
        "sigmoid",
        integer(raw, "num_experts_per_tok", 8),
        normed=boolean(raw, "norm_topk_prob", True),
        scale=number(raw, "routed_scaling_factor", 1.0),
        choice_bias=True,
        groups=groups if groups > 1 else 0,
        kept_groups=kept,
        weights_eps=WEIGHTS_EPS,
    )
    shared = integer(raw, "moe_intermediate_size", most=MOST_WIDTH)
    shared *= integer(raw, "n_shared_experts", 1, most=MOST_EXPERTS, least=0)
    ffn = mixture(raw, router, "n_routed_experts", "moe_intermediate_size", shared)
    shape, dense = (
        decoder(raw, Layer(mixer, ffn)),
        integer(raw, "first_k_dense_replace", 1, least=0),
    )
    mtp = MtpLayer.numbered(shape.layers[0], len(shape.layers), shape.norm)
    shape = replace(shape, mtp=mtp if raw.get(DRAFTS) is None or count(raw, DRAFTS) else None)
    shape = with_dense(raw, shape, range(min(dense, len(shape.layers))))
    return replace(shape, drafts_inside=True, fused=("experts",), renames=(SHARED,))


def _header(raw: dict[str, Any]) -> None:
    check_gate(raw, SIGMOID)
    share_rotated(raw)


GLM4_MOE = Family(
    ("Glm4MoeForCausalLM",),
    _read,
    GgufNames(
        "glm4moe",
        {
            **{name: place for name, place in GGUF_LAYER.items() if name != "ffn_norm"},
            **GGUF_HEAD_NORMS,
            **TENSORS,
            "post_attention_norm": "post_attention_layernorm",
            **{f"nextn.{name}": name for name in ("eh_proj", "enorm", "hnorm", "embed_tokens")},
            "nextn.shared_head_norm": "shared_head.norm",
            "nextn.shared_head_head": "shared_head.head",
        },
        fields={
            **FIELDS,
            "expert_count": "n_routed_experts",
            SHARES: "n_shared_experts",
            "expert_weights_scale": "routed_scaling_factor",
            "expert_weights_norm": "norm_topk_prob",
            "leading_dense_block_count": "first_k_dense_replace",
            "nextn_predict_layers": DRAFTS,
            "rope.dimension_count": ROTATED,
        },
        present={"attn_q.bias": "attention_bias", "attn_q_norm.weight": "use_qk_norm"},
        finish=_header,
    ),
)
