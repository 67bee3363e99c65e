"""Granite 3 and 4 with experts: the factors of all Granite models, a softmax of the chosen, a shared MLP in some."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.dense.granite import SCALES, scaled
from fastslow.engine.families.mixtures.mixture import FIELDS, TENSORS
from fastslow.engine.families.reading import mixture
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape

RENAMES = (
    (".block_sparse_moe.router.layer.", ".mlp.gate."),
    (".block_sparse_moe.input_linear.weight", ".mlp.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".mlp.experts.down_proj"),
    (".shared_mlp.input_linear.", ".mlp.shared_expert.gate_up_proj."),
    (".shared_mlp.output_linear.", ".mlp.shared_expert.down_proj."),
)


def _read(raw: ConfigJson) -> DecoderShape:
    """Without `shared_intermediate_size` there is no shared MLP."""
    router = Router("chosen", raw.integer("num_experts_per_tok", 2))
    shared = raw.width("shared_intermediate_size", 0, least=0)
    ffn = mixture(raw, router, "num_local_experts", "intermediate_size", shared)
    return replace(scaled(raw, ffn), fused=("experts", "gate_up"), renames=RENAMES)


GRANITE_MOE = Family(
    ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    _read,
    GgufNames(
        "granitemoe",
        GGUF_LAYER | TENSORS,
        interleaved=True,
        fields={
            **FIELDS,
            **SCALES,
            "expert_count": "num_local_experts",
            "expert_feed_forward_length": "intermediate_size",
        },
    ),
)
