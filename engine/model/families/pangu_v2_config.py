"""What openPangu Pro MoE V2 (openPangu-R-72B) has beside the other architectures, read from config.json.

Two spellings are known: the published config.json's (`num_experts`, `mlp_only_layers`,
`num_mtp_layers`) and the one of public inference code (`n_routed_experts`, `first_k_dense_replace`,
`num_nextn_predict_layers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastslow.engine.host.files import shown
from fastslow.engine.model.fields import MOST_LAYERS, boolean, count, integer, number, text

MOST_SINKS = 65_536
MOST_SCALE = 1e6
FIRST, LAST = "interleaved-first", "halves-last"


@dataclass(frozen=True, slots=True)
class PanguV2Config:
    """Learned sinks, norms on keys and behind sublayers, partial rotation, one group of experts.

    Attributes:
        top_k: experts that a token runs, the best of all.
        value_dim: of a head's values; keys and queries have `head_dim`.
        rotary_dim: dims of a head that are rotated.
        rotary_layout: which: "interleaved-first" are the first, pairs side by side, as in Huawei's
            own inference code; "halves-last" are the last, a pair half of them apart.
        sinks: learned keys that every token sees, before its text.
        sink_values: whether their values are learned, too; else they are zeros.
        expert_bias: whether the choice of experts adds a bias, which their weights do not have.
        expert_norm: whether the chosen weights are divided by their sum.
        expert_scale: what they are multiplied with then.
        sandwich: whether the outputs of attention and MLP are normed before they are added.
        draft_layers: layers for multi-token prediction, behind the others in the checkpoint.
    """

    top_k: int
    value_dim: int
    rotary_dim: int
    rotary_layout: str
    sinks: int
    sink_values: bool
    expert_bias: bool
    expert_norm: bool
    expert_scale: float
    sandwich: bool
    draft_layers: int

    @classmethod
    def of(cls, raw: Mapping[str, Any], head_dim: int) -> PanguV2Config:
        """From fields as `published` gives them. ValueError names the field, its value, the limit."""
        rotary = integer(raw, "qk_rope_dim", default=head_dim)
        if rotary % 2 or rotary > head_dim:
            raise ValueError(f"qk_rope_dim {rotary} must be even and at most {head_dim}")
        values = integer(raw, "v_channels", default=head_dim)
        if values > head_dim:
            raise ValueError(f"v_channels {values} must be at most {head_dim}, the keys' size")
        layout = text(raw, "rotary_layout", default=FIRST) or FIRST
        if layout not in (FIRST, LAST):
            raise ValueError(f"rotary_layout {shown(layout)} is not one of {FIRST}, {LAST}")
        experts = integer(raw, "num_experts")
        top_k = integer(raw, "num_experts_per_tok")
        if top_k > experts:
            raise ValueError(f"num_experts_per_tok {top_k} must be at most num_experts {experts}")
        for field in ("bias", "attention_bias", "qkv_bias"):
            if boolean(raw, field, False):
                raise ValueError(f"{field} True is not supported with this architecture")
        return cls(
            top_k=top_k,
            value_dim=values,
            rotary_dim=rotary,
            rotary_layout=layout,
            sinks=count(raw, "param_sink_number", most=MOST_SINKS),
            sink_values=boolean(raw, "param_sink_with_value", False),
            expert_bias=boolean(raw, "router_enable_expert_bias", False),
            expert_norm=boolean(raw, "norm_topk_prob", True),
            expert_scale=number(raw, "routed_scaling_factor", 1.0, most=MOST_SCALE),
            sandwich=boolean(raw, "sandwich_norm", False),
            draft_layers=count(raw, "num_mtp_layers"),
        )


def published(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the published spelling, with `head_dim` of the two parts that it has."""
    fields = {
        name: value
        for theirs, name in (
            ("n_routed_experts", "num_experts"),
            ("num_nextn_predict_layers", "num_mtp_layers"),
        )
        if (value := raw.get(theirs)) is not None
    }
    if raw.get("n_shared_experts") is not None:
        shared = integer(raw, "n_shared_experts") * integer(raw, "moe_intermediate_size")
        fields["shared_expert_intermediate_size"] = shared
    if raw.get("first_k_dense_replace") is not None:
        layers = integer(raw, "num_hidden_layers", most=MOST_LAYERS)
        fields["mlp_only_layers"] = list(range(count(raw, "first_k_dense_replace", most=layers)))
    if raw.get("qk_nope_dim") is not None:
        fields["head_dim"] = integer(raw, "qk_nope_dim") + integer(raw, "qk_rope_dim")
    return {**fields, **{k: v for k, v in raw.items() if v is not None}}
