"""The weights of a decoder for accelerators: experts of a layer in one tensor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from loguru import logger
from torch import Tensor
from torch.nn import functional as F

from fastslow.engine.backends.accelerator.delta import SideBySideDelta
from fastslow.engine.backends.accelerator.kv import BlockStorage, LatentStorage
from fastslow.engine.backends.accelerator.latent import PagedLatent
from fastslow.engine.backends.accelerator.ops import (
    DeviceMatrix,
    Front,
    ModuleOps,
    PagedOps,
)
from fastslow.engine.backends.accelerator.step import unrecorded
from fastslow.engine.backends.alike import ACCELERATORS, AlikeLayers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.dense import MlpWeights
from fastslow.engine.model.ffn.experts import MixtureWeights
from fastslow.engine.model.ffn.streams import WHOLE_NORM
from fastslow.engine.model.mixers.delta import GatedDelta
from fastslow.engine.model.mixers.grouped import GroupedAttention, GroupedWeights
from fastslow.engine.model.mixers.latent import LatentAttention
from fastslow.engine.model.norms import Connection, LayerNorm, Norm, NormWeights
from fastslow.engine.model.ops import Read, ReadQuant, no_int8, wide
from fastslow.engine.model.parts import Mixer, MixerModule
from fastslow.engine.model.shape import Layer, MtpLayer
from fastslow.engine.model.tensors import EMBEDDING


@dataclass(frozen=True, slots=True)
class StackedLayer:
    """Weights of a layer. mixer: of attention, or a module of plain torch. norms: by use, see `LayerNorms.names`.
    streams: how sublayers stand in several residual streams, whole_norm: of all of these."""

    mixer: GroupedWeights[DeviceMatrix] | MixerModule
    ffn: MlpWeights[DeviceMatrix] | MixtureWeights[DeviceMatrix, DeviceMatrix]
    norms: dict[str, Tensor]
    turns: bool
    front: Front | None = None
    streams: dict[str, Connection] = field(default_factory=dict)
    whole_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DeviceMtp:
    """Weights of an MTP layer, beside the embedding and the head of its model."""

    shape: MtpLayer
    layer: StackedLayer
    embedding_norm: Tensor
    hidden_norm: Tensor
    entry: DeviceMatrix
    norm: Tensor


@dataclass(slots=True)
class DeviceReader:
    """A `WeightReader` for accelerators: tensors in `dtype` on `device`, matrices as `PagedOps.pack` makes them."""

    ops: PagedOps
    dtype: torch.dtype
    device: torch.device
    read: Read
    int8: ReadQuant = no_int8

    def plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        parts = [self.read(name) for name in names]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole.to(self.device, dtype or self.dtype)

    def norm(self, name: str, kind: Norm) -> NormWeights:
        """In the dtype that kernels want, rounded after the offset is added."""
        if isinstance(kind, LayerNorm):
            bias = self.plain(f"{name}.bias") if kind.bias else None
            return NormWeights(self.plain(f"{name}.weight"), bias)
        if not (offset := kind.offset):
            return NormWeights(self.plain(f"{name}.weight"))
        whole = self.plain(f"{name}.weight", dtype=wide(self.dtype)) + offset
        return NormWeights(whole.to(self.dtype))

    def matrix(self, *names: str, bias: bool = False) -> DeviceMatrix:
        weights = [f"{name}.weight" for name in names]
        added = self.plain(*(f"{name}.bias" for name in names)) if bias else None
        if (quantised := self._in_int8(weights)) is not None:
            return DeviceMatrix(quantised.weight, added, quantised.scale)
        return self.packed(self.plain(*weights), added)

    def packed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> DeviceMatrix:
        return DeviceMatrix(self.ops.pack(weight_OI), bias_O)

    def experts(self, prefixes: Sequence[str], sides: Sequence[str], bias: bool) -> DeviceMatrix:
        """Expert by expert into place, so that beside the finished ones one lies in memory."""
        whole: Tensor | None = None
        scales: list[Tensor] = []
        each = [[f"{prefix}.{side}_proj" for side in sides] for prefix in prefixes]
        for e, names in enumerate(each):
            weights = [f"{name}.weight" for name in names]
            quantised = self._in_int8(weights)
            if quantised is None:
                one_IO = self.plain(*weights).T
            else:
                one_IO = quantised.weight
                assert quantised.scale is not None
                scales.append(quantised.scale)
            if whole is None:
                whole = one_IO.new_empty(len(each), *one_IO.shape)
            if whole.dtype != one_IO.dtype:
                among = prefixes[0].rpartition(".")[0]
                raise ValueError(f"{among}: some experts are int8 and some are not")
            whole[e].copy_(one_IO)
        assert whole is not None
        rows = [self.plain(*(f"{name}.bias" for name in names)) for names in each] if bias else []
        added = torch.stack(rows) if rows else None
        if scales:
            return DeviceMatrix(whole, added, torch.stack(scales))
        return DeviceMatrix(self.ops.pack_experts(whole), added)

    def _in_int8(self, names: Sequence[str]) -> DeviceMatrix | None:
        """The named matrices side by side, [I, O], if they are all int8."""
        parts = [part for name in names if (part := self.int8(name)) is not None]
        if len(parts) < len(names):
            return None
        weight_IO = torch.cat([part.weight_OI for part in parts]).T.contiguous()
        scale_O = torch.cat([part.scale_O.float() for part in parts])
        return DeviceMatrix(weight_IO.to(self.device), None, scale_O.to(self.device))


class PlainReader(DeviceReader):
    """Reads matrices in their own order, for what multiplies them by operators of torch."""

    def packed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> DeviceMatrix:
        return DeviceMatrix(weight_OI, bias_O)


class Stacked:
    """Weights of a config in `dtype` on `device`, read by the names of `tensors.tensor_specs`.

    read: any tensor by its name, as float. int8: gives matrices that are to run in int8, None for the others.

    ValueError: the device's kernels cannot run the model; no weight is read then.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: PagedOps,
        dtype: torch.dtype,
        device: torch.device,
        read: Read,
        int8: ReadQuant = no_int8,
    ) -> None:
        self.alike = AlikeLayers.of(config.with_mtp, ACCELERATORS)
        ops.check(config.with_mtp, dtype)
        if int8 is not no_int8 and not ops.runs_int8:
            logger.warning("int8 weights do not run on this device, they are multiplied out")
            int8 = no_int8
        if ops.records and (why := unrecorded(config)):
            logger.info("steps with {} are not recorded: they run kernel by kernel", why)
        self.config, self.ops, self.dtype, self.device = config, ops, dtype, device
        self.plain = ModuleOps(ops)
        self.storage: type[BlockStorage] = LatentStorage if ops.shape.latent else ops.storage
        reader = DeviceReader(ops, dtype, device, read, int8)
        self.embedding = reader.plain(EMBEDDING)
        self.layers = [
            self._layer(layer, f"model.layers.{n}", reader) for n, layer in enumerate(config.layers)
        ]
        self.norm = reader.norm("model.norm", config.norm).weight
        streams = config.streams
        self.merge = None if streams is None else streams.merge(reader, self.plain)
        heads = () if config.mtp is None else config.mtp.heads
        self.mtp = [self._mtp(head, reader) for head in heads]
        tied = config.tie_word_embeddings
        self.head = reader.packed(self.embedding) if tied else reader.matrix("lm_head")

    def embed(self, tokens: Tensor) -> Tensor:
        """[T, H] as the first layer takes it."""
        rows, scale = self.embedding.index_select(0, tokens), self.config.embedding_scale
        return rows if scale == 1 else rows * scale

    def of_mtp(self, head: int) -> Stacked:
        """The same weights as those of a model whose last layers are the MTP layers, with the last norm of one of them."""
        view = copy.copy(self)
        view.config = self.config.with_mtp
        view.layers, view.norm = [*self.layers, *(x.layer for x in self.mtp)], self.mtp[head].norm
        return view

    def _mtp(self, mtp: MtpLayer, reader: DeviceReader) -> DeviceMtp:
        names = mtp.embedding_norm, mtp.hidden_norm, mtp.norm
        embedding, hidden, last = (reader.norm(name, mtp.norms).weight for name in names)
        layer = self._layer(mtp.layer, mtp.prefix, reader)
        return DeviceMtp(mtp, layer, embedding, hidden, reader.matrix(mtp.entry), last)

    def _layer(self, layer: Layer, prefix: str, reader: DeviceReader) -> StackedLayer:
        kind = layer.norms.kind
        norms = {
            use: reader.norm(f"{prefix}.{name}", kind).weight
            for use, name in layer.norms.names.items()
        }
        mixer, ffn = self._mixer(layer.mixer, prefix, reader), layer.ffn.load(prefix, reader)
        front = mixer.seen_first if isinstance(mixer, PagedLatent) else None
        if isinstance(mixer, GroupedWeights):
            front = self._front(mixer)
        found = StackedLayer(mixer, ffn, norms, layer.rope is not None, front)
        if (own := layer.streams) is None:
            return found
        name, streams = f"{prefix}.{WHOLE_NORM}", own.modules(prefix, reader, self.plain)
        whole = None if own.whole_norm is None else reader.norm(name, own.whole_norm).weight
        return replace(found, streams=streams, whole_norm=whole)

    def _mixer(
        self, mixer: Mixer, prefix: str, reader: DeviceReader
    ) -> GroupedWeights[DeviceMatrix] | MixerModule:
        if isinstance(mixer, LatentAttention):
            reader = PlainReader(reader.ops, reader.dtype, reader.device, reader.read, reader.int8)
            return PagedLatent(mixer, mixer.load(prefix, reader), self.plain)
        weights = mixer.load(prefix, reader)
        if isinstance(mixer, GatedDelta):
            return SideBySideDelta(mixer, weights, self.plain)
        return weights if isinstance(mixer, GroupedAttention) else mixer.module(weights, self.plain)

    def _front(self, attention: GroupedWeights[DeviceMatrix]) -> Front | None:
        """Sinks, as wide as the cache's rows."""
        keys, values = attention.sink_keys, attention.sink_values
        if attention.sink_logits is not None:
            return Front(logits=attention.sink_logits)
        if keys is None or values is None:
            return None
        if attention.key_norm is not None:
            keys = self.ops.rms_norm(keys, attention.key_norm.weight, self.alike.eps)
        room = (0, self.ops.storage.width(keys.shape[-1]) - keys.shape[-1])
        return Front(keys=F.pad(keys, room), values=F.pad(values, room))
