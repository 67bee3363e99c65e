"""openPangu Pro MoE V2 (openPangu-R-72B): its weights, in the order in which the decoder runs them, and
its layer for multi-token prediction.

Heads keep their rotated pairs half a head apart, as in the other architectures, and dims that stand
still have frequency 0; so the loader moves dims of queries and keys, which changes no score. Values
narrower than keys are filled up with zeros, which the output matrix meets with zero columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.engine.model.attention import Attention
from fastslow.engine.model.checkpoint import Checkpoint, floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.families.pangu_v2_config import FIRST
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.ops import Ops, Sinks, wide
from fastslow.engine.model.rope import rotation
from fastslow.engine.model.shape import PanguV2Config
from fastslow.engine.model.tensors import mtp_shapes
from fastslow.engine.model.weights import LayerWeights, Weights
from fastslow.engine.types import ALL_GROUPS, Ints


def rotary_order(head_dim: int, family: PanguV2Config) -> list[int]:
    """Which dim of the checkpoint's heads each dim of ours is."""
    turning, half = family.rotary_dim // 2, head_dim // 2
    if family.rotary_layout == FIRST:
        pairs = [(2 * i, 2 * i + 1) for i in range(turning)]
        still = list(range(2 * turning, head_dim))
    else:
        first = head_dim - 2 * turning
        pairs = [(first + i, first + turning + i) for i in range(turning)]
        still = list(range(first))
    left, right = still[: half - turning], still[half - turning :]
    return [*(a for a, _ in pairs), *left, *(b for _, b in pairs), *right]


@dataclass(slots=True)
class PanguV2Weights(Weights):
    """`Weights` of a config of this family."""

    @property
    def family(self) -> PanguV2Config:
        assert self.config.pangu_v2 is not None
        return self.config.pangu_v2

    def _layer(self, n: int) -> LayerWeights:
        prefix, mlp = f"model.layers.{n}", f"model.layers.{n}.mlp"
        first, second = (
            self._plain(f"{prefix}.{name}_layernorm.weight") for name in ("input", "post_attention")
        )
        layer = LayerWeights(
            first,
            self._attention(f"{prefix}.self_attn", n),
            second,
            self._mlp(mlp, bias=False)
            if n in self.config.mlp_only_layers
            else self._moge(mlp, "shared_experts"),
        )
        if self.family.sandwich:
            layer.mlp_norm = self._plain(f"{prefix}.pre_mlp_layernorm.weight")
            layer.attention_post_norm = second
            layer.mlp_post_norm = self._plain(f"{prefix}.post_mlp_layernorm.weight")
        return layer

    def _attention(self, prefix: str, n: int) -> Attention:
        c, missing = self.config, self.config.head_dim - self.family.value_dim
        order = rotary_order(c.head_dim, self.family)
        turned = (c.heads + c.kv_heads) * c.head_dim
        whole = self.read(f"{prefix}.qkv_proj.weight")
        heads = whole[:turned].view(-1, c.head_dim, whole.shape[1])[:, order].flatten(0, 1)
        values = whole[turned:].view(c.kv_heads, -1, whole.shape[1])
        values = F.pad(values, (0, 0, 0, missing)).flatten(0, 1)
        out = self.read(f"{prefix}.o_proj.weight").view(c.hidden_size, c.heads, -1)
        key_norm = self._plain(f"{prefix}.k_layernorm.weight")[order]
        return Attention(
            c,
            self.ops,
            self._pack([heads, values]),
            None,
            self._pack([F.pad(out, (0, missing)).flatten(1)]),
            None,
            key_norm=key_norm,
            sinks=self._sinks(prefix, order, key_norm) if self.family.sinks else None,
        )

    def _sinks(self, prefix: str, order: list[int], key_norm: Tensor) -> Sinks:
        c, family = self.config, self.family
        keys = self._plain(f"{prefix}.param_sink_key")[..., order]
        keys = self.ops.rms_norm(keys.contiguous(), key_norm, c.rms_norm_eps)
        if not family.sink_values:
            values = torch.zeros_like(keys)
        else:
            values = self._plain(f"{prefix}.param_sink_value")
            values = F.pad(values, (0, c.head_dim - family.value_dim))
        return Sinks.of(keys, values, self.ops.block, wide(self.dtype))


