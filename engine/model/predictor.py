"""The layer for multi-token prediction that a checkpoint may hold behind its own layers.

DeepSeek-V3, arXiv 2412.19437, section 2.2: the embedding of the next token and the hidden state before
it, each normed, are brought to one vector, which a whole decoder layer and the model's head turn
into logits of the token after the next one. The hidden state is the model's last, normed as its head
sees it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.model.checkpoint import Checkpoint, floats
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.extra_weights import ExtraWeights
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.names import draft_shapes
from fastslow.engine.model.ops import Ops
from fastslow.engine.model.rope import rotation
from fastslow.engine.model.weights import LayerWeights
from fastslow.engine.types import ALL_GROUPS, Ints


@dataclass(slots=True)
class Predictor(ExtraWeights):
    """Embedding, one layer and head; attention itself is the caller's. Letters: R rows."""

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

    def enter(self, tokens: Ints, hidden_RH: Tensor) -> Tensor:
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

    def leave(self, x_RH: Tensor, seen_RI: Tensor) -> Tensor:
        """The layer's output [R, H], the hidden states of the next step."""
        layer = self.layer
        x = x_RH + self._behind(
            layer.attention.leave(seen_RI.to(self.dtype)), layer.behind_attention
        )
        fresh = self._norm(x, layer.mlp_norm)
        every = np.full(len(x), ALL_GROUPS)
        moved = layer.mlp(fresh, every) if isinstance(layer.mlp, Moge) else layer.mlp(fresh)
        return x + self._behind(moved, layer.behind_mlp)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        return self.ops.linear(self._norm(hidden_RH, self.head_norm), self.head).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(x, weight, self.config.rms_norm_eps)

    def _behind(self, moved: Tensor, norm: Tensor | None) -> Tensor:
        return moved if norm is None else self._norm(moved, norm)


def holds_predictor(folder: Path) -> bool:
    """Whether the checkpoint in a folder has such a layer, whole."""
    config = ModelConfig.from_folder(folder)
    wanted = draft_shapes(config)
    if not wanted:
        return False
    return set(wanted) <= Checkpoint.own(folder, config).names


def load_predictor(folder: Path, dtype: torch.dtype, ops: Ops) -> Predictor:
    """The layer of a checkpoint that holds one, on the CPU; float64 becomes float32."""
    config = ModelConfig.from_folder(folder)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    cpu = torch.device("cpu")
    with floats(folder, config) as read:
        return Predictor(config, ops, dtype, cpu, read)
