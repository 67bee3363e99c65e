"""What a family of models says of itself; `catalog.py` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastslow.engine.model.families.config_json import ConfigJson
from fastslow.engine.model.fused import Fused
from fastslow.engine.model.layer_shapes import Shapes, decoder_layer
from fastslow.engine.model.shape import DecoderShape
from fastslow.engine.model.shard_rules import Cuts

GGUF_TOP = {  # tensors of every architecture, without the ending .weight
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_FIELDS = {  # header keys of every architecture, behind its name and a point
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": "rope_scaling.rope_type",
    "rope.scaling.factor": "rope_scaling.factor",
    "rope.scaling.original_context_length": "rope_scaling.original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "rope_scaling.beta_fast",
    "rope.scaling.yarn_beta_slow": "rope_scaling.beta_slow",
}
GGUF_LAYER = {  # tensors of a dense layer, behind "blk.N."
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GGUF_EXPERTS = {  # [experts, out, in] each; * is the expert's number
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}


@dataclass(frozen=True, slots=True)
class GgufNames:
    """How GGUF files spell a family.

    Attributes:
        architecture: `general.architecture`.
        layer: from what stands behind "blk.N." to what stands behind "model.layers.N.", both without
            the ending ".weight" or ".bias", which stays.
        interleaved: rows of q and k lie in pairs (2i, 2i + 1) of a head, not half a head apart.
        fields: header keys behind "<architecture>." that only this family has, and the fields of config.json that
            they stand for; "a.b" is field b of object a.
        given: fields that hold for all such files, whose header does not say so.
    """

    architecture: str
    layer: Mapping[str, str]
    interleaved: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


def as_spelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields as they are."""
    return raw


def as_named(name: str) -> str:
    """The name as it is."""
    return name


def not_fused(shape: DecoderShape) -> Iterator[Fused]:
    """Files hold the model's tensors one by one."""
    return iter(())


def no_shapes(shape: DecoderShape) -> Shapes:
    """Nothing beside the decoder."""
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """Architectures that one piece of code reads.

    Attributes:
        architectures: as config.json names them.
        read: the shape, from the fields of config.json. ValueError for what it does not know.
        gguf: how GGUF files spell it; None where they do not.
        cuts: how ranks share tensors that not every family has; before the usual rules.
        spelled: config.json's fields in one spelling, where there are several.
        canonical: a tensor's name in one spelling.
        layer_shapes: a layer's tensors.
        draft_shapes: tensors of a layer behind the others that drafts.
        fused: layouts of a file that hold several tensors in one.
        packings: values of `quantization_config.quant_method` that `fused` reads.
    """

    architectures: tuple[str, ...]
    read: Callable[[ConfigJson], DecoderShape]
    gguf: GgufNames | None = None
    cuts: Cuts = ()
    spelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = as_spelled
    canonical: Callable[[str], str] = as_named
    layer_shapes: Callable[[DecoderShape, int], Shapes] = decoder_layer
    draft_shapes: Callable[[DecoderShape], Shapes] = no_shapes
    fused: Callable[[DecoderShape], Iterator[Fused]] = not_fused
    packings: tuple[str, ...] = ()
