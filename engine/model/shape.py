"""Shape of a decoder: sizes, and what its layers do. All that families differ in is a field here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastslow.engine.kv.layout import StateLayout

ROTARY_LAYOUTS = ("halves-first", "interleaved-first", "halves-last")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaling of rotary frequencies: `kind` is "linear", "dynamic", "llama3", "yarn" or "factors".

    llama3: wavelengths above original_max_positions / low_frequency_factor are stretched by `factor`, those
    below original_max_positions / high_frequency_factor are left alone, those between are blended. yarn (Peng
    et al., arXiv 2309.00071): the same by turns in original_max_positions, between `slow_turns` and
    `fast_turns`, between whole pairs where `whole_pairs`; cosines and sines are multiplied by
    `attention_factor`. factors: each pair's frequency is divided by its factor, as GGUF files have them."""

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole_pairs: bool = True
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Router:
    """Router of a mixture without groups: a token's choice of its routed experts.

    kind: "softmax": over all experts, of which the `top_k` largest are chosen; "chosen": over the `top_k`
    largest logits; "sigmoid": of each logit. choice_bias: a bias counts for the choice alone. normed: the
    chosen weights are divided by their sum. scale: what they are multiplied with then. bias: of the logits."""

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


ACTIVATIONS = "silu", "gelu_tanh"  # as kernels/model.h numbers them
Activation = Literal["silu", "gelu_tanh"] | ClampedSwiglu
"""What an MLP makes of gate and up: silu(gate) * up, gelu(gate) * up by tanh, or a clamped SwiGLU."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes are in elements, positions in tokens. 0 or empty: the model has no such part.

    Attributes:
        groups: a MoGE model runs one routed expert per group and token; 0 with a `router`.
        intermediate_size: width of dense MLPs.
        dtype: the checkpoint's, as config.json spells it.
        query_norm, key_norm: every head is normed before it is rotated (RMSNorm, weight [head_dim]).
        windows: of each layer, how many tokens a row sees, itself included; 0 sees all.
        unrotated: layers whose queries and keys are not rotated.
        sink_logits: every query head has a learned logit that takes its share of the softmax, and no value.
        norm_offset: what is added to the weights of all norms; 1 where files hold them less 1.
        post_norms: the outputs of attention and MLP are normed before they are added, too.
        embedding_scale: embeddings are multiplied with it where they enter the first layer.
        value_dim, rotary_dim: dims of a head's values, and those that are rotated; 0: head_dim.
        rotary_layout: the first or the last dims; pairs lie side by side ("interleaved"), or half of the
            rotated dims apart ("halves").
        qkv_fused: the file has one matrix `qkv_proj` for queries, keys and values.
        sinks: learned keys that every token sees before its text. sink_values: their values are learned, too.
        score_cap, logit_cap: scores of attention, or logits x, become cap * tanh(x / cap).
        mtp_layers: layers for multi-token prediction after the others; None: a family without.
        stacked_experts: a file may hold all experts of a layer in one tensor, gates and ups in turn.
        renames: parts of tensors' names in files, and what stands for them here.
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
    activation: Activation = "silu"
    norm_offset: float = 0.0
    post_norms: bool = False
    embedding_scale: float = 1.0
    value_dim: int = 0
    rotary_dim: int = 0
    rotary_layout: str = "halves-first"
    qkv_fused: bool = False
    sinks: int = 0
    sink_values: bool = False
    score_cap: float = 0.0
    logit_cap: float = 0.0
    mtp_layers: int | None = None
    stacked_experts: bool = False
    renames: tuple[tuple[str, str], ...] = ()

    @property
    def value_width(self) -> int:
        return self.value_dim or self.head_dim

    @property
    def rotary_width(self) -> int:
        return self.rotary_dim or self.head_dim

    @property
    def rotary_order(self) -> list[int]:
        """For each dim here, the dim of the file's heads, where pairs lie half a head apart and dims that stand still
        have frequency 0. Moving dims of queries and keys alike changes no score."""
        turning, half = self.rotary_width // 2, self.head_dim // 2
        first = self.head_dim - 2 * turning if self.rotary_layout == "halves-last" else 0
        if self.rotary_layout == "interleaved-first":
            pairs = [(2 * i, 2 * i + 1) for i in range(turning)]
        else:
            pairs = [(first + i, first + turning + i) for i in range(turning)]
        still = [d for d in range(self.head_dim) if not first <= d < first + 2 * turning]
        left, right = still[: half - turning], still[half - turning :]
        return [*(a for a, _ in pairs), *left, *(b for _, b in pairs), *right]

    @property
    def heads_as_stored(self) -> bool:
        """True where heads run with the dims that the file has, in its order."""
        reordered = self.rotary_order != list(range(self.head_dim))
        return not reordered and self.value_width == self.head_dim

    @property
    def qkv_names(self) -> tuple[str, ...]:
        return ("qkv",) if self.qkv_fused else ("q", "k", "v")

    @property
    def dynamic_rope(self) -> bool:
        """True where a row depends on the longest text that its request may become."""
        return self.rope_scaling is not None and self.rope_scaling.kind == "dynamic"

    def rope_length(self, max_len: int) -> int:
        """Return what decides the rotary base of a request that may become this long: equal numbers, equal keys."""
        return max(max_len, self.max_positions) if self.dynamic_rope else 0

    @property
    def context(self) -> int:
        """The longest text in tokens."""
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
        """Tell whether this layer's MLP has routed experts."""
        return self.experts > 0 and layer not in self.mlp_only_layers

    def window(self, layer: int) -> int:
        """Tokens that a row of this layer sees, itself included; 0: all."""
        return self.windows[layer] if self.windows else 0

    @property
    def state_layout(self) -> StateLayout:
        """What its layers keep of a text."""
        return StateLayout.grouped(self.layers, self.kv_heads, self.head_dim, self.windows)
