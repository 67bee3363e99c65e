"""GGUF files of Gemma 3 and 4: the names of their tensors and header keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import FULL, SLIDING, halves
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import (
    GGUF_EXPERT_FIELDS,
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER_AROUND,
    GgufNames,
)

# Fields that these files stand for, and no config.json has.
APPLIED = "weights_applied"  # norms have the one that checkpoints leave out
OWN = {"attention.value_length": "value_dim", "attention.value_length_swa": "window_value_dim"}
OWN |= {"rope.dimension_count": "turning", "rope.dimension_count_swa": "window_turning"}
PATTERN = "sliding_window_pattern"
# Layers of the one Gemma 3 whose scores are divided by the root of hidden_size / heads.
LARGEST = 62


def _by_type(raw: dict[str, Any]) -> None:
    """Types of layers are marks of those that see a window."""
    marks = raw.get(PATTERN)
    if isinstance(marks, list):
        raw["layer_types"] = [SLIDING if mark else FULL for mark in raw.pop(PATTERN)]


def _gemma3(raw: dict[str, Any]) -> None:
    _by_type(raw)
    said, scale = ConfigJson(raw), raw.get("head_dim", 256)
    if said.layers == LARGEST:
        scale = said.width("hidden_size") // said.heads("num_attention_heads")
    raw["query_pre_attn_scalar"] = scale
    if "sliding_window" not in raw:
        raw[PATTERN] = 1


def _gemma4(raw: dict[str, Any]) -> None:
    """Sizes of heads by layer, widths of MLPs, and the share of a head that turns, which factors say."""
    _by_type(raw)
    layers, types = ConfigJson(raw).layers, raw.get("layer_types", [])
    dims = {FULL: raw.pop("global_head_dim", None), SLIDING: raw.get("head_dim")}
    for name in OWN.values():
        dim = dims[SLIDING if name.startswith("window") else FULL]
        if (said := raw.pop(name, dim)) != dim:
            raise ValueError(f"the {name} {shown(said)} of heads must be their {shown(dim)} dims")
    heads = raw.get("num_key_value_heads")
    every = heads if isinstance(heads, list) else [heads] * len(types)
    if len(every) != len(types):
        raise ValueError(f"attention.head_count_kv {shown(heads)} must have {len(types)} numbers")
    sizes = ({"head_dim": dims[t], "num_key_value_heads": n} for t, n in zip(types, every))
    raw["per_layer_config"] = {str(n): size for n, size in enumerate(sizes)}
    raw["num_key_value_heads"] = every[0] if every else None
    widths = raw.get("intermediate_size")
    own = layers - ConfigJson(raw).count("num_kv_shared_layers")
    if isinstance(widths, list) and widths:
        first, last = widths[0], widths[-1]
        if widths != [first] * own + [last] * (layers - own) or last not in (first, 2 * first):
            raise ValueError(
                f"feed_forward_length {shown(widths)} must double in layers without keys"
            )
        raw |= {"intermediate_size": first, "use_double_wide_mlp": last != first}
    raw["enable_moe_block"] = bool(raw.get("num_experts"))
    raw["vocab_size_per_layer_input"] = raw["vocab_size"]
    factors = raw["rope_scaling"].get("factors")
    if factors is not None:
        turning = factors.count(1.0)
        if not turning or min(factors[turning:], default=1e30) < 1e29:
            raise ValueError(
                "rope_freqs.weight must have ones, then 1e30 for pairs that stand still"
            )
        share = turning / len(factors)
        raw["rope_scaling"] = {"rope_type": "proportional", "partial_rotary_factor": share}


GEMMA3 = GgufNames(
    "gemma3",
    GGUF_LAYER_AROUND | GGUF_HEAD_NORMS,
    fields={
        "attention.sliding_window": "sliding_window",
        f"attention.{PATTERN}": PATTERN,
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    given={APPLIED: True},
    finish=_gemma3,
)
GEMMA4 = replace(
    GEMMA3,
    architecture="gemma4",
    layer={
        **GEMMA3.layer,
        **GGUF_EXPERTS,
        "ffn_gate_up_exps": "mlp.experts.*.gate_up_proj",
        "ffn_gate_inp.scale": "mlp.gate.scale",
        "ffn_down_exps.scale": "mlp.gate.per_expert_scale",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
        "layer_output_scale.weight": "layer_scalar",
    },
    fields={
        **GEMMA3.fields,
        **OWN,
        "attention.key_length": "global_head_dim",
        "attention.key_length_swa": "head_dim",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        **GGUF_EXPERT_FIELDS,
        "expert_used_count": "top_k_experts",
    },
    given={"hidden_size_per_layer_input": 0},
    finish=_gemma4,
    parts={"ffn_gate_up_exps": halves},
    top={
        "per_layer_token_embd": "model.embed_tokens_per_layer",
        "per_layer_model_proj": "model.per_layer_model_projection",
        "per_layer_proj_norm": "model.per_layer_projection_norm",
    },
)
ASSISTANT = replace(
    GEMMA4,
    architecture="gemma4-assistant",
    fields={**GEMMA4.fields, "embedding_length_out": "backbone_hidden_size"},
    unread=("nextn_predict_layers",),
    top={f"nextn.{side}_projection": f"{side}_projection" for side in ("pre", "post")},
)
