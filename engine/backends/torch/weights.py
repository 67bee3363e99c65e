"""Weights of a decoder as plain torch runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.streams import WHOLE_NORM, StreamsModule
from fastslow.engine.model.ffn.token_input import TABLE, PerLayerModule, Table, TokenInputModule
from fastslow.engine.model.norms import (
    Connection,
    Norm,
    NormModule,
    RmsNorm,
    Sublayer,
    one_stream,
    residual,
    same,
)
from fastslow.engine.model.ops import (
    Linear,
    Ops,
    QuantLinear,
    Read,
    ReadQuant,
    no_int8,
    soft_cap,
    wide,
)
from fastslow.engine.model.parts import FfnModule, Mixer, MixerModule, Step
from fastslow.engine.model.shape import Layer, MtpLayer
from fastslow.engine.model.tensors import EMBEDDING, HEAD
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints, ModelOutput


@dataclass
class TorchReader:
    """A `WeightReader` for plain torch: tensors in `dtype` on `device`, matrices as `Ops.pack` makes them.

    linear: gives matrices that are to run in int8, None for the others. rows: see `Checkpoint.table`. Matrices are
    stacked and packed one by one as they are read, so that beside the finished ones no more than one lies in memory."""

    ops: Ops
    dtype: torch.dtype
    device: torch.device
    read: Read
    linear: ReadQuant = no_int8
    rows: Callable[[str], Table | None] | None = None
    _buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._buffer = torch.empty(0, dtype=self.dtype, device=self.device)

    def plain(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        parts = [self.read(name) for name in names]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        whole = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return _fill(whole, parts)

    def norm(self, name: str, kind: Norm) -> NormModule:
        """With an offset in float32, since 1 + x has few bits left for x."""
        if isinstance(kind, RmsNorm) and kind.offset:
            weight = self.plain(f"{name}.weight", dtype=wide(self.dtype))
            return NormModule(self.ops, kind, weight.add_(kind.offset))
        biased = not isinstance(kind, RmsNorm) and kind.bias
        bias = self.plain(f"{name}.bias") if biased else None
        return NormModule(self.ops, kind, self.plain(f"{name}.weight"), bias)

    def table(self, name: str) -> Table:
        """A matrix of which single rows are read."""
        found = None if self.rows is None else self.rows(name)
        return self.plain(name).cpu() if found is None else found

    def matrix(self, *names: str, bias: bool = False) -> Linear:
        added = self.plain(*(f"{name}.bias" for name in names)) if bias else None
        weights = [f"{name}.weight" for name in names]
        if (int8 := self.in_int8(weights)) is not None:
            return int8._replace(bias=added)
        return Linear(self._pack([self.read(name) for name in weights]), added)

    def in_int8(self, names: Sequence[str]) -> Linear | None:
        """The named matrices below each other, if they are all to run in int8."""
        matrices = [m for name in names if (m := self.linear(name)) is not None]
        if len(matrices) < len(names):
            return None
        whole = QuantLinear.stack(matrices)
        scale = whole.scale_O.float().to(self.device)
        return Linear(whole.weight_OI.to(self.device), None, scale)

    def packed(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> Linear:
        return Linear(self._pack([weight_OI]), bias_O)

    def head(self, tied_VH: Tensor | None) -> Linear:
        """The model's head. tied: the embedding, where that is it."""
        name = HEAD if tied_VH is None else EMBEDDING
        if tied_VH is None or self.linear(name) is not None:
            return self.matrix(name.removesuffix(".weight"))
        return Linear(self.ops.pack(tied_VH))

    def mixer(self, mixer: Mixer, prefix: str) -> MixerModule:
        """The module of a mixer."""
        return mixer.load(prefix, self)

    def heads(self, weight_NOI: Tensor) -> Any:
        return [self.packed(head.contiguous()) for head in weight_NOI]

    def experts(self, prefixes: Sequence[str], sides: Sequence[str], bias: bool) -> Any:
        each = [[f"{prefix}.{side}_proj" for side in sides] for prefix in prefixes]
        return [self.matrix(*names, bias=bias) for names in each]

    def _pack(self, parts: list[Tensor]) -> Tensor:
        """Out of one reused buffer: a buffer for each would leave holes between the packed ones."""
        shape = (sum(len(part) for part in parts), parts[0].shape[1])
        if self._buffer.numel() < prod(shape):
            self._buffer = self._buffer.new_empty(prod(shape))
        whole = _fill(self._buffer[: prod(shape)].view(shape), parts)
        packed = self.ops.pack(whole)
        return whole.clone() if packed is whole else packed


def _fill(whole: Tensor, parts: list[Tensor]) -> Tensor:
    for place, part in zip(torch.split(whole, [len(part) for part in parts]), parts, strict=True):
        place.copy_(part)
    return whole


