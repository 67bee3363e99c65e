"""A draft head that a checkpoint brings: its layer for multi-token prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.head import DraftHead, Projected
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.engine.backends.device import ops_for
from fastslow.engine.checkpoint.checkpoint import Checkpoint, floats
from fastslow.engine.model.attention import rotation
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.decoder import LayerWeights, Weights
from fastslow.engine.model.ops import soft_cap
from fastslow.engine.model.tensors import mtp_shapes
from fastslow.engine.rows import ALL_GROUPS


@dataclass(slots=True)
class MtpLayer(Weights):
    """The layer that a checkpoint may hold after its own layers, with the model's embedding and head.

    DeepSeek-V3, arXiv 2412.19437, section 2.2: the embedding of the next token and the hidden state
    before it, each normed, are brought to one vector, which a whole decoder layer and the model's head
    turn into logits of the token after the next one. The hidden state is the model's last, normed as
    its head sees it.
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


class MtpHead(DraftHead):
    """The layer as a draft head, which drafts any token of the vocabulary. A row's bits depend on no other
    request's."""

    def __init__(self, layer: MtpLayer) -> None:
        c = layer.config
        self._layer = layer
        self.vocab_size = c.vocab_size
        self.vocab = DraftVocab(torch.arange(c.vocab_size), None)
        self.config = HeadConfig(
            hidden=c.hidden_size,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            neurons=c.moe_intermediate_size,
            layers=(c.layers - 1,),
            vocabulary=c.vocab_size,
            rope_theta=c.rope_theta,
            eps=c.rms_norm_eps,
            window=c.context,
            prompt=c.context,  # it was trained on whole texts
        )
        sinks = layer.layer.attention.sinks
        if sinks is not None:
            k, v = (side[:, : c.sinks].transpose(0, 1).float() for side in (sinks.k, sinks.v))
            self.sinks = k, v

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        layer = self._layer
        logits = layer.ops.linear(layer.normed(hidden, layer.head_norm), layer.head).float()
        return list(torch.split(soft_cap(logits, layer.config.logit_cap), list(sizes)))

    def _fuse(self, features: Tensor) -> Tensor:
        """The model's last hidden states as its own head sees them."""
        return self._layer.normed(features.to("cpu", self._layer.dtype), self._layer.norm)

    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        layer, positions = self._layer, np.array(at, dtype=np.int64)
        embedded = layer.normed(layer.embed(torch.tensor(after)), layer.embedding_norm)
        pair = torch.cat((embedded, layer.normed(hidden, layer.hidden_norm)), -1)
        x = layer.ops.linear(pair, layer.entry)
        max_len = np.zeros_like(positions)
        cos, sin = rotation(layer.config, positions, max_len, torch.float32, layer.device)
        fresh = layer.normed(x, layer.layer.attention_norm)
        q, k, v = layer.layer.attention.project(fresh, cos, sin)
        return x, q, k, v.float()

    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        own, inner = self._layer, self._layer.layer
        moved = inner.attention.out_proj(attended.to(own.dtype))
        x = x + own.normed(moved, inner.attention_post_norm)
        moved = inner.mlp(own.normed(x, inner.mlp_norm), np.full(len(x), ALL_GROUPS))
        return x + own.normed(moved, inner.mlp_post_norm)


def has_mtp_layer(folder: Path) -> bool:
    """Tell whether the checkpoint in a folder has an MTP layer, whole."""
    config = ModelConfig.from_folder(folder)
    wanted = set(mtp_shapes(config))
    return bool(wanted) and wanted <= Checkpoint.own(folder, config).names


def load_mtp(folder: Path, dtype: torch.dtype) -> MtpHead:
    """The head in the checkpoint of a target that has such a layer, on the CPU; float64 becomes float32."""
    config = ModelConfig.from_folder(folder)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    with floats(folder, config) as read:
        return MtpHead(MtpLayer(config, ops_for("cpu"), dtype, torch.device("cpu"), read))
