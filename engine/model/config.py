"""What a model is made of, read from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastslow.engine.host.files import read_object, shown
from fastslow.engine.model.families.pangu_v2_config import PanguV2Config, published
from fastslow.engine.model.fields import (
    LEAST_EPS,
    LEAST_THETA,
    MOST,
    MOST_EPS,
    MOST_EXPERTS,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_STRETCH,
    MOST_THETA,
    MOST_WIDTH,
    boolean,
    integer,
    integers,
    number,
    text,
)

if TYPE_CHECKING:
    import torch

MOGE = "PanguProMoEForCausalLM"
MOE = "PanguProMoEV2ForCausalLM"
EMBEDDED = "PanguEmbeddedForCausalLM"
LLAMA = "LlamaForCausalLM"
ARCHITECTURES = (MOGE, MOE, EMBEDDED, LLAMA)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched: `kind` is "linear", "dynamic", "llama3" or "yarn".

    llama3: wavelengths above original_max_positions / low_frequency_factor are stretched by `factor`,
    those below original_max_positions / high_frequency_factor are left alone, and those between are
    blended. yarn (Peng et al., arXiv 2309.00071): pairs that turn more than `fast_turns` times in
    original_max_positions are left alone, those that turn less than `slow_turns` times are stretched,
    and those between are blended, between whole pairs where `whole_pairs`; cosines and sines are
    multiplied by `attention_factor`.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole_pairs: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Router:
    """How a token chooses its routed experts in a mixture without groups.

    kind: "softmax": probabilities over all experts, of which the `top_k` largest are chosen; "chosen":
    the `top_k` largest logits are chosen, and softmax is over these; "sigmoid": of each logit, and what
    `choice_bias` adds counts for the choice alone. normed: the chosen weights are divided by their sum.
    scale: what they are multiplied with then. bias: added to the logits.
    """

    kind: str
    top_k: int
    normed: bool = True
    scale: float = 1.0
    bias: bool = False
    choice_bias: bool = False


@dataclass(frozen=True, slots=True)
class ClampedSwiglu:
    """gate * sigmoid(alpha * gate) * (up + 1), with gate at most `limit` and up within +-`limit`."""

    alpha: float = 1.702
    limit: float = 7.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a decoder. Sizes are in elements, positions in tokens.

    `groups` is 0 where there are no groups to choose among: a dense model, or one whose experts are
    all one group (`router`). A MoGE model runs one routed expert per group and token.
    `intermediate_size` is the width of dense MLPs (0 where no layer has one), `dtype` the
    checkpoint's own, as config.json spells it.

    query_norm, key_norm: every head is normed before it is rotated (RMSNorm, weight [head_dim], one for
    all heads). windows: of each layer, how many tokens a row sees, itself and those just before it; 0
    sees all; empty: all layers see all. unrotated: layers whose queries and keys are not rotated.
    sink_logits: every query head has a learned logit that takes its share of the softmax, and no value.
    expert_bias: routed experts have biases. swiglu: None is silu(gate) * up.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    intermediate_size: int = 0
    groups: int = 0
    experts: int = 0
    moe_intermediate_size: int = 0
    shared_intermediate_size: int = 0
    mlp_only_layers: frozenset[int] = frozenset()
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    dtype: str | None = None
    query_norm: bool = False
    key_norm: bool = False
    windows: tuple[int, ...] = ()
    unrotated: frozenset[int] = frozenset()
    sink_logits: bool = False
    router: Router | None = None
    expert_bias: bool = False
    swiglu: ClampedSwiglu | None = None
    pangu_v2: PanguV2Config | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read `folder`/config.json. ValueError in one sentence for whatever does not fit."""
        path = folder / "config.json"
        if not folder.is_dir():
            raise ValueError(f"model folder {folder} does not exist")
        if not path.is_file():
            raise ValueError(f"{folder} has no config.json")
        raw = read_object(path)
        try:
            return cls.from_json(raw)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """From the fields of a config.json. ValueError names the field, its value, the limit."""
        names = raw.get("architectures")
        architecture = names[0] if isinstance(names, list) and names else names
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"architecture {shown(architecture)} is not one of the known {known}")
        activation = raw.get("hidden_act", "silu")
        if activation != "silu":
            raise ValueError(f"hidden_act {shown(activation)} is not supported, only 'silu' is")
        partial = number(raw, "partial_rotary_factor", default=1.0)
        if partial != 1:
            raise ValueError(f"partial_rotary_factor {partial} is not supported, only 1 is")
        raw = published(raw) if architecture == MOE else raw
        hidden = integer(raw, "hidden_size", most=MOST_WIDTH)
        heads = integer(raw, "num_attention_heads", most=MOST_HEADS)
        layers = integer(raw, "num_hidden_layers", most=MOST_LAYERS)
        head_dim = integer(raw, "head_dim", _head_dim(raw, hidden, heads), most=MOST_HEAD_DIM)
        routed = architecture in (MOGE, MOE)
        dense_only = frozenset(integers(raw, "mlp_only_layers")) if routed else frozenset()
        some_dense = not routed or bool(dense_only)
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"rope_scaling must be an object, got {shown(rope)}")
        llama = architecture == LLAMA
        attention_bias = (
            boolean(raw, "attention_bias", False)
            if llama
            else architecture != MOE and boolean(raw, "bias", True)
        )
        second = PanguV2Config.of(raw, head_dim) if architecture == MOE else None
        config = cls(
            architecture=architecture,
            vocab_size=integer(raw, "vocab_size"),
            hidden_size=hidden,
            layers=layers,
            heads=heads,
            kv_heads=integer(raw, "num_key_value_heads", default=heads),
            head_dim=head_dim,
            max_positions=integer(raw, "max_position_embeddings"),
            intermediate_size=_width(raw, "intermediate_size", some_dense),
            groups=integer(raw, "num_experts_per_tok") if architecture == MOGE else 0,
            experts=integer(raw, "num_experts", most=MOST_EXPERTS) if routed else 0,
            moe_intermediate_size=_width(raw, "moe_intermediate_size", routed),
            shared_intermediate_size=_width(raw, "shared_expert_intermediate_size", routed),
            mlp_only_layers=dense_only,
            rms_norm_eps=number(raw, "rms_norm_eps", 1e-6, LEAST_EPS, MOST_EPS),
            rope_theta=number(
                rope if "rope_theta" in rope else raw,
                "rope_theta",
                10000.0,
                LEAST_THETA,
                MOST_THETA,
            ),
            rope_scaling=_scaling(rope),
            tie_word_embeddings=boolean(raw, "tie_word_embeddings", False),
            qkv_bias=attention_bias,
            out_bias=attention_bias,
            mlp_bias=llama and boolean(raw, "mlp_bias", False),
            bos_id=next(iter(integers(raw, "bos_token_id")), None),
            eos_ids=integers(raw, "eos_token_id"),
            dtype=text(raw, "dtype", default=text(raw, "torch_dtype", default=None)),
            key_norm=second is not None,
            router=None
            if second is None
            else Router(
                "sigmoid",
                second.top_k,
                second.expert_norm,
                second.expert_scale,
                choice_bias=second.expert_bias,
            ),
            pangu_v2=second,
        )
        config._check()
        return config

    def _check(self) -> None:
        if self.context > MOST:
            raise ValueError(
                f"max_position_embeddings {self.max_positions}, times the rope_scaling factor, must be "
                f"at most {MOST}"
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads {self.heads} must be a multiple of num_key_value_heads "
                f"{self.kv_heads}"
            )
        if self.head_dim % 2 or self.head_dim < 4:
            raise ValueError(f"head_dim {self.head_dim} must be an even number of at least 4")
        if self.groups and self.experts % self.groups:
            raise ValueError(
                f"num_experts {self.experts} must be a multiple of num_experts_per_tok "
                f"{self.groups}, one expert per group"
            )
        if any(n >= self.layers for n in self.mlp_only_layers):
            raise ValueError(
                f"mlp_only_layers {shown(sorted(self.mlp_only_layers))} must be below "
                f"num_hidden_layers {self.layers}"
            )

    @property
    def dynamic_rope(self) -> bool:
        """Whether a row depends on the longest text that its request may become."""
        return self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"

    def rope_length(self, max_len: int) -> int:
        """What decides the rotary base of a request that may become so long: equal numbers, equal keys.
        Texts that fit max_positions all have one base."""
        return max(max_len, self.max_positions) if self.dynamic_rope else 0

    @property
    def context(self) -> int:
        """The longest text in tokens; linear and dynamic scaling multiply max_positions."""
        scaling = self.rope_scaling
        if scaling is None or scaling.kind == "llama3":
            return self.max_positions
        return int(self.max_positions * scaling.factor)

    @property
    def chosen(self) -> int:
        """Routed experts that a token runs in a layer that has any; 0 for a dense model."""
        return self.groups if self.router is None else self.router.top_k

    def routed(self, layer: int) -> bool:
        """Whether this layer's MLP has routed experts."""
        return self.experts > 0 and layer not in self.mlp_only_layers

    def window(self, layer: int) -> int:
        """Tokens that a row of this layer sees, itself included; 0: all."""
        return self.windows[layer] if self.windows else 0

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize


def _width(raw: Mapping[str, Any], name: str, used: bool) -> int:
    return integer(raw, name, most=MOST_WIDTH) if used else 0


def _head_dim(raw: Mapping[str, Any], hidden: int, heads: int) -> int | None:
    if raw.get("head_dim") is None and hidden % heads:
        raise ValueError(
            f"hidden_size {hidden} must be a multiple of num_attention_heads {heads} where "
            "head_dim is missing"
        )
    return hidden // heads or None


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "dynamic", "llama3"):
        raise ValueError(
            f"rope_scaling type {shown(kind)} is not one of the known default, linear, dynamic, llama3"
        )
    factor = number(rope, "factor", most=MOST_STRETCH)
    if factor < 1:
        raise ValueError(f"rope_scaling factor {factor} must be at least 1")
    if kind != "llama3":
        return RopeScaling(kind, factor)
    low = number(rope, "low_freq_factor", most=MOST_STRETCH)
    high = number(rope, "high_freq_factor", most=MOST_STRETCH)
    if high <= low:
        raise ValueError(f"high_freq_factor {high} must be above low_freq_factor {low}")
    original = integer(rope, "original_max_position_embeddings")
    return RopeScaling(kind, factor, low, high, original)
