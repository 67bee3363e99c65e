"""Qwen3: heads of a size of their own, with norms of queries and keys before rotation."""

from __future__ import annotations

from dataclasses import replace

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.families.decoder import decoder
from fastslow.engine.model.families.family import (
    GGUF_HEAD_NORMS,
    GGUF_LAYER,
    Family,
    GgufNames,
)
from fastslow.engine.model.families.qwen2 import late_windows
from fastslow.engine.model.fields import boolean
from fastslow.engine.model.shape import DecoderShape
from fastslow.engine.model.shard_rules import HEAD_NORM_CUTS


def read(raw: ConfigJson) -> DecoderShape:
    """Heads have 128 dims where `head_dim` is missing."""
    shape = normed(raw, dense=True)
    return replace(shape, windows=late_windows(raw, shape.layers))


def normed(raw: ConfigJson, dense: bool) -> DecoderShape:
    """The layers of Qwen3, all of whose rows see all."""
    if not boolean(raw, "use_qk_norm", True):  # some configs say it
        raise ValueError("use_qk_norm false is not known here")
    bias = boolean(raw, "attention_bias", False)
    shape = decoder(raw, head_dim=128, dense=dense)
    return replace(shape, qkv_bias=bias, out_bias=bias, query_norm=True, key_norm=True)


FAMILY = Family(
    ("Qwen3ForCausalLM",), read, GgufNames("qwen3", GGUF_LAYER | GGUF_HEAD_NORMS), HEAD_NORM_CUTS
)
