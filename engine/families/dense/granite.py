"""Granite 3 and 4 without experts: factors of embeddings, scores, what sublayers add, and logits."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import (
    FULL,
    attending,
    decoder,
    expect,
    feeding,
    layer_count,
    layer_types,
)
from fastslow.engine.model.family import (
    GGUF_LAYER,
    MOST_WIDTH,
    ConfigJson,
    Family,
    GgufNames,
    boolean,
    integer,
    number,
    refusal,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.parts import FeedForward
from fastslow.engine.model.shape import DecoderShape, Layer

ATTENTION = "attention", FULL  # the first is an older name
SCALES = {  # of headers of GGUF files
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
RENAMES = (
    (".shared_mlp.input_linear.", ".mlp.gate_up_proj."),
    (".shared_mlp.output_linear.", ".mlp.down_proj."),
)


def scaled(raw: ConfigJson, mixer: GroupedAttention, ffn: FeedForward) -> DecoderShape:
    """A decoder of such layers with the factors of all Granite models; `logits_scaling` divides."""
    bias = boolean(raw, "attention_bias", False)
    scale = number(raw, "attention_multiplier", 1.0)
    layer = Layer(
        replace(mixer, qkv_bias=bias, out_bias=bias, score_scale=scale),
        ffn,
        residual_scale=number(raw, "residual_multiplier", 1.0),
    )
    return replace(
        decoder(raw, layer),
        embedding_scale=number(raw, "embedding_multiplier", 1.0),
        logit_scale=1 / number(raw, "logits_scaling", 1.0),
    )


def _granite(raw: ConfigJson) -> DecoderShape:
    return scaled(raw, attending(raw), feeding(raw, bias=boolean(raw, "mlp_bias", False)))


def _hybrid(raw: ConfigJson) -> DecoderShape:
    """Of Granite 4, those whose layers all have attention, and one MLP that files call a shared one."""
    mamba = ["mamba"] * layer_count(raw)
    if "mamba" in layer_types(raw, (*ATTENTION, "mamba"), mamba):
        raise refusal("architecture", HYBRID.architectures[0], GRANITE.architectures)
    expect(raw, {"num_local_experts": 0, "normalization_function": "rmsnorm"})
    for name in [*raw]:
        if name.startswith("mamba_") or name in ("num_experts_per_tok", "time_step_limit"):
            raw.get(name)  # of layers that this model has none of
    mixer = attending(raw)
    if raw.get("position_embedding_type") != "rope":
        mixer = replace(mixer, rope=None)
    shape = scaled(
        raw, mixer, DenseMlp(integer(raw, "shared_intermediate_size", 1024, most=MOST_WIDTH))
    )
    return replace(shape, fused=("gate_up",), renames=RENAMES)


GRANITE = Family(
    ("GraniteForCausalLM",),
    _granite,
    GgufNames("granite", GGUF_LAYER, interleaved=True, fields=SCALES),
)
HYBRID = Family(("GraniteMoeHybridForCausalLM",), _hybrid)  # GGUF files call it granite
