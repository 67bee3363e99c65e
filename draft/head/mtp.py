"""A checkpoint's own layer for multi-token prediction, as a draft head.

Longer drafts feed the layer its own hidden states, as its trained depth is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastslow.draft.head.config import HeadConfig
from fastslow.draft.head.context import Context
from fastslow.draft.head.words import Common, Words
from fastslow.engine.model.predictor import Predictor, load_predictor


class MtpHead:
    """Drafts any token of the vocabulary; see `DraftHead` and `Head` for its methods.

    Args:
        predictor: the layer, with the model's embedding and head.

    It runs on the CPU, wherever the target does. A row depends on no other request's.
    """

    def __init__(self, predictor: Predictor) -> None:
        c = predictor.config
        self._predictor = predictor
        self.width = c.vocab_size
        self.common = Common(torch.arange(self.width), torch.empty(0, c.hidden_size))
        self.config = HeadConfig(
            hidden=c.hidden_size,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            neurons=c.moe_intermediate_size,
            layers=(c.layers - 1,),
            vocabulary=self.width,
            rope_theta=c.rope_theta,
            eps=c.rms_norm_eps,
            window=c.context,
            prompt=c.context,  # it was trained on whole texts
        )

    def read(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> Tensor:
        x, q = self._keep(features, after, contexts, sizes)
        ends = torch.tensor(sizes).cumsum(0) - 1
        seen = [c.attend(q[e : e + 1]) for c, e in zip(contexts, ends.tolist())]
        return self._predictor.leave(x[ends], torch.cat(seen))

    def store(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> None:
        self._keep(features, after, contexts, sizes)

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        sizes = [len(p) for p in parents]
        positions = [p for c, follows in zip(contexts, parents) for p in c.depths(follows)]
        x, q, k, v = self._enter(hidden, after, positions)
        parts = zip(contexts, *(torch.split(x, sizes) for x in (q, k, v)), parents)
        seen = [context.draft(*rows) for context, *rows in parts]
        return self._predictor.leave(x, torch.cat(seen))

    def logits(self, hidden: Tensor, words: Sequence[Words], sizes: Sequence[int]) -> list[Tensor]:
        return list(torch.split(self._predictor.logits(hidden), list(sizes)))

    def _keep(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        hidden = self._predictor.normed(features.to("cpu"))
        positions = [p for c, n in zip(contexts, sizes) for p in c.places(n)]
        x, q, k, v = self._enter(hidden, after, positions)
        each = list(sizes)
        for context, k_NKD, v_NKD in zip(contexts, torch.split(k, each), torch.split(v, each)):
            self._seat(context)
            context.commit(k_NKD, v_NKD)
        return x, q

    def _enter(
        self, hidden: Tensor, after: Sequence[int], positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self._predictor.enter(np.array(after, dtype=np.int64), hidden)
        return x, *self._predictor.project(x, np.array(positions, dtype=np.int64))

    def _seat(self, context: Context) -> None:
        """The layer's sinks stand before every text."""
        sinks = self._predictor.layer.attention.sinks
        extras = self._predictor.config.extras
        if sinks is not None and extras is not None and context.empty:
            k, v = (side[:, : extras.sinks].transpose(0, 1).float() for side in (sinks.k, sinks.v))
            context.precede(k, v)


def load_mtp(folder: Path, dtype: torch.dtype) -> MtpHead:
    """The head in a target's own checkpoint, which holds one, in a dtype."""
    return MtpHead(load_predictor(folder, dtype))
