"""What a family of models says of itself, and the families that are registered.

The families themselves stand above, in `engine/families`: nothing in here knows one by its name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `import fastslow` registers families, and stays light
    from fastslow.engine.host.gguf_file import GgufFile
    from fastslow.engine.model.config_json import ConfigJson
    from fastslow.engine.model.shape import DecoderShape

GGUF_ARCHITECTURE = "general.architecture"
GGUF_TOP = {  # tensors of every architecture, without the ending .weight
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
GGUF_FIELDS = {  # header keys of every architecture, after its name and a point
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
GGUF_LAYER = {  # tensors of a dense layer, after "blk.N."
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

    architecture: `general.architecture`. layer: from what stands after "blk.N." to what stands after
    "model.layers.N.", both without ".weight" or ".bias". interleaved: rows of q and k lie in pairs
    (2i, 2i + 1) of a head, not half a head apart. fields: further header keys after "<architecture>.", and the
    fields of config.json that they stand for; "a.b" is field b of object a. given: fields of all such files."""

    architecture: str
    layer: Mapping[str, str]
    interleaved: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


def as_spelled(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields as they are."""
    return raw


@dataclass(frozen=True, slots=True)
class Family:
    """Architectures, as config.json names them, that one function reads: fields of config.json to a shape.

    read raises ValueError for what it does not know. gguf: how GGUF files spell it; None where they do not."""

    architectures: tuple[str, ...]
    read: Callable[[ConfigJson], DecoderShape]
    gguf: GgufNames | None = None
    spelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = as_spelled


_registered: dict[str, Family] = {}  # by architecture
_to_load: list[Callable[[], Sequence[Family]]] = []
_loading = threading.RLock()  # two threads may open their first model at once


def register(*families: Family) -> None:
    """Make families known; one with an architecture that is known already takes its place."""
    _known().update({name: family for family in families for name in family.architectures})


def register_on_use(load: Callable[[], Sequence[Family]]) -> None:
    """Make families known that are loaded when the first model is opened."""
    _to_load.append(load)


def _known() -> dict[str, Family]:
    with _loading:
        while _to_load:
            _registered.update({name: f for f in _to_load.pop(0)() for name in f.architectures})
    return _registered


def family_of(architecture: object) -> Family:
    """The family of an architecture in config.json. ValueError: none has it."""
    known = _known()
    family = known.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise _unknown("architecture", architecture, known)
    return family


def architecture_in(raw: Mapping[str, Any]) -> object:
    """The first of `architectures` in a config.json."""
    names = raw.get("architectures")
    return names[0] if isinstance(names, list) and names else names


def gguf_family(file: GgufFile) -> tuple[Family, GgufNames]:
    """The family of a GGUF file, and how the file spells it. ValueError: none has its architecture."""
    architecture = str(file.fields.get(GGUF_ARCHITECTURE))
    spelled = {f.gguf.architecture: (f, f.gguf) for f in _known().values() if f.gguf is not None}
    if architecture not in spelled:
        raise _unknown(GGUF_ARCHITECTURE, architecture, spelled)
    return spelled[architecture]


def _unknown(field: str, value: object, known: Iterable[str]) -> ValueError:
    from fastslow.engine.checked import shown

    return ValueError(f"{field} {shown(value)} is not one of the known {', '.join(known)}")
