"""The MTP layer of a decoder on the CPU kernels: a decoder of that layer alone, in the same packed weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Formats
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.cpu.store import PackedFile
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import inputs_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.norms import plain_norm
from fastslow.engine.model.shape import MtpLayer
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, ModelOutput


class MtpKernels(CpuDecoder):
    """The layer, between its entry and the model's head. The arguments are those of the model's `CpuDecoder`."""

    def __init__(
        self,
        config: ModelConfig,
        formats: Formats,
        arena: Arena,
        memory: PackedFile,
        storage: type[KVStorage],
    ) -> None:
        assert config.mtp is not None
        self.layer: MtpLayer = config.mtp
        last = (len(config.layers),)
        super().__init__(config.with_mtp, formats, arena, memory, last, storage)

    def norm(self, key: str, x_TH: Tensor) -> Tensor:
        """Rows after the norm with this key."""
        at, size = self._arena.offsets[key], self.config.hidden_size
        weight = self._memory.hot[at : at + 4 * size].view(np.float32)
        return plain_norm(x_TH, self._alike.eps, torch.from_numpy(weight))

    def _shape(self) -> structures.CShape:
        shape = super()._shape()
        shape.norm = self._at("mtp.norm")
        shape.entry = self._matrix("mtp.entry")
        shape.embedding_norm = self._at("mtp.embedding_norm")
        shape.hidden_norm = self._at("mtp.hidden_norm")
        shape.hidden_first = not self.layer.embedding_first
        return shape


class CpuMtp:
    """`MtpModel` of a `CpuDecoder`."""

    def __init__(self, kernels: MtpKernels) -> None:
        self._kernels = kernels

    def states(self, features: Features) -> Tensor:
        states = torch.as_tensor(features)
        return self._kernels.norm("norm", states) if self._kernels.layer.after_norm else states

    def forward(self, rows: Rows, kv: KVStorage) -> ModelOutput:
        rows.inputs = inputs_of(rows).float().contiguous()
        rows.feature_rows = rows.outputs
        out = self._kernels.forward(rows, kv, self._kernels.layers)
        assert out.seen is not None
        out.seen = self._kernels.norm("mtp.norm", torch.as_tensor(out.seen))
        return out
