"""Qwen3-Next, Qwen3.5 and 3.6, dense or with experts: most layers are gated delta nets, and the others attention whose
heads have output gates (partial rotation, norms that multiply by 1 + weight); a layer that drafts."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.families.qwen_hybrid_gguf import APPLIED, QWEN3NEXT, QWEN35, QWEN35MOE, TILED
from fastslow.engine.families.reading import (
    FULL,
    LINEAR,
    activation_of,
    attending,
    decoder,
    feeding,
    layer_types,
    mixture,
    norm_of,
    sparse_layers,
    with_dense,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.parts import FeedForward
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

# Most folders hold a model of text and images. Its text part alone runs.
RENAMES = (("model.language_model.", "model."),)
MOST_KERNEL = 1024  # tokens that a convolution sees


def _decoder(raw: ConfigJson, ffn: FeedForward, *fused: str) -> DecoderShape:
    """Every `full_attention_interval`-th layer has attention, where `layer_types` does not name those that have."""
    if activation_of(raw) != "silu":
        raise ValueError(f"hidden_act {shown(raw['hidden_act'])} is not supported, only 'silu' is")
    if (gate := raw.text("output_gate_type", "swish")) not in ("swish", "silu"):
        raise ValueError(f"output_gate_type {shown(gate)} is not supported, only 'swish' is")
    eps = norm_of(raw).eps
    applied = raw.boolean(APPLIED)
    norm = RmsNorm(eps, offset=float(not applied))
    mixer = attending(raw, head_dim=256, partial=0.25, bias="attention_bias", head_norm=norm)
    attention = replace(mixer, out_gate=raw.boolean("attn_output_gate", True))
    delta = GatedDelta(
        raw.heads("linear_num_key_heads"),
        raw.heads("linear_num_value_heads"),
        raw.head_dim("linear_key_head_dim"),
        raw.head_dim("linear_value_head_dim"),
        raw.integer("linear_conv_kernel_dim", 4, most=MOST_KERNEL),
        eps,
        raw.boolean(TILED),
        applied,
    )
    every = raw.integer("full_attention_interval", 4)
    usual = [LINEAR if (n + 1) % every else FULL for n in range(raw.layers)]
    types = layer_types(raw, (LINEAR, FULL), usual)
    each = (delta if kind == LINEAR else attention for kind in types)
    shape = decoder(raw, Layer(attention, ffn, LayerNorms(norm)), norm=norm)
    mtp = MtpLayer.apart(shape.layers[0], norm) if _drafts(raw) else None
    return replace(shape.mixing(each), mtp=mtp, fused=fused, renames=RENAMES)


def _drafts(raw: ConfigJson) -> bool:
    """Read `mtp_num_hidden_layers`. Configs that transformers wrote leave it out, and so do those of Qwen3-Next: what
    counts there is whether the files have such a layer."""
    if raw.boolean("mtp_use_dedicated_embeddings"):
        raise ValueError(
            "mtp_use_dedicated_embeddings true is not supported: drafts read the model's embedding"
        )
    silent = raw.get("mtp_num_hidden_layers") is None
    return silent or raw.count("mtp_num_hidden_layers", most=1) > 0


def _experts(raw: ConfigJson, *fused: str) -> DecoderShape:
    """Softmax over all experts, of which the largest run, and a shared one behind a gate."""
    chosen, normed = raw.integer("num_experts_per_tok"), raw.boolean("norm_topk_prob", True)
    router = Router("softmax", chosen, normed=normed)
    routed = mixture(raw, router, shared=raw.width("shared_expert_intermediate_size"))
    routed, sparse = replace(routed, shared_gate=True), sparse_layers(raw)
    shape = _decoder(raw, routed if sparse else feeding(raw), *fused)
    return with_dense(raw, shape, set(range(raw.layers)) - sparse)


QWEN3_5 = Family(
    ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    lambda raw: _decoder(raw, feeding(raw)),
    QWEN35,
)
QWEN3_5_MOE = Family(
    ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    lambda raw: _experts(raw, "experts"),
    QWEN35MOE,
)
QWEN3_NEXT = Family(
    ("Qwen3NextForCausalLM",),
    lambda raw: _experts(raw, "experts", "delta"),
    QWEN3NEXT,
)
