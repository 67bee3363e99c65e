"""Granite 3 and 4 without experts: factors of embeddings, scores, what sublayers add, and logits."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.reading import FULL, attending, decoder, feeding, layer_types
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames, refusal
from fastslow.engine.model.ffn.dense import DenseMlp
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


def scaled(raw: ConfigJson, ffn: FeedForward, rotates: bool = True) -> DecoderShape:
    """A decoder of such layers with the factors of all Granite models; `logits_scaling` divides."""
    mixer = attending(raw, bias="attention_bias")
    scale = raw.number("attention_multiplier", 1.0)
    mixer = replace(mixer, score_scale=scale, rope=mixer.rope if rotates else None)
    layer = Layer(mixer, ffn, residual_scale=raw.number("residual_multiplier", 1.0))
    return replace(
        decoder(raw, layer),
        embedding_scale=raw.number("embedding_multiplier", 1.0),
        logit_scale=1 / raw.number("logits_scaling", 1.0),
    )


def _granite(raw: ConfigJson) -> DecoderShape:
    return scaled(raw, feeding(raw, bias=raw.boolean("mlp_bias")))


def _hybrid(raw: ConfigJson) -> DecoderShape:
    """Of Granite 4, those whose layers all have attention, and one MLP that files call a shared one."""
    mamba = ["mamba"] * raw.layers
    if "mamba" in layer_types(raw, (*ATTENTION, "mamba"), mamba):
        raise refusal("architecture", HYBRID.architectures[0], GRANITE.architectures)
    raw.expect({"num_local_experts": 0, "normalization_function": "rmsnorm"})
    for name in [*raw]:
        if name.startswith("mamba_") or name in ("num_experts_per_tok", "time_step_limit"):
            raw.get(name)  # of layers that this model has none of
    mlp = DenseMlp(raw.width("shared_intermediate_size", 1024))
    shape = scaled(raw, mlp, raw.get("position_embedding_type") == "rope")
    return replace(shape, fused=("gate_up",), renames=RENAMES)


GRANITE = Family(
    ("GraniteForCausalLM",),
    _granite,
    GgufNames("granite", GGUF_LAYER, interleaved=True, fields=SCALES),
)
HYBRID = Family(("GraniteMoeHybridForCausalLM",), _hybrid)  # GGUF files call it granite
