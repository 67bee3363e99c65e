"""What mixtures of experts have in common: how configs and GGUF files say their sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import activation_of, feeding
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    GGUF_EXPERTS,
    GGUF_SHARED,
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    integer,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.shape import DecoderShape

SHARED = (".mlp.shared_experts.", ".mlp.shared_expert.")  # how files name the shared one, and we
BIAS = "mlp.gate.e_score_correction_bias"
GATE, SHARES = "expert_gating_func", "expert_shared_count"
TENSORS = {**GGUF_EXPERTS, **GGUF_SHARED, "exp_probs_b.bias": BIAS}  # of GGUF files
FIELDS = {  # of their headers
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_intermediate_size",
    GATE: GATE,
}
SOFTMAX, SIGMOID = 1, 2  # what a header's GATE may be


def expect(raw: ConfigJson, values: Mapping[str, Any]) -> None:
    """Check fields that may have one value only, where they are there: lists of it, too, one for each layer."""
    for name, value in values.items():
        found = raw.get(name)
        if found is not None and any(
            x != value for x in (found if isinstance(found, list) else [found])
        ):
            raise ValueError(f"{name} {shown(found)} is not supported, only {value} is")


def mixture(
    raw: ConfigJson, router: Router, experts: str, width: str, shared: int = 0
) -> RoutedExperts:
    """Routed experts and a shared one, without biases. experts, width: fields of their number, and of the width of
    each. shared: the width of the shared one; 0: there is none."""
    act = activation_of(raw)
    expert = DenseMlp(integer(raw, width, most=MOST_WIDTH), act)
    own = DenseMlp(shared, act) if shared else None
    return RoutedExperts(router, integer(raw, experts, most=MOST_EXPERTS), expert, own)


def with_dense(
    raw: ConfigJson, shape: DecoderShape, dense: Collection[int], bias: bool = False
) -> DecoderShape:
    """The same with an MLP of `intermediate_size` in these layers."""
    if not dense:
        return shape
    mlp = feeding(raw, bias=bias)
    return shape.each(lambda n, layer: replace(layer, ffn=mlp) if n in dense else layer)


def check_gate(raw: dict[str, Any], wanted: int) -> None:
    """Take the GATE of a header out of its fields; ValueError: it is another."""
    if (gate := raw.pop(GATE, wanted)) != wanted:
        raise ValueError(f"{GATE} {shown(gate)} is not supported, only {wanted} is")
