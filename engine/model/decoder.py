"""The decoder: token ids and a KV cache in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.attention import Step
from fastslow.engine.model.base import best_tokens, check_features, kept_layers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.moge import Moge
from fastslow.engine.model.ops import wide
from fastslow.engine.model.rope import rotation
from fastslow.engine.model.visibility import as_run, layout
from fastslow.engine.model.weights import Weights
from fastslow.engine.types import Ints, ModelOutput, Rows


class Decoder:
    """A pre-norm transformer of any known architecture; what differs is a layer's MLP.

    `layers`: those that run, the others are skipped; None = all.

    A row's result has the same bits whatever rows run beside it, however its text was cut into
    chunks, and whichever slots hold its keys (see `engine.ops.reference`).
    """

    storage = KVStorage

    def __init__(self, weights: Weights, layers: Sequence[int] | None = None) -> None:
        self.weights = weights
        self.ops = weights.ops
        every = range(weights.config.layers)
        self._layers = kept_layers(every if layers is None else layers, every)

    @property
    def config(self) -> ModelConfig:
        return self.weights.config

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.device

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """Run the rows, writing their keys and values to `kv` at their slots.

        Returns logits, float32 [M, V] (float64 for a float64 model), of `rows.outputs` (only their
        best tokens where `rows.only_best`), and where `features` names layers, their outputs (0 = the
        first layer's) of `rows.seen`, [S, len(features) * H] in the model's dtype, side by side in
        the order named. M and S may be 0. ValueError for a step without rows, a feature layer that
        does not run here, or another kind of storage.
        """
        if not len(rows.tokens):
            raise ValueError("rows must hold at least 1 row, got 0")
        kv.expect(self.storage)
        check_features(features, self._layers)
        x_PH, step, groups = self._start(rows)
        wanted, looked = (torch.from_numpy(x).to(self.device) for x in (rows.outputs, rows.seen))
        seen: dict[int, Tensor] = {}
        eps = self.config.rms_norm_eps
        for n in self._layers:
            layer = self.weights.layers[n]
            fresh = self.ops.rms_norm(x_PH, layer.attention_norm, eps)
            moved = layer.attention(fresh, kv.k[n], kv.v[n], step)
            x_PH = x_PH + self._behind(moved, layer.behind_attention)
            fresh = self.ops.rms_norm(x_PH, layer.mlp_norm, eps)
            mlp = layer.mlp
            moved = mlp(fresh, groups) if isinstance(mlp, Moge) else mlp(fresh)
            x_PH = x_PH + self._behind(moved, layer.behind_mlp)
            if n in features:
                seen[n] = x_PH.index_select(0, looked)
        last_MH = self.ops.rms_norm(x_PH.index_select(0, wanted), self.weights.norm, eps)
        logits_MV = self._logits(last_MH)
        return ModelOutput(
            logits_MV,
            torch.cat([seen[n] for n in features], -1) if features else None,
            best_tokens(logits_MV, rows.only_best),
        )

    def keep(self, layers: Sequence[int]) -> Decoder:
        """See `Model.keep`."""
        return Decoder(self.weights, kept_layers(layers, self._layers))

    def _behind(self, moved_PH: Tensor, norm_H: Tensor | None) -> Tensor:
        """What a sublayer adds, normed where the model does so (sandwich norms)."""
        if norm_H is None:
            return moved_PH
        return self.ops.rms_norm(moved_PH, norm_H, self.config.rms_norm_eps)

    def _logits(self, last_MH: Tensor) -> Tensor:
        dtype = wide(self.dtype)
        if not len(last_MH):
            return torch.empty(0, self.config.vocab_size, dtype=dtype, device=self.device)
        return self.ops.linear(last_MH, self.weights.head).to(dtype)

    def _start(self, rows: Rows) -> tuple[Tensor, Step, Ints]:
        """Embeddings, what the layers share, and groups per row, padded to whole `ops.rows`."""
        c, count = self.config, len(rows.tokens)
        padded = count + -count % self.ops.rows
        sums = wide(self.dtype)
        tokens = torch.from_numpy(_pad(rows.tokens, padded)).to(self.device)
        max_len = np.repeat(rows.max_len, np.diff(rows.starts))
        cos, sin = rotation(
            c, _pad(rows.positions, padded), _pad(max_len, padded), sums, self.device
        )
        lines = layout(rows, padded, self.ops, c.heads // c.kv_heads, sums, self.device)
        run = as_run(rows.slots)
        slots = torch.from_numpy(rows.slots).to(self.device) if run is None else run
        # padding rows run no routed expert
        return (
            self.weights.embedding.index_select(0, tokens),
            Step(count, slots, cos, sin, lines),
            _pad(rows.groups, padded),
        )


def _pad(values: Ints, size: int) -> Ints:
    return np.pad(values, (0, size - len(values)))
