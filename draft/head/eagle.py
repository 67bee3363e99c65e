"""A published EAGLE-3 head in plain torch, and what its config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.head import DraftHead, Projected
from fastslow.draft.head.layer import Linear, linear_for
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.engine.backends.cpu.draft_head import PairedEntry
from fastslow.engine.backends.cpu.library import LIMITS
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.host.files import shown
from fastslow.engine.model.attention import inverse_frequencies, rotation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.family import MOST_WIDTH, boolean, integer, integers

ORIGINAL = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM", "LlamaForCausalLM")
MODEL_TYPE = "speculators_model_type"
IDS = "eagle_aux_hidden_state_layer_ids"
LAYER_FIELDS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("hidden_act", "attention_bias", "mlp_bias", "max_position_embeddings", "vocab_size"),
)
POSITIONS = 2048  # where a config does not say how many it was made for


@dataclass(frozen=True, slots=True, kw_only=True)
class EagleConfig:
    """One decoder layer whose attention reads a token's embedding and a hidden state side by side
    (EAGLE-3: Li et al., arXiv 2503.01840).

    Attributes:
        shape: sizes; its `layers` are target layers whose outputs are read, 0 = the first layer's.
        layer: its rotary positions, biases and so on, as those of a model of one layer.
        target_hidden: H of the target.
        target_vocab: V of the target.
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

    def paired(self) -> PairedEntry | None:
        """For the kernels; None where they do not have what the layer does."""
        scaling = self.layer.rope_scaling
        if scaling is not None and scaling.attention_factor != 1:
            return None
        return PairedEntry(
            inverse_frequencies(self.layer, self.layer.context),
            self.normed_together,
            self.normed_residual,
            self.normed_output,
        )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], target: ModelConfig) -> EagleConfig:
        """Of either layout, for a target. ValueError in one sentence for what cannot run, or does not
        fit the target."""
        speculators = MODEL_TYPE in raw
        if speculators and raw[MODEL_TYPE] != "eagle3":
            raise ValueError(
                f"{MODEL_TYPE} {shown(raw[MODEL_TYPE])} is not supported, only 'eagle3' is"
            )
        inner = _inner(raw, "transformer_layer_config") if speculators else raw
        kind = inner.get("model_type", "llama")
        if kind not in ("llama", "qwen3"):
            raise ValueError(f"model_type {shown(kind)} of the layer is not one of llama, qwen3")
        if not speculators:
            _check_original(raw)
        if (layers := integer(inner, "num_hidden_layers", 1)) != 1:
            raise ValueError(f"num_hidden_layers {layers} is not supported, only 1 is")
        fields = {name: inner[name] for name in LAYER_FIELDS if name in inner}
        fields.setdefault("max_position_embeddings", POSITIONS)
        layer = ModelConfig.from_json(
            {**fields, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
        )
        theirs = integer(raw, "target_hidden_size", layer.hidden_size, most=MOST_WIDTH)
        if theirs != target.hidden_size:
            raise ValueError(
                f"the head is of a target with hidden_size {theirs}, this one has {target.hidden_size}"
            )
        if layer.vocab_size != target.vocab_size:
            raise ValueError(
                f"the head is of a target with vocab_size {layer.vocab_size}, this one has "
                f"{target.vocab_size}"
            )
        read = _layers(raw, target.layers)
        each, whole = boolean(raw, "fc_norm", False), boolean(raw, "norm_before_fc", False)
        if each and whole:
            raise ValueError("fc_norm and norm_before_fc exclude each other")
        most = min(target.context, LIMITS["window"][1])
        window = _window(inner)
        shape = HeadConfig(
            hidden=layer.hidden_size,
            heads=layer.heads,
            kv_heads=layer.kv_heads,
            head_dim=layer.head_dim,
            neurons=layer.intermediate_size,
            rope_theta=layer.rope_theta,
            eps=layer.rms_norm_eps,
            window=min(window, most) if window else most,
            layers=read,
            vocabulary=integer(raw, "draft_vocab_size", layer.vocab_size, most=layer.vocab_size),
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
            normed_residual=boolean(raw, "norm_before_residual", False),
            normed_output=boolean(raw, "norm_output", False),
            prefix="layers.0." if speculators else "midlayer.",
        )


def _inner(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = raw.get(name)
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name} must be an object, got {shown(inner)}")
    return inner


def _check_original(raw: Mapping[str, Any]) -> None:
    names = raw.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else names
    if architecture not in ORIGINAL or "draft_vocab_size" not in raw:
        raise ValueError(
            f"architecture {shown(architecture)} is no EAGLE-3 head: that is {ORIGINAL[0]} with "
            f"draft_vocab_size, or {MODEL_TYPE} 'eagle3'"
        )


def _layers(raw: Mapping[str, Any], count: int) -> tuple[int, ...]:
    """Target layers whose outputs are read.

    Published numbers count what a layer takes in, so that 1 is the first layer's output; those inside
    `eagle_config` count outputs, as SGLang reads them."""
    nested = _inner(raw, "eagle_config") if raw.get("eagle_config") is not None else {}
    if not boolean(nested, "use_aux_hidden_state", True):
        raise ValueError("use_aux_hidden_state false is not supported, only true is")
    if nested.get(IDS) is not None:
        found = integers(nested, IDS)
    elif raw.get(IDS) is not None:
        found = tuple(n - 1 for n in integers(raw, IDS))
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


def _window(inner: Mapping[str, Any]) -> int:
    """Rows that the layer sees; 0: all."""
    kinds = inner.get("layer_types") or ["full_attention"]
    if not isinstance(kinds, list) or kinds[0] not in ("full_attention", "sliding_attention"):
        raise ValueError(f"layer_types {shown(kinds)} must begin with full or sliding attention")
    return integer(inner, "sliding_window") if kinds[0] == "sliding_attention" else 0


MATRICES = ("fuse", "qkv", "out", "gate_up", "down", "head")


class EagleHead(DraftHead):
    """Its attention reads a token's embedding and a hidden state side by side, and it has a head for its
    vocabulary, so a text's own tokens cannot be added.

    Args:
        config: its shape.
        weights: of `eagle_file.read_eagle`.
        embedding: [V, H], the target's or its own.
        linear: applies the matrices of MATRICES by name; None: in int8 where that runs.
    """

    def __init__(
        self,
        config: EagleConfig,
        weights: Mapping[str, Tensor],
        embedding: Tensor | RowFile,
        linear: Linear | None = None,
    ) -> None:
        self.config = config.shape
        self.vocab_size = config.target_vocab
        self.vocab = DraftVocab(weights["tokens"], None)
        self._eagle = config
        self._embedding = embedding
        self._small = {n: w.float() for n, w in weights.items() if w.ndim == 1 and n != "tokens"}
        self._linear = linear or linear_for({name: weights[name] for name in MATRICES})

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        normed = hidden if self._eagle.normed_output else self._norm("norm", hidden)
        return list(torch.split(self._linear("head", normed), list(sizes)))

    def _fuse(self, features: Tensor) -> Tensor:
        level = features.to("cpu", torch.float32)
        if together := self._eagle.normed_together:
            parts = level.view(len(level), -1, together)
            level = F.rms_norm(parts, (together,), eps=self.config.eps).flatten(1)
        return self._linear("fuse", level)

    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        c, embedded = self.config, self._embedding[torch.tensor(after)].float()
        normed = self._norm("hidden_norm", hidden)
        pair = torch.cat((self._norm("embedding_norm", embedded), normed), -1)
        mixed = self._biased("qkv", pair).view(len(pair), -1, c.head_dim)
        q, k, v = torch.split(mixed, [c.heads, c.kv_heads, c.kv_heads], -2)
        if self._eagle.head_norms:
            q, k = self._norm("query_norm", q), self._norm("key_norm", k)
        cos, sin = rotation(
            self._eagle.layer,
            np.array(at, dtype=np.int64),
            np.full(len(at), self._eagle.layer.context, dtype=np.int64),
            torch.float32,
            torch.device("cpu"),
        )
        q, k = (x * cos + x.roll(c.head_dim // 2, -1) * sin for x in (q, k))
        return normed if self._eagle.normed_residual else hidden, q, k, v

    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._biased("out", attended)
        gate, up = self._biased("gate_up", self._norm("mlp_norm", x)).chunk(2, -1)
        x = x + self._biased("down", F.silu(gate) * up)
        return self._norm("norm", x) if self._eagle.normed_output else x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._small[name]
        return F.rms_norm(x, (len(weight),), weight, self.config.eps)

    def _biased(self, name: str, x: Tensor) -> Tensor:
        bias = self._small.get(f"{name}_bias")
        out = self._linear(name, x)
        return out if bias is None else out + bias
