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
    mixture,
    with_dense,
)
from fastslow.engine.families.reading import attending, decoder, expect, layer_count
from fastslow.engine.model.family import (
    GGUF_LAYER,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    GgufNames,
    boolean,
    integer,
    number,
)
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape, Layer

LEAST_SUM = 1e-6  # of probabilities; what divides them is never less than `moe_norm_min`


def _read(raw: ConfigJson) -> DecoderShape:
    """Experts in every `moe_layer_interval`-th layer between `moe_layer_start_index` and `moe_layer_end_index`."""
    for name in ("moe_capacity", "moe_gate", "moe_use_aux_free"):  # of training
        raw.get(name)
    if (least := number(raw, "moe_norm_min", 1e-12)) > LEAST_SUM:
        raise ValueError(f"moe_norm_min {least} is not supported, it is at most {LEAST_SUM}")
    expect(raw, {"use_rmsnorm": True})
    bias, mixer = boolean(raw, "use_bias", False), attending(raw, theta=500000.0)
    assert mixer.rope is not None
    rope = replace(mixer.rope, layout="interleaved-first")
    mixer = replace(mixer, rope=rope, qkv_bias=bias, out_bias=bias)
    shared = integer(raw, "moe_intermediate_size", most=MOST_WIDTH)
    shared *= integer(raw, "moe_num_shared_experts", 2, most=MOST_EXPERTS, least=0)
    router = Router("softmax", integer(raw, "moe_k", 6), choice_bias=True)
    ffn = mixture(raw, router, "moe_num_experts", "moe_intermediate_size", shared)
    if ffn.shared is not None:
        ffn = replace(ffn, shared=replace(ffn.shared, bias=bias))
    first, last = integer(raw, "moe_layer_start_index", 1, least=0), layer_count(raw)
    if (end := integer(raw, "moe_layer_end_index", -1, least=-1)) >= 0:
        last = end + 1
    step, every = integer(raw, "moe_layer_interval", 1), set(range(layer_count(raw)))
    dense = every - {n for n in range(first, last) if (n + 1) % step == 0}
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
