"""The MTP layers of a decoder on plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.torch.weights import Weights
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import check_step, inputs_of
from fastslow.engine.model.parts import padded
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, ModelOutput


class MtpDecoder:
    """`MtpModel` of a `Decoder`."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self.heads = weights, len(weights.mtp)

    @torch.inference_mode()
    def states(self, features: Features) -> Tensor:
        w = self._weights
        states = torch.as_tensor(features).to(w.device, w.dtype)
        return w.norm(states) if w.mtp[0].shape.after_norm else states

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        check_step(rows, kv, KVStorage, (), ())
        w, mtp, step = self._weights, self._weights.mtp[head], self._weights.step(rows)
        n = len(w.config.layers) + head % self.heads
        inputs = inputs_of(rows).to(w.device, w.dtype)
        states = F.pad(inputs, (0, 0, 0, step.padded - step.count))
        x_PH = mtp.enter(mtp.embedding_norm(w.embed(step.tokens)), mtp.hidden_norm(states))
        if not len(rows.feature_rows):
            last_MH = mtp.layer.mix(x_PH, kv, n, step)[:0]
            return w.output(last_MH, rows, last_MH)
        x_PH = mtp.layer(x_PH, kv, n, step, padded(rows.groups, step.padded))
        wanted, seen = (
            mtp.norm(x_PH.index_select(0, torch.from_numpy(some).to(w.device)))
            for some in (rows.outputs, rows.feature_rows)
        )
        return w.output(wanted, rows, seen)
