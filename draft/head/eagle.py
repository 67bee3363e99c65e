"""A published EAGLE-3 head: what its config.json says, and the weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastslow.draft.head.config import WHOLE, HeadConfig, opened, read_ends, stored_ends
from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.backends.cpu.draft_head import PairedEntry
from fastslow.engine.backends.cpu.library import LIMITS
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.host.files import about, is_file, read_object, shown
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.config_json import ConfigJson
from fastslow.engine.model.mixers.rope import Rope, inverse_frequencies

ORIGINAL = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLM")
MODEL_TYPE = "speculators_model_type"
IDS = "eagle_aux_hidden_state_layer_ids"
LAYER_FIELDS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("hidden_act", "attention_bias", "mlp_bias", "max_position_embeddings", "vocab_size"),
)
POSITIONS = 2048  # where a config does not say how many it was made for
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLAIN, PICKLED = "model.safetensors", "pytorch_model.bin"
EMBEDDING, OFFSETS, CHOSEN = "embed_tokens.weight", "d2t", "t2d"
UNUSED = ("verifier_norm.weight", "verifier_lm_head.weight")  # of the target, for training
CONVERT = (
    "from safetensors.torch import save_file; from torch import load; "
    f"save_file(load('{PICKLED}', weights_only=True), '{PLAIN}')"
)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleConfig:
    """The config of a decoder layer whose attention reads a token's embedding and a hidden state side by side
    (EAGLE-3: Li et al., arXiv 2503.01840).

    Attributes:
        layer: its rotary positions, biases and so on, as those of a model of one layer.
        head_norms: every head of queries and keys is normed before it is rotated.
        normed_together: features that are divided by their root mean square together, the target's H
            or all of them; 0: none.
        normed_residual: the layer adds to the normed hidden state, not to the state itself.
        normed_output: the next step reads the normed output (EAGLE 3.1).
        prefix: of the layer's tensors.
    """

    shape: HeadConfig
    layer: ModelConfig
    target_hidden: int
    target_vocab: int
    head_norms: bool = False
    normed_together: int = 0
    normed_residual: bool = False
    normed_output: bool = False
    prefix: str = "midlayer."

    @property
    def features(self) -> int:
        """F, numbers that are read of a row."""
        return len(self.shape.layers) * self.target_hidden

    @property
    def rope(self) -> Rope:
        """The rotation of its layer."""
        return AlikeLayers.of(self.layer).rope

    def paired(self) -> PairedEntry | None:
        """For the kernels; None where they do not have what the layer does."""
        rope = self.rope
        if rope.scaling is not None and rope.scaling.attention_factor != 1:
            return None
        return PairedEntry(
            inverse_frequencies(rope, rope.context),
            self.normed_together,
            self.normed_residual,
            self.normed_output,
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], target: ModelConfig) -> EagleConfig:
        """Of either layout. ValueError in one sentence for what cannot run, or does not fit the target."""
        speculators = MODEL_TYPE in raw
        if speculators and raw[MODEL_TYPE] != "eagle3":
            raise ValueError(
                f"{MODEL_TYPE} {shown(raw[MODEL_TYPE])} is not supported, only 'eagle3' is"
            )
        raw = ConfigJson(raw)
        inner = _inner(raw, "transformer_layer_config") if speculators else raw
        kind = inner.get("model_type", "llama")
        if kind not in ("llama", "qwen3"):
            raise ValueError(f"model_type {shown(kind)} of the layer is not one of llama, qwen3")
        if not speculators:
            _check_original(raw)
        if (layers := inner.integer("num_hidden_layers", 1)) != 1:
            raise ValueError(f"num_hidden_layers {layers} is not supported, only 1 is")
        fields = {name: inner[name] for name in LAYER_FIELDS if name in inner}
        fields.setdefault("max_position_embeddings", POSITIONS)
        layer = ModelConfig.from_json(
            {**fields, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
        )
        theirs = raw.width("target_hidden_size", layer.hidden_size)
        if theirs != target.hidden_size:
            raise ValueError(
                f"the head is of a target with hidden_size {theirs}, this one has {target.hidden_size}"
            )
        if layer.vocab_size != target.vocab_size:
            raise ValueError(
                f"the head is of a target with vocab_size {layer.vocab_size}, this one has "
                f"{target.vocab_size}"
            )
        read = _layers(raw, len(target.layers))
        each, whole = raw.boolean("fc_norm"), raw.boolean("norm_before_fc")
        if each and whole:
            raise ValueError("fc_norm and norm_before_fc exclude each other")
        most = min(target.context, LIMITS["window"][1])
        window = _window(inner)
        alike = AlikeLayers.of(layer)
        a = alike.attention
        shape = HeadConfig(
            hidden=layer.hidden_size,
            heads=a.heads,
            kv_heads=a.kv_heads,
            head_dim=a.head_dim,
            neurons=alike.widest,
            rope_theta=alike.rope.theta,
            eps=alike.eps,
            window=min(window, most) if window else most,
            layers=read,
            vocabulary=raw.integer("draft_vocab_size", layer.vocab_size, layer.vocab_size),
            prompt=most,  # it was trained on whole texts
        )
        shape.check()
        return cls(
            shape=shape,
            layer=layer,
            target_hidden=theirs,
            target_vocab=target.vocab_size,
            head_norms=kind == "qwen3",
            normed_together=theirs if each else len(read) * theirs if whole else 0,
            normed_residual=raw.boolean("norm_before_residual"),
            normed_output=raw.boolean("norm_output"),
            prefix="layers.0." if speculators else "midlayer.",
        )


def _inner(raw: ConfigJson, name: str) -> ConfigJson:
    inner = raw.get(name)
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name} must be an object, got {shown(inner)}")
    return ConfigJson(inner)


def _check_original(raw: ConfigJson) -> None:
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else names
    if architecture not in ORIGINAL or "draft_vocab_size" not in raw:
        raise ValueError(
            f"architecture {shown(architecture)} is no EAGLE-3 head: that is {ORIGINAL[0]} with "
            f"draft_vocab_size, or {MODEL_TYPE} 'eagle3'"
        )


def _layers(raw: ConfigJson, count: int) -> tuple[int, ...]:
    """Target layers whose outputs are read. Published numbers count what a layer takes in, so that 1 is the
    first layer's output; those inside `eagle_config` count outputs, as SGLang reads them."""
    nested = raw.inside("eagle_config")
    if not nested.boolean("use_aux_hidden_state", True):
        raise ValueError("use_aux_hidden_state false is not supported, only true is")
    if nested.get(IDS) is not None:
        found = nested.integers(IDS)
    elif raw.get(IDS) is not None:
        found = tuple(n - 1 for n in raw.integers(IDS))
    else:
        found = (1, count // 2 - 1, count - 4)
        if len(set(found)) < 3 or min(found) < 0:
            raise ValueError(
                f"the head names no {IDS}, and its usual ones are not in a target of {count} layers"
            )
    if not found or min(found) < 0 or max(found) >= count:
        shown_ids = [n + (nested.get(IDS) is None) for n in found]
        raise ValueError(
            f"{IDS} {shown(shown_ids)} are not all outputs of the target's {count} layers"
        )
    return found


def _window(inner: ConfigJson) -> int:
    """Rows that the layer sees; 0: all."""
    kinds = inner.get("layer_types") or ["full_attention"]
    if not isinstance(kinds, list) or kinds[0] not in ("full_attention", "sliding_attention"):
        raise ValueError(f"layer_types {shown(kinds)} must begin with full or sliding attention")
    return inner.integer("sliding_window") if kinds[0] == "sliding_attention" else 0


def read_eagle(folder: Path, target: ModelConfig) -> tuple[EagleConfig, dict[str, Tensor]]:
    """Config and weights of a head; `_parts` names the weights, "tokens" are the D that it drafts. ValueError
    in one sentence about what is wrong with the files, or does not fit the target."""
    try:
        with about(f"head {folder}"):
            raw = read_object(folder / "config.json")
            if not raw:
                raise ValueError("it has no config.json, so it is no published head")
            config = EagleConfig.from_json(raw, target)
            _check_format(folder)
            with opened(folder / PLAIN) as file:
                return config, _read(config, file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"head {folder} cannot be read: {error}") from None


def embedding_of(folder: Path, config: EagleConfig, target: Path) -> Tensor | RowFile:
    """The embedding [V, H] of a head, its own or that of the target in a checkpoint folder; left in its file
    where rows can be read from it."""
    path = folder / PLAIN
    with opened(path) as file:
        own = EMBEDDING in file.keys()  # noqa: SIM118 - the file is no dictionary
        if not own and config.shape.hidden != config.target_hidden:
            raise ValueError(
                f"head {folder} lacks tensor {EMBEDDING}, and its hidden_size is its own"
            )
        if own:
            stored = RowFile.of_tensor(path, EMBEDDING)
            return file.get_tensor(EMBEDDING) if stored is None else stored
    ends = stored_ends(target)
    return read_ends(target).embedding if ends is None else ends.embedding


def _parts(config: EagleConfig) -> dict[str, Shapes]:
    """Name of a weight -> tensors of the file that make it, one below the other, and their shapes."""
    s, p, layer = config.shape, config.prefix, AlikeLayers.of(config.layer)
    mlp_bias = layer.dense is not None and layer.dense.bias
    inner, keys = s.queries, s.keys
    found: dict[str, Shapes] = {
        "embedding_norm": {f"{p}input_layernorm.weight": (s.hidden,)},
        "hidden_norm": {f"{p}hidden_norm.weight": (s.hidden,)},
        "mlp_norm": {f"{p}post_attention_layernorm.weight": (s.hidden,)},
        "norm": {"norm.weight": (s.hidden,)},
        "fuse": {"fc.weight": (s.hidden, config.features)},
        "head": {"lm_head.weight": (s.vocabulary, s.hidden)},
    }
    qkv = {"self_attn.q_proj": inner, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
    for name, inputs, outputs, biased in (
        ("qkv", 2 * s.hidden, qkv, layer.attention.qkv_bias),
        ("out", inner, {"self_attn.o_proj": s.hidden}, layer.attention.out_bias),
        (
            "gate_up",
            s.hidden,
            dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), s.neurons),
            mlp_bias,
        ),
        ("down", s.neurons, {"mlp.down_proj": s.hidden}, mlp_bias),
    ):
        found[name] = {f"{p}{module}.weight": (n, inputs) for module, n in outputs.items()}
        if biased:
            found[f"{name}_bias"] = {f"{p}{module}.bias": (n,) for module, n in outputs.items()}
    if config.head_norms:
        found["query_norm"] = {f"{p}self_attn.q_norm.weight": (s.head_dim,)}
        found["key_norm"] = {f"{p}self_attn.k_norm.weight": (s.head_dim,)}
    if (width := config.normed_together) == config.features:
        found["features_norm"] = {"input_norm.weight": (width,)}
    elif width:
        each = (f"fc_norm.{n}.weight" for n in range(len(s.layers)))
        found["features_norm"] = dict.fromkeys(each, (width,))
    return found


