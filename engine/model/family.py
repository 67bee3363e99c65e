"""Families of models: what one says of itself, and those that are registered.

The families themselves stand above, in `engine/families`: nothing in here knows one by its name.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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
GGUF_LAYER_POST = {  # the same where the norm before the MLP is named by what it comes after
    **{name: place for name, place in GGUF_LAYER.items() if name != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
}
GGUF_LAYER_AROUND = {  # the same with norms before and after both sublayers
    **GGUF_LAYER_POST,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GGUF_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GGUF_SHARED = {  # of the expert that every token runs
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
GGUF_EXPERTS = {  # [experts, out, in] each; * is the expert's number
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
GGUF_EXPERT_FIELDS = {  # header keys of experts
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


Fields = Mapping[str, Any]  # of a header, by what stands after "<architecture>."


@dataclass(frozen=True, slots=True)
class GgufNames:
    """Names by which GGUF files spell a family.

    architecture: `general.architecture`. layer: from what stands after "blk.N." to what stands after
    "model.layers.N.", both without ".weight" or ".bias", or both with all endings. interleaved: rows of q and k lie
    in pairs (2i, 2i + 1) of a head, not half a head apart. fields: further header keys after "<architecture>.", and
    the fields of config.json that they stand for; "a.b" is field b of object a. given: fields of all such files that
    do not say else. finish: changes the fields of config.json where theirs mean something else. axes: axes of 1 that
    files leave out. top: as `layer`, for tensors outside of layers that have other names than usual ones.
    present: tensors of blocks, and fields of config.json that are true where a file has them. lists: those of blocks.
    parts: for a tensor that holds the rows of several, a function of their number and the header: the place of each
    and which rows it has. drafts: as `layer`, of whole names, in blocks after the model's own, which are of a layer for
    multi-token prediction; none: such blocks are not known. unread: header keys that say nothing new."""

    architecture: str
    layer: Mapping[str, str]
    interleaved: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[dict[str, Any]], None] = field(default=lambda _: None)
    axes: Mapping[str, int] = field(default_factory=dict)
    top: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Callable[[int, Fields], Mapping[str, Any]]] = field(default_factory=dict)
    drafts: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def header(self, file: GgufFile) -> Fields:
        """The fields of a file that are of its architecture."""
        begin = f"{self.architecture}."
        return {n.removeprefix(begin): v for n, v in file.fields.items() if n.startswith(begin)}


@dataclass(frozen=True, slots=True)
class Family:
    """Architectures, as config.json names them, that one function reads: fields of config.json to a shape.

    read raises ValueError for what it does not know. gguf: how GGUF files spell it; None where they do not."""

    architectures: tuple[str, ...]
    read: Callable[[ConfigJson], DecoderShape]
    gguf: GgufNames | None = None


class Refusal(NamedTuple):
    """Architectures that do not run, by how their names begin in either kind of file, in small letters without marks (a
    point ends a whole name); which models these are; why; and how the nearest that does is called, up to "For"."""

    begins: tuple[str, ...]
    models: str
    why: str
    nearest: str


_refused: list[Refusal] = []
_registered: dict[str, Family] = {}  # by architecture
_to_load: list[Callable[[], Sequence[Family]]] = []
_loading = threading.RLock()  # two threads may open their first model at once


def register(*families: Family) -> None:
    """Make families known; one with an architecture that is known already takes its place."""
    _known().update({name: family for family in families for name in family.architectures})


def refuse(*some: Refusal) -> None:
    """Say of architectures why they do not run, where one is asked for."""
    _refused.extend(some)


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
        raise refusal("architecture", architecture, known)
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
        raise refusal(GGUF_ARCHITECTURE, architecture, spelled)
    return spelled[architecture]


def refusals() -> list[tuple[str, str]]:
    """Models that are known and do not run; why, and the nearest architecture that does."""
    known = _known()
    return [(r.models, f"{r.why}; {_nearest(r.nearest, known)}") for r in _refused]


def refusal(field: str, value: object, known: Iterable[str]) -> ValueError:
    """The error for an architecture that does not run: why, and the nearest of those that are known."""
    from fastslow.engine.checked import shown

    name = _stem(str(value)[:99])
    plain = name.replace("_", "").replace("-", "") + "."
    found = next((r for r in _refused if plain.startswith(r.begins)), None)
    runs = _nearest(found.nearest if found else name, known)
    why = f"{found.why}; {runs}" if found else runs
    return ValueError(
        f"{field} {shown(value)} does not run here: {why}; docs/guide/models.md says where to ask for it"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    # all end alike, which makes none of them near; of several names of a model the first counts
    stems = {_stem(one): one for one in reversed([*known])}
    close = difflib.get_close_matches(name, stems, n=1)
    if close:
        return f"the nearest that does is {stems[close[0]]}"
    return "`fastslow models` lists those that do"


def _stem(architecture: str) -> str:
    return architecture.partition("For")[0].lower()
