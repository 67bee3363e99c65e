"""GGUF files of Gemma 4 and its assistant: the names of their tensors and header keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastslow.engine.families.gemma.gemma3 import GEMMA3, by_type
from fastslow.engine.families.reading import FULL, SLIDING, halves
from fastslow.engine.host.files import shown
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.family import GGUF_EXPERT_FIELDS, GGUF_EXPERTS

# Sizes of heads that no config.json has beside the others.
OWN = {"attention.value_length": "value_dim", "attention.value_length_swa": "window_value_dim"}
OWN |= {"rope.dimension_count": "turning", "rope.dimension_count_swa": "window_turning"}


def _from_gguf(raw: dict[str, Any]) -> None:
    """Sizes of heads by layer, widths of MLPs, and the share of a head that turns, which factors say."""
    by_type(raw)
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
    finish=_from_gguf,
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
