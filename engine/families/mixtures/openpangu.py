"""openPangu 2.0: latent attention with convolutions and learned latents, windows beside layers that choose what they
see, several residual streams, sigmoid-routed experts beside shared ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.mixtures.deepseek import (
    INDEXER,
    LATENT,
    RANKS,
    indexer_of,
    latent_mixer,
)
from fastslow.engine.families.mixtures.mixture import (
    NEXTN,
    SIGMOID,
    SPARSE,
    TENSORS,
    check_gate,
    sigmoid_router,
    sparse_decoder,
)
from fastslow.engine.families.pangu import MOST_SINKS, RENAMES
from fastslow.engine.families.reading import SLIDING, listed_layers, norm_of
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_LAYER_AROUND, Family, GgufNames
from fastslow.engine.model.ffn.streams import (
    MERGE,
    MOST_ROUNDS,
    MOST_STREAMS,
    WHOLE_NORM,
    Streams,
)
from fastslow.engine.model.shape import DecoderShape, Layer

MOST_TAPS = 64
COPY = "self_attn.kv_b_copy"  # which older GGUF files have beside the matrices of keys and values
STREAMS = {"phi": "phi", "alpha": "branch_alpha", "beta": "branch_beta", "gamma": "norm_gamma"}
INDEX_TENSORS = {"k_norm": "k_norm", "weights_proj": "weights_proj", "k": "wk", "q_b": "wq_b"}
SAID = (  # alike in headers and config.json
    *("mhc_num_stream", "mhc_recur_norm", "param_sink_number", "swa_layers"),
    "sliding_window_list",
)
ALWAYS = dict.fromkeys(("use_mhc", "mhc_use_gamma", "sandwich_norm"), True)


def _read(raw: ConfigJson) -> DecoderShape:
    """Layers of `swa_layers` see windows, the others the whole text, of which those of `dsa_layers` choose tokens."""
    raw.expect({**ALWAYS, "rope_interleave": False, "topk_method": "noaux_tc"})
    raw.get("param_sink_with_value")  # values are made of latents, whatever it says
    norm = norm_of(raw, 1e-5)
    mixer = replace(
        latent_mixer(raw, norm, interleaved=False),
        conv=raw.count("router_sliding_window", most=MOST_TAPS)
        if raw.boolean("use_mome", True)
        else 0,
        sinks=raw.count("param_sink_number", most=MOST_SINKS),
    )
    router = sigmoid_router(raw, 8, scale=2.5)
    router = replace(router, choice_bias=raw.boolean("router_enable_expert_bias", True))
    dense = range(raw.count("first_k_dense_replace"))
    shape = sparse_decoder(raw, mixer, router, dense)
    streams = Streams(
        raw.integer("mhc_num_stream", 4, MOST_STREAMS),
        raw.integer("mhc_recur_norm", 20, MOST_ROUNDS),
        merge_norm=norm,
    )
    windows, whole = _windows(raw), listed_layers(raw, "block_post_layernorm_idx")
    types = raw.get("layer_types") or []  # the same once more
    if not isinstance(types, list) or len(types) not in (0, raw.layers):
        raise ValueError(f"layer_types {shown(types)} must be a list of {raw.layers} types")
    if wrong := [n for n, kind in enumerate(types) if (kind == SLIDING) != (n in windows)]:
        raise ValueError(
            f"layer_types has {shown(types[wrong[0]])} for layer {wrong[0]}, unlike swa_layers"
        )
    indexer = replace(indexer_of(raw, 24, False), norm=norm)
    seeing = set(range(raw.layers)) - set(windows)
    choosing = seeing if raw.get("dsa_layers") is None else listed_layers(raw, "dsa_layers")
    if both := choosing - seeing:
        raise ValueError(f"dsa_layers has layer {min(both)}, which is one of swa_layers")

    def one(n: int, layer: Layer) -> Layer:
        return replace(
            layer,
            mixer=replace(
                mixer, window=windows.get(n, 0), indexer=indexer if n in choosing else None
            ),
            norms=replace(layer.norms, after=True),
            streams=replace(streams, whole_norm=norm if n in whole else None),
        )

    copies = tuple(f"model.layers.{n}.{COPY}" for n in range(len(shape.layers)))
    return replace(
        shape.each(one).each_head(lambda n, layer: replace(one(n, layer), streams=None)),
        fused=(*shape.fused, "latent"),
        left_out=(*shape.left_out, *copies),
        renames=(*shape.renames, *RENAMES),
    )


def _windows(raw: ConfigJson) -> dict[int, int]:
    """By layer; those that draft come after the model's own."""
    layers = raw.integers("swa_layers")
    usual = [raw.get("sliding_window")] * len(layers)
    each = usual if (said := raw.get("sliding_window_list")) is None else said
    if not isinstance(each, list) or len(each) != len(layers):
        raise ValueError(
            f"sliding_window_list {shown(each)} must have a window for each of the {len(layers)} swa_layers"
        )
    found = {
        n: ConfigJson({"a window": x}).integer("a window")
        for n, x in zip(layers, each, strict=True)
    }
    most = raw.layers + raw.count("num_nextn_predict_layers")
    if beyond := [n for n in layers if n >= most]:
        raise ValueError(
            f"swa_layers has {beyond[0]}, but must be below {most}, the number of layers"
        )
    return found


def _header(raw: dict[str, Any]) -> None:
    """The length of keys is that of all dims of a head."""
    check_gate(raw, SIGMOID)
    turning, whole = map(ConfigJson(raw).integer, ("qk_rope_head_dim", "qk_head_dim"))
    raw["qk_nope_head_dim"] = whole - turning


OPENPANGU = Family(
    ("OpenPanguV2ForCausalLM", "PanguV2MoEForCausalLM"),
    _read,
    GgufNames(
        "openpangu",
        {
            **GGUF_LAYER_AROUND,
            **TENSORS,
            **NEXTN,
            **LATENT,
            "attn_kv_b": COPY,
            "block_post_norm": WHOLE_NORM,
            "attn_qa_conv": "self_attn.qa_conv",
            "attn_compresskv_conv": "self_attn.compresskv_conv",
            "attn_o_conv": "self_attn.o_conv",
            "attn_param_sink_kv": "self_attn.param_sink_compressed_kv",
            "attn_param_sink_k_pe": "self_attn.param_sink_k_pe",
            **{
                f"{side}_mhc_{name}": f"{side}_mhc_module.{place}"
                for side in ("attn", "mlp")
                for name, place in STREAMS.items()
            },
            **{
                f"attn_indexer_{name}": f"self_attn.indexer.{x}"
                for name, x in INDEX_TENSORS.items()
            },
        },
        fields={
            **SPARSE,
            **RANKS,
            "attention.key_length": "qk_head_dim",
            "attention.value_length": "v_head_dim",
            "attention.sliding_window": "sliding_window",
            **INDEXER,
            **{name: name for name in SAID},
        },
        given={"router_sliding_window": 3, "norm_topk_prob": False},
        finish=_header,
        axes=dict.fromkeys(("attn_qa_conv", "attn_compresskv_conv", "attn_o_conv"), 1),
        top={
            "merge_mhc_phi": f"{MERGE}.phi",
            "merge_mhc_alpha": f"{MERGE}.branch_alpha_pre",
            "merge_mhc_beta": f"{MERGE}.branch_beta_pre",
            "merge_mhc_gamma": f"{MERGE}.norm_gamma",
        },
        lists={"block_post_norm.weight": "block_post_layernorm_idx"},
    ),
)
