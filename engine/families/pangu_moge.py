"""openPangu Pro MoE (72B): a shared expert, and routed ones in groups of which each runs one.

MoGE: Tang et al., arXiv 2505.21411.
"""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import decoder, dense_layers
from fastslow.engine.model.family import (
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    boolean,
    integer,
)
from fastslow.engine.model.shape import DecoderShape


def read(raw: ConfigJson) -> DecoderShape:
    """`num_experts_per_tok` is the number of groups."""
    dense, bias = dense_layers(raw), boolean(raw, "bias", True)
    return replace(
        decoder(raw, dense=bool(dense)),
        qkv_bias=bias,
        out_bias=bias,
        groups=integer(raw, "num_experts_per_tok"),
        experts=integer(raw, "num_experts", most=MOST_EXPERTS),
        moe_intermediate_size=integer(raw, "moe_intermediate_size", most=MOST_WIDTH),
        shared_intermediate_size=integer(raw, "shared_expert_intermediate_size", most=MOST_WIDTH),
        mlp_only_layers=dense,
    )


FAMILY = Family(("PanguProMoEForCausalLM",), read)
