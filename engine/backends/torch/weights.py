"""Weights of a decoder as plain torch runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens, check_layers
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.model.ffn.streams import WHOLE_NORM, StreamsModule
from fastslow.engine.model.ffn.token_input import TABLE, PerLayerModule, TokenInputModule
from fastslow.engine.model.norms import Connection, NormModule, Sublayer, one_stream, residual, same
from fastslow.engine.model.ops import Linear, soft_cap, wide
from fastslow.engine.model.parts import FfnModule, MixerModule, Step, WeightReader
from fastslow.engine.model.shape import Layer, MtpLayer
from fastslow.engine.model.tensors import EMBEDDING, HEAD
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints, ModelOutput


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
    def load(cls, layer: Layer, prefix: str, reader: WeightReader) -> LayerModule:
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
    def load(cls, mtp: MtpLayer, reader: WeightReader) -> MtpWeights:
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

    def __init__(self, config: ModelConfig, reader: WeightReader) -> None:
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
        self.head = reader.head(
            *((EMBEDDING, self.embedding) if c.tie_word_embeddings else (HEAD, None))
        )

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


W = TypeVar("W", bound=Weights)


class LayeredModel(Generic[W]):
    """Base of decoders in torch: their weights, and which of the layers run (None = all)."""

    def __init__(self, weights: W, layers: Sequence[int] | None = None) -> None:
        self.weights = weights
        self.config, self.dtype, self.device = weights.config, weights.dtype, weights.device
        self.layers = check_layers(layers, range(len(weights.config.layers)))

    def layer_subset(self, layers: Sequence[int]) -> Self:
        return type(self)(self.weights, check_layers(layers, self.layers))
