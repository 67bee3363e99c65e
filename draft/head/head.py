"""A trained head, or a checkpoint's own layer for multi-token prediction, one step at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastslow.draft.head.config import MATRICES, NORMS, HeadConfig
from fastslow.draft.head.context import Context
from fastslow.draft.head.layer import HeadLayer, linear_for, rotation
from fastslow.draft.head.state import DraftVocab, RequestVocab
from fastslow.draft.head.target import Ends
from fastslow.engine.backends.device import ops_for
from fastslow.engine.model.families.pangu_v2 import MtpLayer, load_mtp_layer


class LayerSteps(ABC):
    """One layer that drafts, a step at a time: how rows go through it, whatever is in it."""

    def read(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> Tensor:
        """Take in committed rows; gives the hidden state [B, H] at each context's last new row.

        Args:
            features: [R, F] of the rows, context by context.
            after: R tokens, each the one after its row.
            contexts: B of them, which grow by their rows.
            sizes: rows of each context, at least 1.
        """
        x, q = self._keep(features, after, contexts, sizes)
        ends = torch.tensor(sizes).cumsum(0) - 1
        seen = [c.attend(q[e : e + 1]) for c, e in zip(contexts, ends.tolist())]
        return self._leave(x[ends], torch.cat(seen))

    def store(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> None:
        """As `read`, of rows that nothing is drafted from: only their keys and values are made."""
        self._keep(features, after, contexts, sizes)

    def step(
        self,
        hidden: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        parents: Sequence[Sequence[int]],
    ) -> Tensor:
        """One more token of drafts; gives the hidden states [R, H] of the rows.

        Args:
            hidden: [R, H], what the head put out before each token.
            after: R tokens just drafted.
            contexts: B of them, each with the rows of its draft.
            parents: per context, the draft row that each of its new rows follows; -1 = committed.
        """
        sizes = [len(p) for p in parents]
        positions = [p for c, follows in zip(contexts, parents) for p in c.depths(follows)]
        x, q, k, v = self._enter(hidden, after, positions)
        parts = zip(contexts, *(torch.split(x, sizes) for x in (q, k, v)), parents)
        seen = [context.draft(*rows) for context, *rows in parts]
        return self._leave(x, torch.cat(seen))

    def _keep(
        self,
        features: Tensor,
        after: Sequence[int],
        contexts: Sequence[Context],
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """The rows in front of the layer, and their queries; keys and values go to the contexts."""
        hidden = self._fuse(features)
        positions = [p for c, n in zip(contexts, sizes) for p in c.places(n)]
        x, q, k, v = self._enter(hidden, after, positions)
        each = list(sizes)
        for context, k_NKD, v_NKD in zip(contexts, torch.split(k, each), torch.split(v, each)):
            self._commit(context, k_NKD, v_NKD)
        return x, q

    @abstractmethod
    def _fuse(self, features: Tensor) -> Tensor:
        """[R, H] from the target's features [R, F]."""

    @abstractmethod
    def _enter(
        self, hidden: Tensor, after: Sequence[int], positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The layer's input, and queries, keys and values."""

    @abstractmethod
    def _leave(self, x: Tensor, seen: Tensor) -> Tensor:
        """The layer's output, from its input and what attention saw."""

    def _commit(self, context: Context, k_NKD: Tensor, v_NKD: Tensor) -> None:
        """Keep keys and values of committed rows."""
        context.commit(k_NKD, v_NKD)


class Head(LayerSteps):
    """One decoder layer with the target's embedding in front and rows of its head behind.

    Args:
        config: its shape.
        weights: of `HeadConfig.shapes`, any float dtype.
        ends: of the target.

    It runs on the CPU, wherever the target does.

    Attributes:
        common: the draft vocabulary.
        width: V, of the target's vocabulary.
    """

    def __init__(self, config: HeadConfig, weights: dict[str, Tensor], ends: Ends) -> None:
        self.config = config
        tokens = weights["tokens"].long()
        self.width = len(ends.embedding)
        self.common = DraftVocab(tokens, ends.head)
        self._embedding = ends.embedding
        self._turns = rotation(config, torch.arange(1024))
        matrices = {name: weights[name] for name in MATRICES}
        linear = linear_for(matrices | {"head": ends.head[tokens]})
        self._layer = HeadLayer(config, {name: weights[name].float() for name in NORMS}, linear)

    def logits(
        self, hidden: Tensor, words: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        """Per request f32 [r, D + E], in the order of its words' `ids`.

        Args:
            hidden: [R, H], request by request.
            words: of each request.
            sizes: rows of each request.
        """
        ready = self._layer.ready(hidden)
        each = list(sizes)
        parts = zip(torch.split(self._layer.logits(ready), each), torch.split(ready, each), words)
        return [torch.cat((logits, own @ w.rows.T), -1) for logits, own, w in parts]

    def _fuse(self, features: Tensor) -> Tensor:
        return self._layer.fuse(features.to("cpu", torch.float32))

    def _leave(self, x: Tensor, seen: Tensor) -> Tensor:
        return self._layer.leave(x, seen)

    def _enter(
        self, hidden: Tensor, after: Sequence[int], positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        embedded = self._embedding[torch.tensor(after)].float()
        x = self._layer.enter(embedded, hidden)
        while max(positions) >= len(self._turns[0]):
            self._turns = rotation(self.config, torch.arange(2 * len(self._turns[0])))
        cos, sin = (table[list(positions)] for table in self._turns)
        return x, *self._layer.project(x, cos, sin)


def read_metadata(path: Path) -> dict[str, str]:
    """What a head's file says of itself: kind, config, target (a fingerprint), provenance."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_head(path: Path) -> tuple[HeadConfig, dict[str, Tensor]]:
    """Config and weights of a head's file, checked.

    Raises:
        ValueError: one sentence about what is wrong with the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = HeadConfig.from_metadata(file.metadata())
            names = set(file.keys())
            weights = {name: file.get_tensor(name) for name in config.shapes() if name in names}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"head {path} cannot be read: {error}") from None
    except ValueError as error:
        raise ValueError(f"head {path}: {error}") from None
    for name, shape in config.shapes().items():
        if name not in weights:
            raise ValueError(f"head {path} lacks tensor {name} of shape {list(shape)}")
        if tuple(weights[name].shape) != shape:
            found = list(weights[name].shape)
            raise ValueError(f"head {path}: tensor {name} is {found}, not {list(shape)}")
    return config, weights


class MtpHead(LayerSteps):
    """Drafts any token of the vocabulary; see `DraftHead` and `Head` for its methods.

    Args:
        predictor: the layer, with the model's embedding and head.

    It runs on the CPU, wherever the target does. A row depends on no other request's.
    """

    def __init__(self, predictor: MtpLayer) -> None:
        c = predictor.config
        self._predictor = predictor
        self.width = c.vocab_size
        self.common = DraftVocab(torch.arange(self.width), torch.empty(0, c.hidden_size))
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

    def logits(
        self, hidden: Tensor, words: Sequence[RequestVocab], sizes: Sequence[int]
    ) -> list[Tensor]:
        return list(torch.split(self._predictor.logits(hidden), list(sizes)))

    def _fuse(self, features: Tensor) -> Tensor:
        return self._predictor.normed(features.to("cpu"))

    def _enter(
        self, hidden: Tensor, after: Sequence[int], positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self._predictor.inputs(np.array(after, dtype=np.int64), hidden)
        return x, *self._predictor.project(x, np.array(positions, dtype=np.int64))

    def _leave(self, x: Tensor, seen: Tensor) -> Tensor:
        return self._predictor.outputs(x, seen)

    def _commit(self, context: Context, k_NKD: Tensor, v_NKD: Tensor) -> None:
        # the layer's sinks stand before every text
        sinks = self._predictor.layer.attention.sinks
        family = self._predictor.config.pangu_v2
        if sinks is not None and family is not None and context.empty:
            k, v = (side[:, : family.sinks].transpose(0, 1).float() for side in (sinks.k, sinks.v))
            context.precede(k, v)
        super()._commit(context, k_NKD, v_NKD)


def load_mtp(folder: Path, dtype: torch.dtype) -> MtpHead:
    """The head in a target's own checkpoint, which holds one, in a dtype."""
    return MtpHead(load_mtp_layer(folder, dtype, ops_for("cpu")))
