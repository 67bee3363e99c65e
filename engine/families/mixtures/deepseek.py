"""DeepSeek V2 to V3.2, GLM-4.7-Flash, GLM-5: latent attention, experts in groups of which some are kept, shared
experts, and a layer that drafts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.mixture import (
    GATE,
    NEXTN,
    SIGMOID,
    SOFTMAX,
    SPARSE,
    TENSORS,
    sigmoid_router,
    sparse_decoder,
)
from fastslow.engine.families.reading import layer_types, rope_fields, rotation_of, stretch
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER, Family, GgufNames
from fastslow.engine.model.ffn.router import Router
from fastslow.engine.model.mixers.indexer import Indexer
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.mixers.rope import Rope
from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer

LATENT_EPS = 1e-6  # whatever rms_norm_eps says
GREEDY, LIMITED = "greedy", "group_limited_greedy"
MULTIPLIER = "yarn_log_multiplier"  # in headers: a tenth of mscale_all_dim
# Layers that choose what rows see, and those that take an earlier one's choice.
FULL, SHARED = "full", "shared"


def _v2(raw: ConfigJson) -> DecoderShape:
    """Softmax over all experts; of groups, the best expert of each says which are kept."""
    raw.expect({"scoring_func": "softmax", "norm_topk_prob": False})
    if (method := raw.text("topk_method", GREEDY)) not in (GREEDY, LIMITED):
        raise ValueError(f"topk_method {shown(method)} is not one of {GREEDY}, {LIMITED}")
    groups, kept = raw.integer("n_group", 1), raw.integer("topk_group", 1)
    router = Router(
        "softmax",
        raw.integer("num_experts_per_tok"),
        normed=False,
        scale=raw.number("routed_scaling_factor", 1.0),
        groups=groups if method == LIMITED else 0,
        kept_groups=kept,
        group_best=1,
    )
    return replace(_latent(raw, router, 0, 2), mtp=None)


def _v3(raw: ConfigJson) -> DecoderShape:
    """Sigmoids with a bias of the choice; of groups, the two best experts of each say which are kept."""
    return _sigmoid(raw, sigmoid_router(raw, 8, 8, 4, 2.5), 3)


def _lite(raw: ConfigJson) -> DecoderShape:
    """The same with other numbers where config.json is silent."""
    return _sigmoid(raw, sigmoid_router(raw, 4, scale=1.8), 1)


def _sigmoid(raw: ConfigJson, router: Router, dense: int) -> DecoderShape:
    raw.expect({"scoring_func": "sigmoid", "topk_method": "noaux_tc"})
    return _latent(raw, router, dense, 1)


def _v32(raw: ConfigJson) -> DecoderShape:
    """Each row chooses `index_topk` tokens to see: up to so many it sees all."""
    return _sparse(raw, _v3(raw), 64, False)


def _glm5(raw: ConfigJson) -> DecoderShape:
    """The same; in some files several layers share a choice."""
    return _sparse(raw, _v3(raw), 32, True)


def _sparse(raw: ConfigJson, shape: DecoderShape, heads: int, interleaved: bool) -> DecoderShape:
    raw.expect({"layer_types": "indexed_attention"})
    indexer = indexer_of(raw, heads, interleaved)
    kinds = _choosing(raw, len(shape.layers))

    def sparse(n: int, layer: Layer) -> Layer:
        shared = n < len(kinds) and kinds[n] == SHARED
        assert isinstance(layer.mixer, LatentAttention)
        return replace(layer, mixer=replace(layer.mixer, indexer=replace(indexer, shared=shared)))

    shares = [n for n, kind in enumerate(kinds) if kind == SHARED]
    unread = tuple(f"model.layers.{n}.self_attn.indexer." for n in shares)
    choosing = shape.each(sparse).each_head(sparse)
    return replace(choosing, left_out=unread)


def indexer_of(raw: ConfigJson, heads: int, interleaved: bool) -> Indexer:
    """heads, interleaved: where config.json is silent."""
    layout = raw.boolean("indexer_rope_interleave", interleaved)
    return Indexer(
        raw.heads("index_n_heads", heads),
        raw.head_dim("index_head_dim", 128),
        raw.integer("index_topk", 2048),
        "interleaved-first" if layout else "halves-first",
    )


def _choosing(raw: ConfigJson, layers: int) -> list[str]:
    """`indexer_types`, a pattern of letters, or one of every `index_topk_freq` layers after the first ones."""
    every = raw.integer("index_topk_freq", 1)
    first = raw.count("index_skip_topk_offset", 2)
    usual = [SHARED if max(n - first + 1, 0) % every else FULL for n in range(layers)]
    pattern = raw.get("index_topk_pattern")
    if isinstance(pattern, str):
        pattern = [{"F": FULL, "S": SHARED}.get(letter, letter) for letter in pattern]
    if pattern is not None:
        named = {"index_topk_pattern": pattern}
        usual = layer_types(ConfigJson(named, FULL), (FULL, SHARED), usual, "index_topk_pattern")
    kinds = layer_types(raw, (FULL, SHARED), usual, "indexer_types")
    if kinds[0] != FULL:
        raise ValueError("indexer_types begins with shared: there is no choice before it")
    return kinds


def _latent(raw: ConfigJson, router: Router, dense: int, shares: int) -> DecoderShape:
    """The first `first_k_dense_replace` layers are dense, or those that `mlp_layer_types` says."""
    layers, first = raw.layers, raw.count("first_k_dense_replace", dense)
    usual = ["dense" if n < first else "sparse" for n in range(layers)]
    kinds = layer_types(raw, ("dense", "sparse"), usual, "mlp_layer_types")
    each = {n for n, kind in enumerate(kinds) if kind == "dense"}
    mixer = latent_mixer(raw, RmsNorm(LATENT_EPS))
    shape = sparse_decoder(raw, mixer, router, each, shares)
    return replace(shape, fused=(*shape.fused, "latent"))


def latent_mixer(raw: ConfigJson, norm: RmsNorm, interleaved: bool = True) -> LatentAttention:
    """The attention of all layers. norm: of latents. interleaved: how dims turn where config.json is silent."""
    heads = raw.heads("num_attention_heads")
    nope, turning, values = (
        raw.head_dim(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    sizes = {"num_key_value_heads": heads, "head_dim": turning, "qk_head_dim": nope + turning}
    raw.expect({**sizes, "moe_layer_freq": 1})
    positions = raw.integer("max_position_embeddings")
    base, scaling, _ = rotation_of(raw, 10000.0, None, positions)
    layout = "interleaved-first" if raw.boolean("rope_interleave", interleaved) else "halves-first"
    scale = (nope + turning) ** -0.5
    if scaling is not None and scaling.kind == "yarn":
        scale *= stretch(scaling.factor, rope_fields(raw).get("mscale_all_dim") or 0.0) ** 2
    return LatentAttention(
        heads,
        nope,
        Rope(turning, base, positions, scaling, layout=layout),
        values,
        raw.width("kv_lora_rank"),
        raw.width("q_lora_rank", 0, least=0),
        scale,
        norm=norm,
    )


def _of_header(raw: ConfigJson) -> DecoderShape:
    """Files of all these families have one architecture: how experts are chosen says which it is."""
    return _v2(raw) if raw.get("scoring_func") == "softmax" else _v3(raw)


def _header(raw: dict[str, Any]) -> None:
    """Newer files say the sizes of heads apart from what a token keeps; older ones say them alone. Those without a bias
    of the choice that do not say how experts are chosen are of V2."""
    sizes, biased = raw.pop("heads"), raw.pop("biased", False)
    raw.pop("num_key_value_heads", None)
    key, value = ("key_mla", "value_mla") if "key_mla" in sizes else ("key", "value")
    raw["v_head_dim"] = ConfigJson(sizes).integer(value)
    turning = ConfigJson(raw).integer("qk_rope_head_dim")
    raw["qk_nope_head_dim"] = ConfigJson(sizes).integer(key) - turning
    gate = raw.pop(GATE, SIGMOID if biased else SOFTMAX)
    if gate not in (SOFTMAX, SIGMOID):
        raise ValueError(f"{GATE} {shown(gate)} is not one of {SOFTMAX}, {SIGMOID}")
    if gate == SOFTMAX:
        limited = ConfigJson(raw).integer("n_group") > 1
        raw |= {"scoring_func": "softmax", "topk_method": LIMITED if limited else GREEDY}
    rope = raw["rope_scaling"]
    if (said := rope.pop("mscale_all_dim", None)) and rope.get("rope_type") == "yarn":
        of_all = round(ConfigJson({MULTIPLIER: said}).number(MULTIPLIER) * 10, 6)  # of float32
        rope |= {"mscale": of_all, "mscale_all_dim": of_all}


def _sparse_header(raw: dict[str, Any]) -> None:
    """Files that do not say which layers choose show it by their tensors."""
    _header(raw)
    own = raw.pop(CHOOSING)
    usual = [n in own for n in range(raw["num_hidden_layers"])]
    kinds = raw.get("indexer_types") or usual
    if isinstance(kinds, list):  # else the reader refuses it
        raw["indexer_types"] = [FULL if chooses is True else SHARED for chooses in kinds]


LATENT = {  # tensors of GGUF files
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}
RANKS = {  # fields of their headers
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
}
INDEXER = {  # fields of headers, too
    "attention.indexer.head_count": "index_n_heads",
    "attention.indexer.key_length": "index_head_dim",
    "attention.indexer.top_k": "index_topk",
}
INDEX_TENSORS = {"k_norm": "k_norm", "proj": "weights_proj", "attn_k": "wk", "attn_q_b": "wq_b"}
CHOOSING = "layers_with_indexers"
V2 = Family(("DeepseekV2ForCausalLM",), _v2)
LITE = Family(("Glm4MoeLiteForCausalLM",), _lite)
V32 = Family(("DeepseekV32ForCausalLM",), _v32)
DEEPSEEK2 = GgufNames(
    "deepseek2",
    {**GGUF_LAYER, **TENSORS, **NEXTN, **LATENT},
    fields={
        **SPARSE,
        **RANKS,
        "attention.key_length": "heads.key",
        "attention.value_length": "heads.value",
        "attention.key_length_mla": "heads.key_mla",
        "attention.value_length_mla": "heads.value_mla",
        f"rope.scaling.{MULTIPLIER}": "rope_scaling.mscale_all_dim",
    },
    given={
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "heads": {},
    },
    present={"exp_probs_b.bias": "biased"},
    finish=_header,
)
V3 = Family(("DeepseekV3ForCausalLM",), _of_header, DEEPSEEK2)
GLM_DSA = replace(
    DEEPSEEK2,
    architecture="glm-dsa",
    layer={
        **DEEPSEEK2.layer,
        **{f"indexer.{name}": f"self_attn.indexer.{x}" for name, x in INDEX_TENSORS.items()},
    },
    fields={**DEEPSEEK2.fields, **INDEXER, "attention.indexer.types": "indexer_types"},
    lists={"indexer.k_norm.weight": CHOOSING},
    finish=_sparse_header,
)
GLM5 = Family(("GlmMoeDsaForCausalLM",), _glm5, GLM_DSA)
