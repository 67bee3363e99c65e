"""Draft heads in plain torch, one step at a time. Letters: B texts, R rows, F feature size, H hidden size,
D draft vocabulary, E a text's own tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow.draft.head.config import MATRICES, NORMS, Ends, HeadConfig
from fastslow.draft.head.eagle import EagleConfig
from fastslow.draft.head.layer import HeadKV, HeadLayer, after_attention, rotation
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.engine.checkpoint.row_file import RowFile
from fastslow.engine.model.norms import plain_norm

Projected = tuple[Tensor, Tensor, Tensor, Tensor]
"""The layer's inputs [R, H], queries [R, heads, D], keys and values [R, kv_heads, D]."""


class DraftHead(ABC):
    """A drafting head of one decoder layer. It runs on the CPU, wherever the target does. vocab_size: V, of the target.
    sinks: keys and values [S, kv_heads, D] before every text, if it has any."""

    config: HeadConfig
    vocab: DraftVocab
    vocab_size: int
    sinks: tuple[Tensor, Tensor] | None = None

    def read(
        self, features: Tensor, after: Sequence[int], kvs: Sequence[HeadKV], sizes: Sequence[int]
    ) -> Tensor:
        """Add committed rows; the hidden states [B, H] at each text's last new row. features: [R, F] of the rows,
        text by text. after: R tokens, each what comes after its row. sizes: rows of each text, at least 1."""
        x, q = self.store(features, after, kvs, sizes)
        ends = torch.tensor(sizes).cumsum(0) - 1
        attended = [kv.attend(q[e : e + 1]) for kv, e in zip(kvs, ends.tolist())]
        return self._output(x[ends], torch.cat(attended))

    def store(
        self, features: Tensor, after: Sequence[int], kvs: Sequence[HeadKV], sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Add committed rows that nothing is drafted from; their layer inputs [R, H] and queries."""
        hidden = self._fuse(features)
        positions = [kv.position + i for kv, n in zip(kvs, sizes) for i in range(n)]
        x, q, k, v = self._project(hidden, after, positions)
        each = list(sizes)
        for kv, k_NKD, v_NKD in zip(kvs, torch.split(k, each), torch.split(v, each)):
            if self.sinks is not None:
                kv.prepend(*self.sinks)
            kv.commit(k_NKD, v_NKD)
        return x, q

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        kvs: Sequence[HeadKV],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """Run R tokens just drafted; return the hidden states [R, H] of their rows. hidden: [R, H], the head's output
        before each token. after: these tokens. parents: per text, the draft row before each of its new rows;
        -1 = the last committed row."""
        sizes = [len(p) for p in parents]
        positions = [p for kv, rows in zip(kvs, parents) for p in kv.draft_positions(rows)]
        x, q, k, v = self._project(hidden, after, positions)
        parts = zip(kvs, *(torch.split(x, sizes) for x in (q, k, v)), parents)
        return self._output(x, torch.cat([kv.draft(*rows) for kv, *rows in parts]))

    @abstractmethod
    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Per text f32 [rows, D + E] in the order of its vocabulary's `ids`, from hidden states [R, H]."""

    @abstractmethod
    def _fuse(self, features: Tensor) -> Tensor:
        """Hidden states [R, H] from features [R, F]."""

    @abstractmethod
    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        """From hidden states [R, H], the tokens after them, and their positions."""

    @abstractmethod
    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [R, H]."""


class TrainedHead(DraftHead):
    """A head of `fastslow train-draft`, between the embedding and the head of the target's `ends`; weights
    have the names and shapes of `HeadConfig.shapes` and any float dtype."""

    def __init__(self, config: HeadConfig, weights: dict[str, Tensor], ends: Ends) -> None:
        self.config = config
        tokens = weights["tokens"].long()
        self.vocab_size = len(ends.embedding)
        self.vocab = DraftVocab(tokens, ends.head)
        self._embedding = ends.embedding
        self._rotation = rotation(config, torch.arange(1024))
        matrices = {name: weights[name].float() for name in MATRICES}
        matrices["head"] = ends.head[tokens].float()
        norms = {name: weights[name].float() for name in NORMS}
        self._layer = HeadLayer(config, norms, lambda name, x: F.linear(x, matrices[name]))

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        normed, each = self._layer.final_norm(hidden), list(sizes)
        common = torch.split(self._layer.logits(normed), each)
        parts = zip(common, torch.split(normed, each), vocabs)
        return [torch.cat((logits, own @ vocab.rows.T), -1) for logits, own, vocab in parts]

    def _fuse(self, features: Tensor) -> Tensor:
        return self._layer.fuse(features.to("cpu", torch.float32))

    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        x = self._layer.input(self._embedding[torch.tensor(after)].float(), hidden)
        while max(at) >= len(self._rotation[0]):
            self._rotation = rotation(self.config, torch.arange(2 * len(self._rotation[0])))
        cos, sin = (table[list(at)] for table in self._rotation)
        return x, *self._layer.project(x, cos, sin)

    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        return self._layer.output(x, attended)


class EagleHead(DraftHead):
    """A published EAGLE-3 head, of the weights that `read_eagle` gave, with the embedding [V, H] of the
    target or its own. It has a head for its vocabulary, so a text's own tokens cannot be added."""

    def __init__(
        self, config: EagleConfig, weights: Mapping[str, Tensor], embedding: Tensor | RowFile
    ) -> None:
        self.config = config.shape
        self.vocab_size = config.target_vocab
        self.vocab = DraftVocab(weights["tokens"], None)
        self._eagle = config
        self._embedding = embedding
        self._weights = {name: w.float() for name, w in weights.items() if name != "tokens"}

    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        normed = hidden if self._eagle.normed_output else self._norm("norm", hidden)
        return list(torch.split(self._linear("head", normed), list(sizes)))

    def _fuse(self, features: Tensor) -> Tensor:
        level = features.to("cpu", torch.float32)
        if together := self._eagle.normed_together:
            parts = level.view(len(level), -1, together)
            level = plain_norm(parts, self.config.eps).flatten(1)
        return self._linear("fuse", level)

    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        c, embedded = self.config, self._embedding[torch.tensor(after)].float()
        normed = self._norm("hidden_norm", hidden)
        pair = torch.cat((self._norm("embedding_norm", embedded), normed), -1)
        mixed = self._linear("qkv", pair).unflatten(-1, (c.heads + 2 * c.kv_heads, -1))
        q, k, v = torch.split(mixed, [c.heads, c.kv_heads, c.kv_heads], -2)
        if self._eagle.head_norms:
            q, k = self._norm("query_norm", q), self._norm("key_norm", k)
        cos, sin = self._eagle.rope.rotation(
            np.array(at, dtype=np.int64),
            np.full(len(at), self._eagle.rope.context, dtype=np.int64),
            torch.float32,
            torch.device("cpu"),
        )
        q, k = (x * cos + x.roll(x.shape[-1] // 2, -1) * sin for x in (q, k))
        return normed if self._eagle.normed_residual else hidden, q, k, v

    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        x = after_attention(x, attended, self._linear, partial(self._norm, "mlp_norm"))
        return self._norm("norm", x) if self._eagle.normed_output else x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return plain_norm(x, self.config.eps, self._weights[name])

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[name], self._weights.get(f"{name}_bias"))
