"""The fields of a config.json, as families read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from loguru import logger

from fastslow.engine.host.files import shown

MOST = 2**31 - 1  # what an int of the kernels holds
# A weight that is there shows that a size is right; these come before any is looked at.
MOST_LAYERS, MOST_EXPERTS, MOST_HEADS, MOST_HEAD_DIM = 4096, 65_536, 65_536, 16_384
MOST_WIDTH = 2**24  # of hidden states and of what lies inside an MLP
MOST_STRETCH = 1e6  # of rotary positions

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
    """Fields, as a dict, which remembers which of them were read. Every read that says what a field must be raises
    ValueError naming the field, its value, the limit.

    `check_rest` refuses an unread field whose name says that it changes the forward, unless its value says
    that it does not: a model that runs without it answers wrongly, and nobody sees why. Unknown names are
    logged: fine-tunes carry notes of all kinds. owner: what reads them, for messages. prefix: what messages
    write before a name. strict: refuse whatever is not read and does something."""

    def __init__(
        self, raw: Mapping[str, Any], owner: object = "", prefix: str = "", strict: bool = False
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
            raise ValueError(f"{name} must be an object, got {shown(value)}")
        return ConfigJson(value or {}, self._owner, f"{self._prefix}{name}.", strict=True)

    def integer(
        self, name: str, default: int | None = None, most: int = MOST, least: int = 1
    ) -> int:
        """A whole number from `least` to `most`; a missing or null field is `default`."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} {shown(value)} must be a whole number of at least {least}")
        if value > most:
            raise ValueError(f"{name} {shown(value)} must be at most {most}")
        return value

    def count(self, name: str, default: int = 0, most: int = MOST) -> int:
        """A whole number from 0 to `most`."""
        return self.integer(name, default, most, least=0)

    def width(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Numbers of a hidden state, or inside an MLP."""
        return self.integer(name, default, MOST_WIDTH, least)

    def heads(self, name: str, default: int | None = None) -> int:
        """Heads of attention."""
        return self.integer(name, default, MOST_HEADS)

    def head_dim(self, name: str, default: int | None = None) -> int:
        """Numbers of a head."""
        return self.integer(name, default, MOST_HEAD_DIM)

    def experts(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Experts of a layer."""
        return self.integer(name, default, MOST_EXPERTS, least)

    @property
    def layers(self) -> int:
        """`num_hidden_layers`."""
        return self.integer("num_hidden_layers", most=MOST_LAYERS)

    def number(
        self, name: str, default: float | None = None, least: float = 0.0, most: float = 1e30
    ) -> float:
        """A finite number above 0, from `least` to `most`; a missing or null field is `default`."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} {shown(value)} must be a number")
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} {shown(value)} must be a finite number above 0")
        if not least <= value <= most:
            raise ValueError(f"{name} {shown(value)} must be from {least:g} to {most:g}")
        return float(value)

    def _given(self, name: str, default: float | None) -> object:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{name} is missing")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """true or false; a missing or null field is `default`."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValueError(f"{name} {shown(value)} must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string; a missing or null field is `default`."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise ValueError(f"{name} {shown(value)} must be a string")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Whole numbers from 0 to MOST: one, a list of them, or none where missing or null."""
        value = self.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in values):
            raise ValueError(f"{name} {shown(value)} must be whole numbers of at least 0")
        if any(v > MOST for v in values):
            raise ValueError(f"{name} {shown(value)} must be at most {MOST}")
        return tuple(values)

    def expect(self, values: Mapping[str, Any]) -> None:
        """Check fields that may have one value only, where they are there: lists of it, too, one for each layer."""
        for name, value in values.items():
            found = self.get(name)
            alike = [value] * self.layers if isinstance(found, list) else value
            if found is not None and found != alike:
                raise ValueError(f"{name} {shown(found)} is not supported, only {value} is")

    def check_rest(self) -> None:
        """ValueError for a field that was not read and changes the forward; warns of unknown ones."""
        rest = {n: v for n, v in self._raw.items() if n not in self._seen and n not in HARMLESS}
        odd = []
        for name, value in rest.items():
            if _neutral(str(name), value):
                continue
            if self._strict or CHANGES.search(str(name).lower()):
                raise ValueError(
                    f"{self._prefix}{name:.99} {shown(value)} changes the model in a way that "
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
