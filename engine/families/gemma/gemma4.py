"""Gemma 4: as Gemma 3, with heads of two sizes, shared and made keys, per-layer embeddings, experts beside the MLP."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fastslow.engine.families.gemma.gguf import GEMMA4
from fastslow.engine.families.gemma.typed import given, of_type, shape_of, types_of
from fastslow.engine.families.reading import FULL, attending, feeding, mixture, norm_of, window_of
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import Family
from fastslow.engine.model.ffn.dense import DenseMlp
from fastslow.engine.model.ffn.parallel import ParallelFfn
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.ffn.token_input import PerLayerEmbedding, TokenInput
from fastslow.engine.model.norms import LayerNorms, RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer

PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.25}
PER_LAYER, HEADS = "hidden_size_per_layer_input", ("head_dim", "num_key_value_heads")
SIZES = "per_layer_config"  # of heads; saved models that have it lack `global_head_dim`


def _read(raw: ConfigJson, width: int = 256, window: int = 512, end: int = 1 << 17) -> DecoderShape:
    """The last `num_kv_shared_layers` read the keys of the last layer of their type before them; the last of all layers
    has no window. width, window, end: of per-layer embeddings, windows and texts, where nothing is said."""
    raw = given(raw, vocab_size=262144, max_position_embeddings=end)
    raw.expect({"use_bidirectional_attention": "vision"})  # and texts are read in one direction
    norm, types = norm_of(raw), types_of(raw)
    types[-1], layers = FULL, len(types)
    own = layers - raw.count("num_kv_shared_layers", most=layers - 1)
    last = {kind: n for n, kind in enumerate(types[:own])}
    if missing := set(types) - last.keys():
        raise ValueError(f"num_kv_shared_layers {layers - own} leaves no {min(missing)} with keys")
    made, window = raw.boolean("attention_k_eq_v"), window_of(raw, window)
    full = {"head_dim": raw.integer("global_head_dim", 512)}
    if (heads := raw.get("num_global_key_value_heads")) is not None and made:
        full["num_key_value_heads"] = heads
    sizes = raw.inside(SIZES)
    each = [sizes.inside(str(n)) for n in range(layers)]
    sizes.check_rest()
    dense, wide = feeding(raw), 1 + raw.boolean("use_double_wide_mlp")
    ffn = _experts(raw, dense, norm)
    width = 0 if raw.get(PER_LAYER, 0) is None else raw.width(PER_LAYER, width, least=0)
    table = raw.integer("vocab_size_per_layer_input", 262144)
    token_input = TokenInput(width, dense.activation, norm) if width else None

    def one(n: int, layer: Layer) -> Layer:
        kind, shares = types[n], last[types[n]] if n >= own else None
        said = each[n] if SIZES in raw else full if kind == FULL else {}
        sized = {name: said[name] for name in HEADS if name in said}
        each[n].check_rest()
        own_fields = of_type(raw, kind, PROPORTIONAL).changed(**sized)
        mixer = replace(
            attending(own_fields, bias="attention_bias"),
            query_norm=norm,
            key_norm=norm if shares is None else None,
            value_norm=norm if shares is None else None,
            keys_as_values=made and kind == FULL,
            window=0 if kind == FULL else window,
            score_scale=1.0,
            shares=shares,
        )
        mlp = replace(dense, width=dense.width * (1 if shares is None else wide))
        return replace(layer, mixer=mixer, ffn=mlp if ffn is None else replace(ffn, dense=mlp))

    usual = Layer(attending(of_type(raw, FULL, PROPORTIONAL)), dense, LayerNorms(norm, after=True))
    usual = replace(usual, token_input=token_input, scaled=True)
    unread = (f"model.layers.{n}.self_attn.{side}_" for n in range(own, layers) for side in "kv")
    shape = shape_of(raw, [usual] * layers, norm, *unread).each(one)
    embedding = PerLayerEmbedding(table, layers, width, norm) if width else None
    return replace(shape, per_layer_embedding=embedding)


def _experts(raw: ConfigJson, dense: DenseMlp, norm: RmsNorm) -> ParallelFfn | None:
    if not raw.boolean("enable_moe_block"):
        return None
    router = Router("softmax", raw.integer("top_k_experts"), input_norm=norm, per_expert_scale=True)
    return ParallelFfn(dense, mixture(raw, router, "num_experts", "moe_intermediate_size"), norm)


GEMMA_4 = Family(("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"), _read, GEMMA4)
GEMMA_4_UNIFIED = Family(
    ("Gemma4UnifiedForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
    partial(_read, width=0, window=1024, end=1 << 18),
)