@dataclass(slots=True)
class MtpLayer(PanguV2Weights):
    """The layer that a checkpoint may hold behind its own layers, with the model's embedding and head.

    DeepSeek-V3, arXiv 2412.19437, section 2.2: the embedding of the next token and the hidden state
    before it, each normed, are brought to one vector, which a whole decoder layer and the model's head
    turn into logits of the token after the next one. The hidden state is the model's last, normed as
    its head sees it. Attention itself is the caller's. Letters: R rows.
    """

    layer: LayerWeights = field(init=False)
    embedding_norm: Tensor = field(init=False)
    hidden_norm: Tensor = field(init=False)
    entry: Tensor = field(init=False)
    head_norm: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = torch.empty(0, dtype=self.dtype, device=self.device)
        prefix = f"model.layers.{self.config.layers}"
        self.embedding = self._plain("model.embed_tokens.weight")
        self.embedding_norm = self._plain(f"{prefix}.enorm.weight")
        self.hidden_norm = self._plain(f"{prefix}.hnorm.weight")
        self.entry = self._packed(f"{prefix}.eh_proj.weight")
        self.layer = self._layer(self.config.layers)
        self.head_norm = self._plain(f"{prefix}.shared_head.norm.weight")
        self.norm = self._plain("model.norm.weight")
        tied = self.config.tie_word_embeddings
        self.head = self.ops.pack(self.embedding) if tied else self._packed("lm_head.weight")
        self._buffer = self._buffer.new_empty(0)

    def normed(self, x_RH: Tensor) -> Tensor:
        """The model's last hidden states as its head sees them."""
        return self._norm(x_RH.to(self.dtype), self.norm)

    def inputs(self, tokens: Ints, hidden_RH: Tensor) -> Tensor:
        """The layer's input [R, H]: tokens, and the hidden states before them."""
        embedded = self.embedding.index_select(0, torch.from_numpy(tokens))
        pair = (self._norm(embedded, self.embedding_norm), self._norm(hidden_RH, self.hidden_norm))
        return self.ops.linear(torch.cat(pair, -1), self.entry)

    def project(self, x_RH: Tensor, positions: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """float32 queries [R, heads, head_dim], keys and values [R, kv_heads, head_dim]."""
        max_len = np.zeros_like(positions)
        cos, sin = rotation(self.config, positions, max_len, torch.float32, self.device)
        fresh = self._norm(x_RH, self.layer.attention_norm)
        q, k, v = self.layer.attention.project(fresh, cos, sin)
        return q, k, v.float()

    def outputs(self, x_RH: Tensor, seen_RI: Tensor) -> Tensor:
        """The layer's output [R, H], the hidden states of the next step."""
        layer = self.layer
        x = x_RH + self._post_normed(
            layer.attention.out_proj(seen_RI.to(self.dtype)), layer.attention_post_norm
        )
        fresh = self._norm(x, layer.mlp_norm)
        every = np.full(len(x), ALL_GROUPS)
        moved = layer.mlp(fresh, every) if isinstance(layer.mlp, Moge) else layer.mlp(fresh)
        return x + self._post_normed(moved, layer.mlp_post_norm)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        return self.ops.linear(self._norm(hidden_RH, self.head_norm), self.head).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(x, weight, self.config.rms_norm_eps)

    def _post_normed(self, moved: Tensor, norm: Tensor | None) -> Tensor:
        return moved if norm is None else self._norm(moved, norm)


def has_mtp_layer(folder: Path) -> bool:
    """Whether the checkpoint in a folder has such a layer, whole."""
    config = ModelConfig.from_folder(folder)
    wanted = mtp_shapes(config)
    if not wanted:
        return False
    return set(wanted) <= Checkpoint.own(folder, config).names


def load_mtp_layer(folder: Path, dtype: torch.dtype, ops: Ops) -> MtpLayer:
    """The layer of a checkpoint that holds one, on the CPU; float64 becomes float32."""
    config = ModelConfig.from_folder(folder)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    cpu = torch.device("cpu")
    with floats(folder, config) as read:
        return MtpLayer(config, ops, dtype, cpu, read)
