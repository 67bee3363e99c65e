"""Fields that Gemma 3 and 4 read alike: layers by their type, with a rotation for each type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fastslow.engine.families.reading import FULL, SLIDING, TEXT_PART, decoder, layer_types
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.model.shape import DecoderShape, Layer

# Fields that config.json leaves out where they are those of the class.
USUAL: dict[str, Any] = {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8}
USUAL |= {"num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072}
USUAL |= {"bos_token_id": 2, "eos_token_id": 1, "hidden_activation": "gelu_pytorch_tanh"}
BASES = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
RENAMES = (
    *TEXT_PART,
    (".router.per_expert_scale", ".mlp.gate.per_expert_scale"),
    (".router.scale", ".mlp.gate.scale"),
    (".router.proj.", ".mlp.gate."),
    (".mlp.experts.", ".experts."),  # of GGUF files, once
    (".experts.", ".mlp.experts."),
)


def given(raw: ConfigJson, **usual: Any) -> ConfigJson:
    """The fields, with what holds where config.json is silent."""
    known = USUAL | usual
    found = raw.changed(**{name: x for name, x in known.items() if raw.get(name) is None})
    return found.changed(hidden_act=found["hidden_activation"])


def of_type(raw: ConfigJson, kind: str, usual: dict[str, Any]) -> ConfigJson:
    """The fields as a layer of this type reads them, with its own rotation. usual: that of layers that see all."""
    each, scaling = raw.inside("rope_parameters"), raw.inside("rope_scaling")
    base, theta = BASES[kind]
    own = each.inside(kind) or (usual if kind == FULL and not scaling else {})
    said = raw.get(base)
    fields = {
        "rope_theta": theta if said is None else said,
        **(scaling if kind == FULL else {}),
        **own,
    }
    for known in BASES:
        each.get(known)
    each.check_rest()
    return raw.changed(rope_parameters=fields, rope_scaling=None, rope_theta=None)


def types_of(raw: ConfigJson) -> list[str]:
    """The type of every layer: each sixth sees all, where nothing else is said."""
    every, _ = (
        raw.integer(name, 6) for name in ("sliding_window_pattern", "_sliding_window_pattern")
    )
    usual = [SLIDING if (n + 1) % every else FULL for n in range(raw.layers)]
    return [*layer_types(raw, (FULL, SLIDING), usual)]


def shape_of(raw: ConfigJson, layers: Iterable[Layer], norm: RmsNorm, *unread: str) -> DecoderShape:
    """A decoder of these layers. unread: beginnings of names of tensors that nothing reads."""
    found, cap = tuple(layers), raw.get("final_logit_softcapping")
    shape = decoder(raw, found[0], norm=norm, tied=True)
    return replace(
        shape,
        layers=found,
        embedding_scale=shape.hidden_size**0.5,
        logit_cap=0.0 if cap is None else raw.number("final_logit_softcapping"),
        fused=("experts",),
        left_out=(*shape.left_out, *unread),
        renames=RENAMES,
    )
