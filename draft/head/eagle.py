"""A published EAGLE-3 head in plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.eagle_config import EagleConfig
from fastslow.draft.head.head import DraftHead, Projected
from fastslow.draft.head.layer import Linear, linear_for
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.model.rope import rotation

MATRICES = ("fuse", "qkv", "out", "gate_up", "down", "head")


class EagleHead(DraftHead):
    """Its attention reads a token's embedding and a hidden state side by side, and its vocabulary has a
    head of its own, so a text's own tokens cannot be added to it.

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
