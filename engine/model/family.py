"""Families of models: what one says of itself, those that are registered, and the fields of a config.json that
they read.

The families themselves stand above, in `engine/families`: nothing in here knows one by its name. Every read raises
ValueError naming the field, its value, the limit.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from loguru import logger

if TYPE_CHECKING:  # `import fastslow` registers families, and stays light
    from fastslow.engine.host.gguf_file import GgufFile
    from fastslow.engine.model.shape import DecoderShape

MOST = 2**31 - 1  # what an int of the kernels holds
# A weight that is there shows that a size is right; these come before any is looked at.
MOST_LAYERS, MOST_EXPERTS, MOST_HEADS, MOST_HEAD_DIM = 4096, 65_536, 65_536, 16_384
MOST_WIDTH = 2**24  # of hidden states and of what lies inside an MLP
LEAST_EPS, MOST_EPS = 1e-20, 1.0
LEAST_THETA, MOST_THETA = 1.0, 1e15
MOST_STRETCH = 1e6  # of rotary positions


def _shown(value: object) -> str:
    from fastslow.engine.checked import shown

    return shown(value)


def integer(
    raw: Mapping[str, Any], name: str, default: int | None = None, most: int = MOST, least: int = 1
) -> int:
    """A whole number from `least` to `most`; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} {_shown(value)} must be a whole number of at least {least}")
    if value > most:
        raise ValueError(f"{name} {_shown(value)} must be at most {most}")
    return value


def number(
    raw: Mapping[str, Any],
    name: str,
    default: float | None = None,
    least: float = 0.0,
    most: float = 1e30,
) -> float:
    """A finite number above 0, from `least` to `most`; a missing or null field is `default`."""
    value = _given(raw, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} {_shown(value)} must be a number")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} {_shown(value)} must be a finite number above 0")
    if not least <= value <= most:
        raise ValueError(f"{name} {_shown(value)} must be from {least:g} to {most:g}")
    return float(value)


def _given(raw: Mapping[str, Any], name: str, default: float | None) -> object:
    value = raw.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name} is missing")
    return value


def boolean(raw: Mapping[str, Any], name: str, default: bool) -> bool:
    """true or false; a missing or null field is `default`."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ValueError(f"{name} {_shown(value)} must be true or false")
    return value


def text(raw: Mapping[str, Any], name: str, default: str | None) -> str | None:
    """A string; a missing or null field is `default`."""
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{name} {_shown(value)} must be a string")
    return value


def integers(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Whole numbers from 0 to MOST: one, a list of them, or none where missing or null."""
    value = raw.get(name)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
        raise ValueError(f"{name} {_shown(value)} must be whole numbers of at least 0")
    if any(v > MOST for v in values):
        raise ValueError(f"{name} {_shown(value)} must be at most {MOST}")
    return tuple(values)


def count(raw: Mapping[str, Any], name: str, most: int = MOST) -> int:
    """A whole number from 0 to `most`; 0 where missing or null."""
    return integer(raw, name, default=0, least=0, most=most)


