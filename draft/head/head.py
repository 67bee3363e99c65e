"""Draft heads in plain torch, one step at a time: a trained one, and a checkpoint's own layer for MTP.

Letters: B texts, R rows, F feature size, H hidden size, D draft vocabulary, E a text's own tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.config import MATRICES, NORMS, HeadConfig
from fastslow.draft.head.layer import HeadKV, HeadLayer, linear_for, rotation
from fastslow.draft.head.mtp import MtpLayer, load_mtp_layer
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.target import Ends
from fastslow.engine.backends.device import ops_for

Projected = tuple[Tensor, Tensor, Tensor, Tensor]
"""The layer's inputs [R, H], queries [R, heads, head_dim], keys and values [R, kv_heads, head_dim]."""


class DraftHead(ABC):
    """One decoder layer. It runs on the CPU, wherever the target does.

    Attributes:
        config: its shape.
        vocab: the draft vocabulary.
        vocab_size: V, of the target.
        sinks: keys and values [S, kv_heads, head_dim] before every text, if it has any.
    """

    config: HeadConfig
    vocab: DraftVocab
    vocab_size: int
    sinks: tuple[Tensor, Tensor] | None = None

    def read(
        self, features: Tensor, after: Sequence[int], kvs: Sequence[HeadKV], sizes: Sequence[int]
    ) -> Tensor:
        """Add committed rows; the hidden states [B, H] at each text's last new row.

        Args:
            features: [R, F] of the rows, text by text.
            after: R tokens, each the one after its row.
            kvs: B of them, which grow by their rows.
            sizes: rows of each text, at least 1.
        """
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
        """One more token of drafts; the hidden states [R, H] of the rows.

        Args:
            hidden: [R, H], the head's output before each token.
            after: R tokens just drafted.
            kvs: B of them, each with the rows of its draft.
            parents: per text, the draft row before each of its new rows; -1 = the last committed one.
        """
        sizes = [len(p) for p in parents]
        positions = [p for kv, rows in zip(kvs, parents) for p in kv.draft_positions(rows)]
        x, q, k, v = self._project(hidden, after, positions)
        parts = zip(kvs, *(torch.split(x, sizes) for x in (q, k, v)), parents)
        return self._output(x, torch.cat([kv.draft(*rows) for kv, *rows in parts]))

    @abstractmethod
    def logits(
        self, hidden: Tensor, vocabs: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Per text f32 [rows, D + E], in the order of its vocabulary's `ids`. `hidden` [R, H] holds the
        rows text by text, `sizes` their numbers."""

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
        matrices = {name: weights[name] for name in MATRICES}
        linear = linear_for(matrices | {"head": ends.head[tokens]})
        self._layer = HeadLayer(config, {name: weights[name].float() for name in NORMS}, linear)

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


class MtpHead(DraftHead):
    """A checkpoint's layer for multi-token prediction, with the model's embedding and head; it drafts any
    token of the vocabulary. A row's bits depend on no other request's."""

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
        return list(torch.split(self._layer.logits(hidden), list(sizes)))

    def _fuse(self, features: Tensor) -> Tensor:
        return self._layer.last_normed(features.to("cpu"))

    def _project(self, hidden: Tensor, after: Sequence[int], at: Sequence[int]) -> Projected:
        x = self._layer.inputs(np.array(after, dtype=np.int64), hidden)
        return x, *self._layer.project(x, np.array(at, dtype=np.int64))

    def _output(self, x: Tensor, attended: Tensor) -> Tensor:
        return self._layer.outputs(x, attended)


def load_mtp(folder: Path, dtype: torch.dtype) -> MtpHead:
    """The head in a target's own checkpoint, which holds one, in a dtype."""
    return MtpHead(load_mtp_layer(folder, dtype, ops_for("cpu")))
