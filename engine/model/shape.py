"""What a decoder is made of: sizes, and what its layers do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastslow.engine.host.files import shown
from fastslow.engine.model.fields import MOST
from fastslow.engine.model.rope_scaling import RopeScaling

if TYPE_CHECKING:
    import torch


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
class PanguV2Config:
    """Learned sinks, norms on keys and behind sublayers, partial rotation, one group of experts.

    Attributes:
        top_k: experts that a token runs, the best of all.
        value_dim: of a head's values; keys and queries have `head_dim`.
        rotary_dim: dims of a head that are rotated.
        rotary_layout: which: "interleaved-first" are the first, pairs side by side, as in Huawei's
            own inference code; "halves-last" are the last, a pair half of them apart.
        sinks: learned keys that every token sees, before its text.
        sink_values: whether their values are learned, too; else they are zeros.
        expert_bias: whether the choice of experts adds a bias, which their weights do not have.
        expert_norm: whether the chosen weights are divided by their sum.
        expert_scale: what they are multiplied with then.
        sandwich: whether the outputs of attention and MLP are normed before they are added.
        draft_layers: layers for multi-token prediction, behind the others in the checkpoint.
    """

    top_k: int
    value_dim: int
    rotary_dim: int
    rotary_layout: str
    sinks: int
    sink_values: bool
    expert_bias: bool
    expert_norm: bool
    expert_scale: float
    sandwich: bool
    draft_layers: int


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes are in elements, positions in tokens.

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

    def check(self) -> None:
        """ValueError in one sentence where parts do not fit each other."""
        scaling = self.rope_scaling
        if (
            scaling is not None
            and scaling.kind == "factors"
            and (len(scaling.factors) != self.head_dim // 2)
        ):
            raise ValueError(
                f"rope_scaling has {len(scaling.factors)} factors, but half a head of {self.head_dim} rotates"
            )
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
        if self.router is not None and self.router.top_k > self.experts:
            raise ValueError(
                f"num_experts_per_tok {self.router.top_k} must be at most num_experts {self.experts}"
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
        """The longest text in tokens; linear and dynamic scaling multiply max_positions, and yarn
        what the model was trained for before."""
        scaling = self.rope_scaling
        if scaling is None or scaling.kind in ("llama3", "factors"):
            return self.max_positions
        if scaling.kind == "yarn":
            return max(self.max_positions, int(scaling.original_max_positions * scaling.factor))
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
