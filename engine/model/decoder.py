"""The decoder: token ids and a KV cache in, logits out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.attention import Step
from fastslow.engine.model.base import LayeredModel, best_tokens, check_step
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.ops import wide
from fastslow.engine.model.weights import Weights
from fastslow.engine.types import Ints, ModelOutput, Rows


class Decoder(LayeredModel[Weights]):
    """A pre-norm transformer of any known architecture; what differs is a layer's MLP.

    A row's result has the same bits whatever rows run beside it, however its text was cut into
    chunks, and whichever slots hold its keys (see `engine.backends.torch.reference`).
    """

    storage = KVStorage

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """See `Model.forward`."""
        check_step(rows, kv, self.storage, features, self.layers)
        x_PH, step, groups = self._start(rows)
        ops, eps = self.weights.ops, self.config.rms_norm_eps
        wanted, looked = (
            torch.from_numpy(x).to(self.device) for x in (rows.outputs, rows.feature_rows)
        )
        taken: dict[int, Tensor] = {}
        for n in self.layers:
            layer = self.weights.layers[n]
            fresh = ops.rms_norm(x_PH, layer.attention_norm, eps)
            moved = layer.attention(fresh, kv.k[n], kv.v[n], step)
            x_PH = x_PH + self._post_normed(moved, layer.attention_post_norm)
            fresh = ops.rms_norm(x_PH, layer.mlp_norm, eps)
            mlp = layer.mlp
            moved = mlp(fresh, groups) if isinstance(mlp, Moge) else mlp(fresh)
            x_PH = x_PH + self._post_normed(moved, layer.mlp_post_norm)
            if n in features:
                taken[n] = x_PH.index_select(0, looked)
        last_MH = ops.rms_norm(x_PH.index_select(0, wanted), self.weights.norm, eps)
        logits_MV = self._logits(last_MH)
        return ModelOutput(
            logits_MV,
            torch.cat([taken[n] for n in features], -1) if features else None,
            best_tokens(logits_MV, rows.only_best),
        )

    def _post_normed(self, moved_PH: Tensor, norm_H: Tensor | None) -> Tensor:
        """What a sublayer adds, normed where the model does so (sandwich norms)."""
        if norm_H is None:
            return moved_PH
        return self.weights.ops.rms_norm(moved_PH, norm_H, self.config.rms_norm_eps)

    def _logits(self, last_MH: Tensor) -> Tensor:
        dtype = wide(self.dtype)
        if not len(last_MH):
            return torch.empty(0, self.config.vocab_size, dtype=dtype, device=self.device)
        return self.weights.ops.linear(last_MH, self.weights.head).to(dtype)

    def _start(self, rows: Rows) -> tuple[Tensor, Step, Ints]:
        """Embeddings, what the layers share, and groups per row, padded to whole `ops.rows`."""
        count, ops = len(rows.tokens), self.weights.ops
        padded = count + -count % ops.rows
        tokens = torch.from_numpy(_pad(rows.tokens, padded)).to(self.device)
        # padding rows run no routed expert
        return (
            self.weights.embedding.index_select(0, tokens),
            Step.of(rows, padded, self.config, ops, self.dtype, self.device),
            _pad(rows.groups, padded),
        )


def _pad(values: Ints, size: int) -> Ints:
    return np.pad(values, (0, size - len(values)))
