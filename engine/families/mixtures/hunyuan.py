"""HunYuan with experts: heads are normed after they are rotated, softmax over all experts, and a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.dense import hunyuan
from fastslow.engine.families.mixtures.mixture import (
    FIELDS,
    SHARES,
    SOFTMAX,
    TENSORS,
    check_gate,
)
from fastslow.engine.families.reading import decoder, mixture, norm_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_HEAD_NORMS, GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer

EXPECTED = {
    "num_shared_expert": 1,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "use_mixed_mlp_moe": True,
    "use_rotary_pos_emb": True,
    "moe_layer_num_skipped": 0,
    "group_limited_greedy": False,
    "moe_router_use_sigmoid": False,
    "use_mla": False,
    "use_cla": False,
}
# Of models with latent keys, with images, or with one kind of norm.
OTHERS = (
    "kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim norm_type vit_norm_type"
)
RENAMES = (
    *hunyuan.RENAMES,
    (".mlp.gate.wg.", ".mlp.gate."),
    (".mlp.shared_mlp.", ".mlp.shared_expert."),
)


def _read(raw: ConfigJson) -> DecoderShape:
    """`moe_topk` is a number, or a list of one for each layer, all alike. Experts are as wide as the shared one."""
    mixer, width = hunyuan.turned(raw), raw.width("intermediate_size")
    raw.expect(EXPECTED | {"moe_intermediate_size": width, "attention_head_dim": mixer.head_dim})
    for name in OTHERS.split():
        raw.get(name)
    chosen = (raw.integers("moe_topk") or (1,))[0]
    raw.expect({"moe_topk": chosen})
    ffn = mixture(raw, Router("softmax", chosen), width="intermediate_size", shared=width)
    shape = decoder(raw, Layer(mixer, ffn), norm=norm_of(raw, 1e-5))
    return replace(shape, fused=("experts",), renames=RENAMES)


def _header(raw: dict[str, Any]) -> None:
    check_gate(raw, SOFTMAX)
    hunyuan.no_scaling(raw)


HUNYUAN_MOE = Family(
    ("HunYuanMoEV1ForCausalLM",),
    _read,
    GgufNames(
        "hunyuan-moe",
        GGUF_LAYER | GGUF_HEAD_NORMS | TENSORS,
        fields={
            **FIELDS,
            "expert_feed_forward_length": "intermediate_size",
            "expert_shared_feed_forward_length": "intermediate_size",
            "expert_used_count": "moe_topk",
            SHARES: "num_shared_expert",
        },
        finish=_header,
    ),
)
