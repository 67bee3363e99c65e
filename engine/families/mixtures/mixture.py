"""Fields and tensors that mixtures of experts share in configs and GGUF files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import decoder, mixture, with_dense
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_EXPERT_FIELDS, GGUF_EXPERTS, GGUF_SHARED
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.parts import Mixer
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

SHARED = (".mlp.shared_experts.", ".mlp.shared_expert.")  # how files name the shared one, and we
BIAS = "mlp.gate.e_score_correction_bias"
GATE, SHARES = "expert_gating_func", "expert_shared_count"
TENSORS = {**GGUF_EXPERTS, **GGUF_SHARED, "exp_probs_b.bias": BIAS}  # of GGUF files
FIELDS = {  # of their headers
    **GGUF_EXPERT_FIELDS,
    "expert_shared_feed_forward_length": "shared_intermediate_size",
    GATE: GATE,
}
SOFTMAX, SIGMOID = 1, 2  # what a header's GATE may be
DRAFTS = "num_nextn_predict_layers"
NEXTN = {  # tensors of a layer that drafts, in GGUF files
    **{f"nextn.{name}": name for name in ("eh_proj", "enorm", "hnorm", "embed_tokens")},
    "nextn.shared_head_norm": "shared_head.norm",
    "nextn.shared_head_head": "shared_head.head",
}
SPARSE = {  # fields that headers have for `sparse_decoder`
    **FIELDS,
    "expert_count": "n_routed_experts",
    SHARES: "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "leading_dense_block_count": "first_k_dense_replace",
    "nextn_predict_layers": DRAFTS,
}
MOST_DRAFTING = 8  # layers that draft
WEIGHTS_EPS = 1e-20  # beside the sum that the weights of experts are divided by


def sigmoid_router(
    raw: ConfigJson, chosen: int = 8, groups: int = 1, kept: int = 1, scale: float = 1.0
) -> Router:
    """As DeepSeek-V3 has it. The numbers hold where config.json is silent."""
    groups = raw.integer("n_group", groups)
    return Router(
        "sigmoid",
        raw.integer("num_experts_per_tok", chosen),
        normed=raw.boolean("norm_topk_prob", True),
        scale=raw.number("routed_scaling_factor", scale),
        choice_bias=True,
        groups=groups if groups > 1 else 0,
        kept_groups=raw.integer("topk_group", kept),
        weights_eps=WEIGHTS_EPS,
    )


def sparse_decoder(
    raw: ConfigJson, mixer: Mixer, router: Router, dense: Collection[int], shares: int = 1
) -> DecoderShape:
    """A decoder with an MLP in `dense` layers, and `n_routed_experts` beside `n_shared_experts` in others and in a
    layer that drafts; where no field says it, the files show whether there is one. shares: where config.json is
    silent."""
    width = raw.width("moe_intermediate_size")
    shared = width * raw.experts("n_shared_experts", shares, least=0)
    ffn = mixture(raw, router, "n_routed_experts", shared=shared)
    shape = decoder(raw, Layer(mixer, ffn))
    heads = raw.count(DRAFTS, 1, MOST_DRAFTING)
    mtp = MtpLayer.numbered(shape.layers[0], len(shape.layers), shape.norm, count=heads)
    shape = replace(shape, mtp=mtp if heads else None)
    layers = {n for n in range(len(shape.layers)) if n in dense}
    return replace(
        with_dense(raw, shape, layers), drafts_inside=True, fused=("experts",), renames=(SHARED,)
    )


def check_gate(raw: dict[str, Any], wanted: int) -> None:
    """Take the GATE of a header out of its fields; ValueError: it is another."""
    if (gate := raw.pop(GATE, wanted)) != wanted:
        raise ValueError(f"{GATE} {shown(gate)} is not supported, only {wanted} is")
