"""Gemma 4: Gemma 3 with heads of two sizes, values that are normed or made of keys, keys of earlier layers, per-layer
embeddings, and experts beside the MLP."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fastslow.engine.families.gemma.gguf import GEMMA4
from fastslow.engine.families.gemma.typed import given, of_type, shape_of, types_of
from fastslow.engine.families.reading import FULL, attending, feeding, norm_of, window_of
from fastslow.engine.host.files import shown
from fastslow.engine.model.family import (
    MOST_EXPERTS,
    MOST_WIDTH,
    ConfigJson,
    Family,
    boolean,
    count,
    integer,
)
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.experts import RoutedExperts
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.ffn.token_input import PerLayerEmbedding, TokenInput
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer

PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
PER_LAYER, HEADS = "hidden_size_per_layer_input", ("head_dim", "num_key_value_heads")


def _read(raw: ConfigJson, width: int, window: int, positions: int) -> DecoderShape:
    """The last `num_kv_shared_layers` read the keys of the last layer of their type before them; the last of all layers
    has no window. width, window, positions: of per-layer embeddings, windows and texts, where nothing is said."""
    raw = given(raw, vocab_size=262144, max_position_embeddings=positions)
    if (seen := raw.get("use_bidirectional_attention")) not in (None, "vision"):
        raise ValueError(f"use_bidirectional_attention {shown(seen)} is not supported for text")
    norm, bias, types = norm_of(raw), boolean(raw, "attention_bias", False), types_of(raw)
    types[-1], layers = FULL, len(types)
    own = layers - count(raw, "num_kv_shared_layers", most=layers - 1)
    last = {kind: n for n, kind in enumerate(types[:own])}
    if missing := set(types) - last.keys():
        raise ValueError(f"num_kv_shared_layers {layers - own} leaves no {min(missing)} with keys")
    made, window = boolean(raw, "attention_k_eq_v", False), window_of(raw, window)
    heads = raw.get("num_global_key_value_heads")
    full = {"head_dim": integer(raw, "global_head_dim", 512)}
    if made and heads is not None:
        full["num_key_value_heads"] = heads
    sizes = raw.inside("per_layer_config")
    each = [sizes.inside(str(n)) for n in range(layers)]
    sizes.check_rest()
    dense, ffn = feeding(raw), _experts(raw, norm)
    wide = 1 + boolean(raw, "use_double_wide_mlp", False)
    width = 0 if raw.get(PER_LAYER, 0) is None else integer(raw, PER_LAYER, width, MOST_WIDTH, 0)
    table = integer(raw, "vocab_size_per_layer_input", 262144)
    token_input = TokenInput(width, dense.activation, norm) if width else None

    def one(n: int, layer: Layer) -> Layer:
        kind, shares = types[n], last[types[n]] if n >= own else None
        said = each[n] if sizes else full if kind == FULL else {}
        sized = {name: said[name] for name in HEADS if name in said}
        each[n].check_rest()
        mixer = replace(
            attending(of_type(raw, kind, PROPORTIONAL).changed(**sized)),
            query_norm=norm,
            key_norm=norm if shares is None else None,
            value_norm=norm if shares is None else None,
            keys_as_values=made and kind == FULL,
            qkv_bias=bias,
            out_bias=bias,
            window=0 if kind == FULL else window,
            score_scale=1.0,
            shares=shares,
        )
        mlp = dense if shares is None else replace(dense, width=wide * dense.width)
        return replace(layer, mixer=mixer, ffn=mlp if ffn is None else replace(ffn, dense=mlp))

    norms = LayerNorms(norm, after=True)
    usual = Layer(attending(of_type(raw, FULL, PROPORTIONAL)), dense, norms)
    usual = replace(usual, token_input=token_input, scaled=True)
    unread = (f"model.layers.{n}.self_attn.{side}_" for n in range(own, layers) for side in "kv")
    shape = shape_of(raw, [usual] * layers, norm, *unread).each(one)
    embedding = PerLayerEmbedding(table, layers, width, norm) if width else None
    return replace(shape, per_layer_embedding=embedding)


def _experts(raw: ConfigJson, norm: RmsNorm) -> ParallelFfn | None:
    if not boolean(raw, "enable_moe_block", False):
        return None
    dense, top_k = feeding(raw), integer(raw, "top_k_experts")
    router = Router("softmax", top_k, input_norm=norm, per_expert_scale=True)
    expert = DenseMlp(integer(raw, "moe_intermediate_size", most=MOST_WIDTH), dense.activation)
    routed = RoutedExperts(router, integer(raw, "num_experts", most=MOST_EXPERTS), expert)
    return ParallelFfn(dense, routed, norm)


GEMMA_4 = Family(
    ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    partial(_read, width=256, window=512, positions=131072),
    GEMMA4,
)
GEMMA_4_UNIFIED = Family(
    ("Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
    partial(_read, width=0, window=1024, positions=262144),
)
