"""An assistant of a decoder on plain torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.kv.state.layout import SharedState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import check_step, inputs_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ops import wide
from fastslow.engine.model.parts import WeightReader, padded
from fastslow.engine.model.tensors import CENTROIDS, POST, PRE, TOKEN_ORDER
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, ModelOutput

NO_LOGIT = -1e30  # of tokens in other clusters: no probability, and a finite number


class ClusteredHead:
    """Logits of the tokens in the clusters whose centroids fit best; of all others NO_LOGIT."""

    def __init__(self, config: ModelConfig, reader: WeightReader, embedding: Tensor) -> None:
        assert config.assists is not None
        order = reader.read(TOKEN_ORDER).to(reader.device, torch.int64)
        if not torch.equal(order.sort().values, torch.arange(len(order), device=reader.device)):
            raise ValueError(f"tensor {TOKEN_ORDER} must have every token once")
        self._order = order.view(config.assists.clusters, -1)
        self._centroids, self._embedding = reader.matrix(CENTROIDS), embedding
        self._chosen, self._ops = config.assists.chosen, reader.ops

    def __call__(self, last_MH: Tensor) -> Tensor:
        """f32 [M, V] (f64 for f64)."""
        fit = self._ops.linear(last_MH, *self._centroids).topk(self._chosen, -1).indices
        tokens = self._order[fit].flatten(1)
        rows = F.embedding(tokens, self._embedding).to(last_MH.dtype)
        found = (rows @ last_MH[..., None]).squeeze(-1).to(wide(last_MH.dtype))
        logits = found.new_full((len(last_MH), self._order.numel()), NO_LOGIT)
        return logits.scatter_(-1, tokens, found)


class AssistantDecoder:
    """`MtpModel` of an assistant beside its target's weights. config: as `joined` gives it."""

    heads = 1

    def __init__(self, config: ModelConfig, reader: WeightReader, target: Weights) -> None:
        assert config.assists is not None
        self._own, self._target = Weights(config, reader), target
        self._pre, self._post = reader.matrix(PRE), reader.matrix(POST)
        states = [layer.mixer.state for layer in config.layers]
        self._layers = [state.layer for state in states if isinstance(state, SharedState)]
        clustered = config.assists.clusters > 0
        self._head = ClusteredHead(config, reader, self._own.embedding) if clustered else None

    @torch.inference_mode()
    def states(self, features: Features) -> Tensor:
        w = self._target
        return w.norm(torch.as_tensor(features).to(w.device, w.dtype))

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        check_step(rows, kv, KVStorage, (), ())
        own, target, step = self._own, self._target, self._target.step(rows)
        inputs = inputs_of(rows).to(target.device, target.dtype)
        states = F.pad(inputs, (0, 0, 0, step.padded - step.count))
        x_PH = own.ops.linear(torch.cat((target.embed(step.tokens), states), -1), *self._pre)
        groups = padded(rows.groups, step.padded)
        for layer, n in zip(own.layers, self._layers, strict=True):
            x_PH = layer(x_PH, kv, n, step, groups)
        wanted = torch.from_numpy(rows.outputs).to(target.device)
        last_MH = own.norm(x_PH.index_select(0, wanted))
        seen = own.ops.linear(last_MH, *self._post)
        if self._head is None:
            return own.output(last_MH, rows, seen)
        return ModelOutput(self._head(last_MH), seen, np.full(len(last_MH), -1))