def _check_format(folder: Path) -> None:
    if is_file(folder / PLAIN):
        return
    if is_file(folder / PICKLED):
        raise ValueError(
            f"{PICKLED} is not loaded, since such files may hold code: make {PLAIN} of it, in that "
            f'folder, by `python -c "{CONVERT}"`'
        )
    raise ValueError(f"it has no {PLAIN}")


def _read(config: EagleConfig, file: Any) -> dict[str, Tensor]:
    """The weights, each checked before it is read."""
    names = set(file.keys())
    found = _parts(config)
    needed: Shapes = {name: shape for part in found.values() for name, shape in part.items()}
    whole: Shapes = {OFFSETS: (config.shape.vocabulary,), CHOSEN: (config.target_vocab,)}
    optional: Shapes = {EMBEDDING: (config.target_vocab, config.shape.hidden)}
    every = config.shape.vocabulary == config.target_vocab
    for name in sorted(names - set(UNUSED)):
        shape = {**needed, **optional, **whole}.get(name)
        if shape is None:
            raise ValueError(f"it has an unexpected tensor {name:.99}")
        if (size := tuple(file.get_slice(name).get_shape())) != shape:
            raise ValueError(f"tensor {name} is {list(size)}, not {list(shape)}")
    for name, shape in {**needed, **({} if every else {OFFSETS: whole[OFFSETS]})}.items():
        if name not in names:
            raise ValueError(f"it lacks tensor {name} of shape {list(shape)}")
    weights: dict[str, Tensor] = {}
    for part, shapes in found.items():
        tensors = [_typed(file, name, FLOATS, "floats") for name in shapes]
        weights[part] = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    if config.normed_together:  # what the norm multiplies features with, `fc` may do
        weights["fuse"] = weights["fuse"].float() * weights.pop("features_norm").float()
    weights["tokens"] = _tokens(config, file, names)
    return weights


def _tokens(config: EagleConfig, file: Any, names: set[str]) -> Tensor:
    """int64 [D], the target's tokens in the order of the head's."""
    own = torch.arange(config.shape.vocabulary)
    if OFFSETS not in names:
        return own
    tokens = own + _typed(file, OFFSETS, WHOLE, "whole numbers").long()
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0 or most >= config.target_vocab:
        raise ValueError(
            f"{OFFSETS} leads to token {least if least < 0 else most}, outside the target's vocabulary "
            f"of {config.target_vocab}"
        )
    if len(tokens.unique()) < len(tokens):
        raise ValueError(f"{OFFSETS} leads to some token twice")
    if CHOSEN in names:
        chosen = _typed(file, CHOSEN, (torch.bool, *WHOLE), "truth values").bool()
        if int(chosen.sum()) != len(tokens) or not bool(chosen[tokens].all()):
            raise ValueError(f"{CHOSEN} and {OFFSETS} name different tokens")
    return tokens


def _typed(file: Any, name: str, dtypes: tuple[torch.dtype, ...], kind: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    if tensor.dtype not in dtypes:
        raise ValueError(f"tensor {name} is of {tensor.dtype}, and must hold {kind}")
    return tensor