@dataclass(slots=True)
class LayerModule:
    """A layer with its weights: its two sublayers, its norms by use, its part by token, its scalar [1], and where there
    are several residual streams how sublayers stand in them, and the norm of all of them."""

    layer: Layer
    mixer: MixerModule
    ffn: FfnModule
    norms: dict[str, NormModule]
    token_input: TokenInputModule | None = None
    scalar: Tensor | None = None
    streams: dict[str, Connection] = field(default_factory=dict)
    whole_norm: Sublayer = same

    @classmethod
    def load(cls, layer: Layer, prefix: str, reader: TorchReader) -> LayerModule:
        norms = {
            use: reader.norm(f"{prefix}.{name}", layer.norms.kind)
            for use, name in layer.norms.names.items()
        }
        mixer = reader.mixer(layer.mixer, prefix)
        found = cls(layer, mixer, layer.ffn.load(prefix, reader), norms)
        if layer.token_input is not None:
            found.token_input = layer.token_input.load(prefix, reader)
        if layer.scaled:
            found.scalar = reader.plain(f"{prefix}.layer_scalar")
        if (own := layer.streams) is not None:
            found.streams = own.load(prefix, reader)
            if own.whole_norm is not None:
                found.whole_norm = reader.norm(f"{prefix}.{WHOLE_NORM}", own.whole_norm)
        return found

    def __call__(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step, wanted: Ints) -> Tensor:
        """The residual stream [P, H], or all of them, after the layer, whose rows are those of layer `n` of the storage."""
        mixed_PH = self.mix(x_PH, kv, n, step)
        ffn = partial(self.ffn, wanted=wanted, stream_PH=mixed_PH)
        x_PH = self.whole_norm(self.connect(mixed_PH, "ffn", ffn))
        if self.token_input is not None:
            assert step.token_inputs is not None
            x_PH = self.token_input(x_PH, step.token_inputs[:, n])
        return x_PH if self.scalar is None else x_PH * self.scalar

    def mix(self, x_PH: Tensor, kv: KVStorage, n: int, step: Step) -> Tensor:
        """The residual stream [P, H] before the ffn: all that later rows read is kept."""
        return self.connect(x_PH, "mixer", partial(self.mixer, kv=kv, n=n, step=step))

    def connect(self, x_PH: Tensor, place: str, sublayer: Sublayer) -> Tensor:
        """The residual stream after a sublayer, "mixer" or "ffn"."""
        before = self.norms.get(place, same)
        after, connected = partial(self.added, place), self.streams.get(place, one_stream)
        return residual(x_PH, before, sublayer, after, self.layer.residual_scale, connected)

    def added(self, place: str, x_PH: Tensor) -> Tensor:
        """What a sublayer adds, after its norm."""
        return self.norms.get(f"{place}_added", same)(x_PH)


@dataclass(slots=True)
class MtpWeights:
    """An MTP layer with its weights, beside the embedding and the head of its model."""

    shape: MtpLayer
    layer: LayerModule
    embedding_norm: NormModule
    hidden_norm: NormModule
    entry: Linear
    norm: NormModule

    @classmethod
    def load(cls, mtp: MtpLayer, reader: TorchReader) -> MtpWeights:
        names = mtp.embedding_norm, mtp.hidden_norm, mtp.norm
        embedding, hidden, last = (reader.norm(name, mtp.norms) for name in names)
        layer = LayerModule.load(mtp.layer, mtp.prefix, reader)
        return cls(mtp, layer, embedding, hidden, reader.matrix(mtp.entry), last)

    def enter(self, embedded_TH: Tensor, states_TH: Tensor) -> Tensor:
        """[T, H] as the layer takes it, of normed embeddings and normed hidden states."""
        pair = embedded_TH, states_TH
        both = torch.cat(pair if self.shape.embedding_first else pair[::-1], -1)
        return self.norm.ops.linear(both, *self.entry)


class Weights:
    """Weights of a config in the reader's dtype on its device, read by the names of `tensors.tensor_specs`."""

    def __init__(self, config: ModelConfig, reader: TorchReader) -> None:
        self.config, self.ops, c = config, reader.ops, config
        self.dtype, self.device = reader.dtype, reader.device
        self.embedding = reader.plain(EMBEDDING)
        self.layers = [
            LayerModule.load(layer, f"model.layers.{n}", reader) for n, layer in enumerate(c.layers)
        ]
        self.norm = reader.norm("model.norm", c.norm)
        self.merge: StreamsModule | None = None
        self.per_layer: PerLayerModule | None = None
        if c.streams is not None:
            self.merge = c.streams.merge(reader)
        if (part := c.per_layer_embedding) is not None:
            self.per_layer = part.load(reader, reader.table(TABLE))
        heads = () if c.mtp is None else c.mtp.heads
        self.mtp = [MtpWeights.load(head, reader) for head in heads]
        self.head = reader.head(self.embedding if c.tie_word_embeddings else None)

    def step(self, rows: Rows) -> Step:
        """The rows as modules see them."""
        count = len(rows.tokens)
        return Step(rows, count + -count % self.ops.rows, self.ops, self.dtype, self.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """[T, H] as the first layer takes it."""
        rows, scale = self.embedding.index_select(0, tokens), self.config.embedding_scale
        return rows if scale == 1 else rows * scale

    def one_stream(self, x_TH: Tensor) -> Tensor:
        """[T, H] of what a layer gave, which may be several residual streams."""
        return x_TH if self.merge is None else self.merge.merged(x_TH)

    def output(self, last_MH: Tensor, rows: Rows, seen: Tensor | None) -> ModelOutput:
        """From normed hidden states of the rows' outputs."""
        dtype, cap = wide(self.dtype), self.config.logit_cap
        if len(last_MH):
            logits_MV = self.ops.linear(last_MH, *self.head).to(dtype)
        else:
            logits_MV = torch.empty(0, self.config.vocab_size, dtype=dtype, device=self.device)
        if (scale := self.config.logit_scale) != 1:
            logits_MV *= scale
        best = best_tokens(logits_MV, rows.only_best | bool(cap))
        return ModelOutput(soft_cap(logits_MV, cap), seen, best)
