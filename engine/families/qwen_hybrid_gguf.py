"""GGUF files of Qwen3-Next, Qwen3.5 and 3.6: the names of their tensors and header keys.

Norms there have the one that checkpoints leave out, and decays are -exp(A_log). Value heads of `qwen35` and `qwen35moe`
come in turn over the key heads, those of `qwen3next` key head by key head, as in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.families.reading import FULL, LINEAR, halves, share_rotated
from fastslow.engine.host.files import shown
from fastslow.engine.model.config import ROTATED
from fastslow.engine.model.family import (
    GGUF_EXPERT_FIELDS,
    GGUF_EXPERTS,
    GGUF_HEAD_NORMS,
    GGUF_LAYER_POST,
    GGUF_SHARED,
    Fields,
    GgufNames,
)

# Fields that these files stand for, and no config.json has.
APPLIED, TILED = "weights_applied", "value_heads_in_turn"
INNER, RECURRENT = "linear_values", "recurrent_layers"
COPIES = "embed_tokens", "shared_head_head"  # of the model's, beside the layer that drafts


def _header(raw: dict[str, Any]) -> None:
    """Layer types, sizes and shares, which headers say otherwise."""
    recurrent, layers = raw.pop(RECURRENT, None), raw["num_hidden_layers"]
    if recurrent is not None:
        kinds = recurrent if isinstance(recurrent, list) else [recurrent] * layers
        raw["layer_types"] = [LINEAR if kind else FULL for kind in kinds[:layers]]
    heads, inner = raw.get("linear_num_value_heads"), raw.pop(INNER, None)
    if not isinstance(inner, int) or not isinstance(heads, int) or heads < 1 or inner % heads:
        raise ValueError(
            f"ssm.inner_size {shown(inner)} must be a multiple of ssm.time_step_rank {shown(heads)}"
        )
    raw["linear_value_head_dim"] = inner // heads
    share_rotated(raw)


def _by_key_head(
    places: Sequence[str], before: int
) -> Callable[[int, Fields], dict[str, NDArray[np.int64]]]:
    """Rows that lie by key heads, several tensors' in each: first `before` parts as wide as a key, then two alike."""

    def parts(rows: int, header: Fields) -> dict[str, NDArray[np.int64]]:
        heads, key = header["ssm.group_count"], header["ssm.state_size"]
        left = rows // heads - before * key
        if rows % heads or left < 2 or left % 2:
            raise ValueError(
                f"{rows} rows of {', '.join(places)} are not those of {heads} key heads of {key}"
            )
        cuts = np.cumsum([key] * before + [left // 2])
        each = np.split(np.arange(rows).reshape(heads, -1), cuts, axis=1)
        found: dict[str, NDArray[np.int64]] = {}
        for place, order in zip(places, each, strict=True):
            found[place] = np.append(found.get(place, order[:0]), order)
        return found

    return parts


DELTA = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_a": "linear_attn.decay",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
APART = {"ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b"}
JOINED = {"ssm_ba": "linear_attn.in_proj_ba", "ssm_in": "linear_attn.in_proj_qkvz"}
MIXTURE = {
    **GGUF_EXPERTS,
    **GGUF_SHARED,
    "ffn_gate_up_exps": "mlp.experts.*.gate_up_proj",
}
COMMON = {
    **GGUF_LAYER_POST,
    **GGUF_HEAD_NORMS,
    **DELTA,
}
QWEN35 = GgufNames(
    "qwen35",
    COMMON | APART,
    fields={
        "ssm.conv_kernel": "linear_conv_kernel_dim",
        "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads",
        "ssm.time_step_rank": "linear_num_value_heads",
        "ssm.inner_size": INNER,
        "ssm.v_head_reordered": TILED,  # of some converters
        "full_attention_interval": "full_attention_interval",
        "attention.recurrent_layers": RECURRENT,
        "rope.dimension_count": ROTATED,
        "rope.dimension_sections": "rope_parameters.mrope_section",
        "nextn_predict_layers": "mtp_num_hidden_layers",
    },
    given={APPLIED: True, TILED: True},
    finish=_header,
    axes={"ssm_conv1d": 1, "ffn_gate_inp_shexp": 0},
    parts={
        "ffn_gate_up_exps": halves,
        "ssm_ba": _by_key_head(("in_proj_b", "in_proj_a"), 0),
        "ssm_in": _by_key_head(("in_proj_qkv", "in_proj_qkv", "in_proj_qkv", "in_proj_z"), 2),
    },
    drafts={
        "nextn.eh_proj.weight": "mtp.fc.weight",
        "nextn.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
        "nextn.hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
        "nextn.shared_head_norm.weight": "mtp.norm.weight",
        **{f"nextn.{name}.weight": f"mtp.{name}.weight" for name in COPIES},
    },
)
QWEN35MOE = replace(
    QWEN35,
    architecture="qwen35moe",
    layer=COMMON | APART | MIXTURE,
    fields={
        **QWEN35.fields,
        **GGUF_EXPERT_FIELDS,
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    },
)
QWEN3NEXT = replace(
    QWEN35MOE,
    architecture="qwen3next",
    layer=COMMON | JOINED | MIXTURE,
    given={APPLIED: True},
)