# Fields that change no forward of any family, whatever their value: names, files, training, sampling.
_NAMES = """
architectures model_type _name_or_path name_or_path transformers_version torch_dtype dtype auto_map
tokenizer_class processor_class task_specific_params id2label label2id is_encoder_decoder is_decoder
initializer_range aux_loss_alpha use_cache pretraining_tp return_dict output_hidden_states output_attentions
output_router_logits router_aux_loss_coef router_jitter_noise attention_dropout hidden_dropout residual_dropout
embd_pdrop resid_pdrop attn_pdrop classifier_dropout attention_probs_dropout_prob
attention_softmax_in_fp32 attn_implementation _attn_implementation _attn_implementation_autoset
_attn_implementation_internal use_flash_attn use_flash_attention _flash_attn_2_enabled
bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
tie_encoder_decoder tied_weights_keys num_nextn_predict_layers num_mtp_layers
quantization_config compression_config unsloth_version unsloth_fixed gradient_checkpointing finetuned
temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
max_length min_length max_new_tokens num_beams num_beam_groups num_return_sequences do_sample
early_stopping diversity_penalty bad_words_ids suppress_tokens begin_suppress_tokens
forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty
encoder_no_repeat_ngram_size chunk_size_feed_forward prefix finetuning_task problem_type
pruned_heads torchscript use_bfloat16 tf_legacy_loss output_scores return_dict_in_generate
is_llama_config transformers.js_config intermediate_size max_window_layers ep_size
num_key_value_groups initial_context_length mamba_ssm_dtype
block_mlp_init_scale block_out_init_scale block_use_xavier_init conv_use_xavier_init
"""
HARMLESS = frozenset(_NAMES.split())
# Words that names of fields have which do change one. A name that has none of them is only warned of.
CHANGES = re.compile(
    r"sink|sliding|window|layer_type|layers_type|layer_pattern|rope|rotary|yarn|qk_|q_norm|k_norm|softcap|"
    r"soft_cap|multiplier|scal(e|ing)|gate|gating|norm|conv|ssm|mamba|linear_|delta|lora_rank|"
    r"expert|router|topk|top_k|moe|alibi|parallel|clip|clamp|limit|residual|bias|mup|attention|attn|head|"
    r"channels|activation|hidden_act|position_embedding|cross_|embedding_|embed_|logit|chunk|mla|mqa|"
    r"decoder_sparse|dense_layer|first_k_dense|no_rope|nope|partial|swiglu|alpha|temperature|kv_|per_layer"
)
RATIO = re.compile(r"multiplier|scal(e|ing)|factor")  # 1 does nothing
NOTHING = ("", "default", "none", "null", "silu", "rope", "full_attention")  # what all do


class ConfigJson(Mapping[str, Any]):
    """Fields, as a dict, which remembers which of them were read.

    `check_rest` refuses an unread field whose name says that it changes the forward, unless its value says
    that it does not: a model that runs without it answers wrongly, and nobody sees why. Unknown names are
    logged: fine-tunes carry notes of all kinds. owner: what reads them, for messages. prefix: what messages
    write before a name. strict: refuse whatever is not read and does something."""

    def __init__(
        self, raw: Mapping[str, Any], owner: object, prefix: str = "", strict: bool = False
    ) -> None:
        self._raw = raw
        self._owner = owner
        self._prefix = prefix
        self._strict = strict
        self._seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self._seen.add(name)
        return self._raw[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)

    def changed(self, **fields: Any) -> ConfigJson:
        """The same with other values; what is read of it counts as read here."""
        found = ConfigJson({**self._raw, **fields}, self._owner, self._prefix, self._strict)
        found._seen = self._seen
        return found

    def inside(self, name: str) -> ConfigJson:
        """The fields of an object in here, of which none may stay unread; none where it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object, got {_shown(value)}")
        return ConfigJson(value or {}, self._owner, f"{self._prefix}{name}.", strict=True)

    def check_rest(self) -> None:
        """ValueError for a field that was not read and changes the forward; warns of unknown ones."""
        rest = {n: v for n, v in self._raw.items() if n not in self._seen and n not in HARMLESS}
        odd = []
        for name, value in rest.items():
            if _neutral(str(name), value):
                continue
            if self._strict or CHANGES.search(str(name).lower()):
                raise ValueError(
                    f"{self._prefix}{name:.99} {_shown(value)} changes the model in a way that "
                    f"{self._owner} does not know here"
                )
            odd.append(f"{name:.99}")
        if odd:
            logger.warning("fields of config.json that nothing reads: {}", ", ".join(odd[:9]))


def _neutral(name: str, value: object) -> bool:
    if isinstance(value, str):
        return value.lower() in NOTHING
    if isinstance(value, list):
        return all(isinstance(one, str) and one in NOTHING for one in value)
    return not value or (value == 1 and RATIO.search(name.lower()) is not None)


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
    name = _stem(str(value)[:99])
    plain = name.replace("_", "").replace("-", "") + "."
    found = next((r for r in _refused if plain.startswith(r.begins)), None)
    runs = _nearest(found.nearest if found else name, known)
    why = f"{found.why}; {runs}" if found else runs
    return ValueError(
        f"{field} {_shown(value)} does not run here: {why}; docs/guide/models.md says where to ask for it"
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
