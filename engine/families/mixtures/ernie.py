"""ERNIE 4.5 MoE: interleaved RoPE, a softmax router whose choice has a bias, and a shared expert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.mixture import (
    FIELDS,
    SHARED,
    SHARES,
    SOFTMAX,
    TENSORS,
    check_gate,
)
from fastslow.engine.families.reading import attending, decoder, mixture, with_dense
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer

LEAST_SUM = 1e-6  # of probabilities; what divides them is never less than `moe_norm_min`


def _read(raw: ConfigJson) -> DecoderShape:
    """Experts in every `moe_layer_interval`-th layer between `moe_layer_start_index` and `moe_layer_end_index`."""
    for name in ("moe_capacity", "moe_gate", "moe_use_aux_free"):  # of training
        raw.get(name)
    if (least := raw.number("moe_norm_min", 1e-12)) > LEAST_SUM:
        raise ValueError(f"moe_norm_min {least} is not supported, it is at most {LEAST_SUM}")
    raw.expect({"use_rmsnorm": True})
    bias, mixer = raw.boolean("use_bias"), attending(raw, theta=500000.0, bias="use_bias")
    assert mixer.rope is not None
    mixer = replace(mixer, rope=replace(mixer.rope, layout="interleaved-first"))
    shared = raw.width("moe_intermediate_size")
    shared *= raw.experts("moe_num_shared_experts", 2, least=0)
    router = Router("softmax", raw.integer("moe_k", 6), choice_bias=True)
    ffn = mixture(raw, router, "moe_num_experts", shared=shared)
    if ffn.shared is not None:
        ffn = replace(ffn, shared=replace(ffn.shared, bias=bias))
    first, last = raw.count("moe_layer_start_index", 1), raw.layers
    if (end := raw.integer("moe_layer_end_index", -1, least=-1)) >= 0:
        last = end + 1
    step, every = raw.integer("moe_layer_interval", 1), range(raw.layers)
    dense = {n for n in every if not first <= n < last or (n + 1) % step}
    shape = with_dense(raw, decoder(raw, Layer(mixer, ffn), tied=True), dense, bias)
    return replace(
        shape,
        fused=("experts", "choice row"),
        left_out=(*shape.left_out, "model.mtp_"),
        renames=(SHARED,),
    )


def _header(raw: dict[str, Any]) -> None:
    """The width of the shared expert is that of as many as there are: headers say another."""
    check_gate(raw, SOFTMAX)
    raw.pop("shared_intermediate_size", None)


ERNIE4_5_MOE = Family(
    ("Ernie4_5_MoeForCausalLM", "Ernie4_5_MoEForCausalLM"),
    _read,
    GgufNames(
        "ernie4_5-moe",
        GGUF_LAYER | TENSORS,
        fields={
            **FIELDS,
            "expert_count": "moe_num_experts",
            "expert_used_count": "moe_k",
            SHARES: "moe_num_shared_experts",
            "interleave_moe_layer_step": "moe_layer_interval",
            "leading_dense_block_count": "moe_layer_start_index",
        },
        finish=_header,
    ),
)
