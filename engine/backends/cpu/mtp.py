"""Layers that draft for a decoder on the CPU kernels: its MTP layer, in the same packed weights, and an assistant,
whose layers read the target's storage. Each is a decoder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format, Formats
from fastslow.engine.backends.cpu.packed import Arena
from fastslow.engine.backends.cpu.store import PackedFile
from fastslow.engine.backends.torch.assistant import ClusteredHead
from fastslow.engine.kv.state.layout import SharedState
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import inputs_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.norms import plain_norm
from fastslow.engine.model.shape import MtpLayer
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, ModelOutput

EMBEDDING_FIELDS = (
    *("embedding", "embedding_at", "embedding_file", "embedding_rows", "embedding_tiles"),
    *("embedding_format", "embedding_scale"),
)


def normed_rows(model: CpuDecoder, key: str, x_TH: Tensor) -> Tensor:
    """Rows after the norm with this key among a model's weights."""
    at, size = model._arena.offsets[key], model.config.hidden_size
    weight = model._memory.hot[at : at + 4 * size].view(np.float32)
    return plain_norm(x_TH, model.config.norm.eps, torch.from_numpy(weight))


class MtpKernels(CpuDecoder):
    """An MTP layer, between its entry and the model's head. head: its number. The other arguments are those of the
    model's `CpuDecoder`."""

    def __init__(
        self,
        config: ModelConfig,
        formats: Formats,
        arena: Arena,
        memory: PackedFile,
        storage: type[KVStorage],
        head: int,
    ) -> None:
        assert config.mtp is not None
        self.layer: MtpLayer = config.mtp.heads[head]
        self.key = f"mtp.{head}"
        own = (len(config.layers) + head,)
        reads = config.state_layout, own  # whole, whatever windows say
        super().__init__(config.with_mtp, formats, arena, memory, own, storage, reads=reads)

    def _shape(self) -> structures.CShape:
        shape = super()._shape()
        shape.norm, shape.merge_mix = self._at(f"{self.key}.norm"), None
        shape.entry = self._matrix(f"{self.key}.entry")
        shape.embedding_norm = self._at(f"{self.key}.embedding_norm")
        shape.hidden_norm = self._at(f"{self.key}.hidden_norm")
        shape.hidden_first = not self.layer.embedding_first
        return shape


class CpuMtp:
    """`MtpModel` of a `CpuDecoder`."""

    def __init__(self, kernels: Sequence[MtpKernels]) -> None:
        self._kernels, self.heads = kernels, len(kernels)

    def states(self, features: Features) -> Tensor:
        states, first = torch.as_tensor(features), self._kernels[0]
        return normed_rows(first, "norm", states) if first.layer.after_norm else states

    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        kernels = self._kernels[head]
        rows.inputs = inputs_of(rows).float().contiguous()
        out = kernels.forward(rows, kv, kernels.layers)
        assert out.seen is not None
        out.seen = normed_rows(kernels, f"{kernels.key}.norm", torch.as_tensor(out.seen))
        return out


def assistant_formats(target: Formats) -> Formats:
    """In 4 bits, its head too, beside a target that is quantised; else in the target's dtype."""
    if not target.types and target.layers in (Format.FLOAT32, Format.BFLOAT16):
        return Formats.of(target.kv, "none")
    return replace(Formats.of(torch.bfloat16, "int4"), head=Format.INT4, kv=target.kv)


class AssistantKernels(CpuDecoder):
    """The layers behind their entry, with the target's embedding. config: as `joined` gives it."""

    def __init__(
        self,
        config: ModelConfig,
        formats: Formats,
        arena: Arena,
        memory: PackedFile,
        target: CpuDecoder,
    ) -> None:
        self.target = target
        states = [layer.mixer.state for layer in config.layers]
        owners = tuple(state.layer for state in states if isinstance(state, SharedState))
        reads = target.config.state_layout, owners
        super().__init__(config, formats, arena, memory, storage=target.storage, reads=reads)

    def _shape(self) -> structures.CShape:
        shape, theirs = super()._shape(), self.target._shape()
        for name in EMBEDDING_FIELDS:
            setattr(shape, name, getattr(theirs, name))
        shape.entry, shape.entry_width = self._matrix("entry"), self.target.config.hidden_size
        return shape


class CpuAssistant:
    """`MtpModel` of an assistant, which is one layer's. post: [hidden of the target, hidden]. head: where it is clustered; None: the kernels
    run it."""

    heads = 1

    def __init__(self, kernels: AssistantKernels, post: Tensor, head: ClusteredHead | None) -> None:
        self._kernels, self._post, self._head = kernels, post, head

    def states(self, features: Features) -> Tensor:
        return normed_rows(self._kernels.target, "norm", torch.as_tensor(features))

    @torch.inference_mode()
    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        rows.inputs = inputs_of(rows).float().contiguous()
        if self._head is not None:
            rows = replace(rows, outputs=rows.outputs[:0], only_best=rows.only_best[:0])
        out = self._kernels.forward(rows, kv, self._kernels.layers[-1:])
        last_MH = normed_rows(self._kernels, "norm", torch.as_tensor(out.seen))
        if self._head is not None:
            out = ModelOutput(self._head(last_MH), None, np.full(len(last_MH), -1))
        out.seen = F.linear(last_MH, self._post)
        return out
