"""Qwen3-Next, Qwen3.5 and 3.6, dense or with experts: most layers are gated delta nets, and the others attention whose
heads have output gates (partial rotation, norms that multiply by 1 + weight); a layer that drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastslow.engine.families.qwen_hybrid_gguf import APPLIED, QWEN3NEXT, QWEN35, QWEN35MOE, TILED
from fastslow.engine.families.reading import (
    FULL,
    LINEAR,
    activation_of,
    attending,
    decoder,
    feeding,
    layer_count,
    layer_types,
    norm_of,
    sparse_layers,
)
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    MOST_EXPERTS,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    boolean,
    count,
    integer,
    text,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.parts import FeedForward
from fastslow.engine.model.shape import DecoderShape, Layer, MtpLayer

# Most folders hold a model of text and images. Its text part alone runs.
RENAMES = (("model.language_model.", "model."),)
MOST_KERNEL = 1024  # tokens that a convolution sees
Ffns = Callable[
    [ConfigJson], list[FeedForward]
]  # of each layer, and last that of the layer that drafts


def _decoder(raw: ConfigJson, ffns: Ffns, *fused: str) -> DecoderShape:
    """Every `full_attention_interval`-th layer has attention, where `layer_types` does not name those that have."""
    if activation_of(raw) != "silu":
        raise ValueError(f"hidden_act {shown(raw['hidden_act'])} is not supported, only 'silu' is")
    if (gate := text(raw, "output_gate_type", "swish")) not in ("swish", "silu"):
        raise ValueError(f"output_gate_type {shown(gate)} is not supported, only 'swish' is")
    eps = norm_of(raw).eps
    bias, applied = boolean(raw, "attention_bias", False), boolean(raw, APPLIED, False)
    norm = RmsNorm(eps, offset=float(not applied))
    attention = replace(
        attending(raw, head_dim=256, partial=0.25),
        query_norm=norm,
        key_norm=norm,
        qkv_bias=bias,
        out_bias=bias,
        out_gate=boolean(raw, "attn_output_gate", True),
    )
    delta = GatedDelta(
        integer(raw, "linear_num_key_heads", most=MOST_HEADS),
        integer(raw, "linear_num_value_heads", most=MOST_HEADS),
        integer(raw, "linear_key_head_dim", most=MOST_HEAD_DIM),
        integer(raw, "linear_value_head_dim", most=MOST_HEAD_DIM),
        integer(raw, "linear_conv_kernel_dim", 4, most=MOST_KERNEL),
        eps,
        boolean(raw, TILED, False),
        applied,
    )
    every = integer(raw, "full_attention_interval", 4)
    usual = [LINEAR if (n + 1) % every else FULL for n in range(layer_count(raw))]
    types, (*own, last) = layer_types(raw, (LINEAR, FULL), usual), ffns(raw)

    def one(n: int, layer: Layer) -> Layer:
        return replace(layer, mixer=delta if types[n] == LINEAR else attention, ffn=own[n])

    shape = decoder(raw, Layer(attention, last, LayerNorms(norm)), norm=norm)
    mtp = MtpLayer.apart(shape.layers[0], norm) if _drafts(raw) else None
    return replace(shape.each(one), mtp=mtp, fused=fused, renames=RENAMES)


def _drafts(raw: ConfigJson) -> bool:
    """Read `mtp_num_hidden_layers`. Configs that transformers wrote leave it out, and so do those of Qwen3-Next: what
    counts there is whether the files have such a layer."""
    if boolean(raw, "mtp_use_dedicated_embeddings", False):
        raise ValueError(
            "mtp_use_dedicated_embeddings true is not supported: drafts read the model's embedding"
        )
    silent = raw.get("mtp_num_hidden_layers") is None
    return silent or count(raw, "mtp_num_hidden_layers", most=1) > 0


def _dense(raw: ConfigJson) -> list[FeedForward]:
    return [feeding(raw)] * (layer_count(raw) + 1)


def _experts(raw: ConfigJson) -> list[FeedForward]:
    """Softmax over all experts, of which the largest run, and a shared one behind a gate."""
    act = activation_of(raw)
    router = Router(
        "softmax",
        integer(raw, "num_experts_per_tok"),
        normed=boolean(raw, "norm_topk_prob", True),
    )
    routed = RoutedExperts(
        router,
        integer(raw, "num_experts", most=MOST_EXPERTS),
        DenseMlp(integer(raw, "moe_intermediate_size", most=MOST_WIDTH), act),
        DenseMlp(integer(raw, "shared_expert_intermediate_size", most=MOST_WIDTH), act),
        shared_gate=True,
    )
    layers, sparse = layer_count(raw), sparse_layers(raw)
    if len(sparse) == layers:
        return [routed] * (layers + 1)
    dense = feeding(raw)
    return [*(routed if n in sparse else dense for n in range(layers)), routed if sparse else dense]


QWEN3_5 = Family(
    ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    lambda raw: _decoder(raw, _dense),
    QWEN35,
)
QWEN3_5_MOE = Family(
    ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    lambda raw: _decoder(raw, _experts, "experts"),
    QWEN35MOE,
)
QWEN3_NEXT = Family(
    ("Qwen3NextForCausalLM",),
    lambda raw: _decoder(raw, _experts, "experts", "delta"),
    QWEN3NEXT,
)
