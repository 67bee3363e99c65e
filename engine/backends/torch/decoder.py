"""The decoder on plain torch: token ids and a KV cache in, logits out."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fastslow.engine.backends.torch.mtp import MtpDecoder
from fastslow.engine.backends.torch.weights import LayeredModel, Weights
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import check_step
from fastslow.engine.model.parts import padded
from fastslow.engine.rows import Rows
from fastslow.engine.types import ModelOutput


class Decoder(LayeredModel[Weights]):
    """A decoder of any layers.

    A row's result has the same bits whatever rows run beside it, however its text was cut into chunks."""

    storage = KVStorage

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        check_step(rows, kv, self.storage, features, self.layers)
        w, step = self.weights, self.weights.step(rows)
        x_PH = w.embed(step.tokens)
        if w.per_layer is not None:
            step.token_inputs = w.per_layer(step.tokens, x_PH)
        if (streams := self.config.streams) is not None:  # each begins as the embedding
            x_PH = x_PH.repeat(1, streams.count)
        groups = padded(rows.groups, step.padded)  # padding rows run no routed expert
        wanted, looked = (
            torch.from_numpy(x).to(self.device) for x in (rows.outputs, rows.feature_rows)
        )
        taken: dict[int, Tensor] = {}
        for n in self.layers:
            x_PH = w.layers[n](x_PH, kv, n, step, groups)
            if n in features:
                taken[n] = w.one_stream(x_PH.index_select(0, looked))
        seen = torch.cat([taken[n] for n in features], -1) if features else None
        last_MH = w.one_stream(x_PH.index_select(0, wanted))
        return w.output(w.norm(last_MH), rows, seen)

    @cached_property
    def mtp(self) -> MtpDecoder | None:
        return MtpDecoder(self.weights) if self.weights.mtp else None
