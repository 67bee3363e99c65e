"""A checkpoint's own layer for multi-token prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.checkpoint.checkpoint import Checkpoint, floats
from fastslow.engine.model.attention import rotation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import LayerWeights, Weights
from fastslow.engine.model.ops import Ops, soft_cap
from fastslow.engine.model.tensors import mtp_shapes
from fastslow.engine.types import ALL_GROUPS, Ints


@dataclass(slots=True)
class MtpLayer(Weights):
    """The layer that a checkpoint may hold after its own layers, with the model's embedding and head.

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
        self.embedding_norm = self._norm(f"{prefix}.enorm")
        self.hidden_norm = self._norm(f"{prefix}.hnorm")
        self.entry = self._packed(f"{prefix}.eh_proj.weight")
        self.layer = self._layer(self.config.layers)
        self.head_norm = self._norm(f"{prefix}.shared_head.norm")
        self.norm = self._norm("model.norm")
        tied = self.config.tie_word_embeddings
        self.head = self.ops.pack(self.embedding) if tied else self._packed("lm_head.weight")
        self._buffer = self._buffer.new_empty(0)

    def last_normed(self, x_RH: Tensor) -> Tensor:
        """The model's last hidden states as its head sees them."""
        return self.normed(x_RH.to(self.dtype), self.norm)

    def inputs(self, tokens: Ints, hidden_RH: Tensor) -> Tensor:
        """The layer's input [R, H]: tokens, and the hidden states before them."""
        embedded = self.embed(torch.from_numpy(tokens))
        pair = (
            self.normed(embedded, self.embedding_norm),
            self.normed(hidden_RH, self.hidden_norm),
        )
        return self.ops.linear(torch.cat(pair, -1), self.entry)

    def project(self, x_RH: Tensor, positions: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """float32 queries [R, heads, head_dim], keys and values [R, kv_heads, head_dim]."""
        max_len = np.zeros_like(positions)
        cos, sin = rotation(self.config, positions, max_len, torch.float32, self.device)
        fresh = self.normed(x_RH, self.layer.attention_norm)
        q, k, v = self.layer.attention.project(fresh, cos, sin)
        return q, k, v.float()

    def outputs(self, x_RH: Tensor, seen_RI: Tensor) -> Tensor:
        """The layer's output [R, H], the hidden states of the next step."""
        layer = self.layer
        moved = layer.attention.out_proj(seen_RI.to(self.dtype))
        x = x_RH + self.normed(moved, layer.attention_post_norm)
        moved = layer.mlp(self.normed(x, layer.mlp_norm), np.full(len(x), ALL_GROUPS))
        return x + self.normed(moved, layer.mlp_post_norm)

    def logits(self, hidden_RH: Tensor) -> Tensor:
        """float32 [R, V]."""
        logits = self.ops.linear(self.normed(hidden_RH, self.head_norm), self.head).float()
        return soft_cap(logits, self.config.logit_cap)


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
