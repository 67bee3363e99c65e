"""Per-layer embeddings: what each layer adds to a row by the row's token.

p_n = (table[token][n] * sqrt(width) + norm(projection(x) / sqrt(hidden))[n]) / sqrt(2), with x the embedding as the first
layer takes it; layer n makes of its rows h, after its ffn, h + norm(up(act(gate(h)) * p_n)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastslow.engine.model.norms import NormModule, RmsNorm, norm_tensors
from fastslow.engine.model.ops import Activation, Linear, Ops
from fastslow.engine.model.parts import Table, WeightReader, too_small
from fastslow.engine.model.tensor_spec import TensorSpec, linear

TABLE, PROJECTION = "model.embed_tokens_per_layer.weight", "model.per_layer_model_projection"
PROJECTION_NORM = "model.per_layer_projection_norm"


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """The model-wide part: a table [rows, layers * width], of which a token has one row, and the projection of its
    embedding [layers * width, hidden] with a norm of `width` numbers, the same for all layers."""

    rows: int
    layers: int
    width: int
    norm: RmsNorm

    def misfits(self) -> Iterator[str]:
        yield from too_small(hidden_size_per_layer_input=self.width)

    def tensors(self, hidden: int) -> Iterator[TensorSpec]:
        inside = self.layers * self.width
        yield TensorSpec(TABLE, (self.rows, inside))
        yield from linear(PROJECTION, inside, hidden, False)
        yield from norm_tensors(PROJECTION_NORM, self.norm, self.width)

    def load(self, reader: WeightReader, table: Table) -> PerLayerModule:
        norm = reader.norm(PROJECTION_NORM, self.norm)
        return PerLayerModule(self, reader.ops, table, reader.matrix(PROJECTION), norm)


@dataclass(slots=True)
class PerLayerModule:
    """Per-layer embeddings of rows on plain torch. table: in the memory of the file (`Checkpoint.table`), of which the
    rows of a step's tokens are read."""

    part: PerLayerEmbedding
    ops: Ops
    table: Table
    projection: Linear
    norm: NormModule

    def __call__(self, tokens: Tensor, x_PH: Tensor) -> Tensor:
        """[P, layers, width] of tokens i64 [P] with the embeddings x."""
        part = self.part
        rows = self.table[tokens.cpu()].to(x_PH.device, x_PH.dtype) * part.width**0.5
        mixed = self.ops.linear(x_PH, *self.projection) * x_PH.shape[1] ** -0.5
        own, seen = (x.view(len(x), part.layers, part.width) for x in (rows, mixed))
        inputs: Tensor = (self.norm(seen) + own) * 2**-0.5
        return inputs


@dataclass(frozen=True, slots=True)
class TokenInput:
    """A layer's part: x + norm(per_layer_projection(act(per_layer_input_gate(x)) * p)), with p [width] of the row."""

    width: int
    activation: Activation
    norm: RmsNorm

    def tensors(self, prefix: str, hidden: int) -> Iterator[TensorSpec]:
        yield from linear(f"{prefix}.per_layer_input_gate", self.width, hidden, False)
        yield from linear(f"{prefix}.per_layer_projection", hidden, self.width, False)
        yield from norm_tensors(f"{prefix}.post_per_layer_input_norm", self.norm, hidden)

    def load(self, prefix: str, reader: WeightReader) -> TokenInputModule:
        return TokenInputModule(
            self,
            reader.ops,
            reader.matrix(f"{prefix}.per_layer_input_gate"),
            reader.matrix(f"{prefix}.per_layer_projection"),
            reader.norm(f"{prefix}.post_per_layer_input_norm", self.norm),
        )


@dataclass(slots=True)
class TokenInputModule:
    """A layer's part on plain torch. gate: [width, hidden]; up: [hidden, width]; norm: [hidden]."""

    part: TokenInput
    ops: Ops
    gate: Linear
    up: Linear
    norm: NormModule

    def __call__(self, x_PH: Tensor, inputs_PW: Tensor) -> Tensor:
        """[P, H], in the dtype of x."""
        both = torch.cat((self.ops.linear(x_PH, *self.gate), inputs_PW), -1)
        up_PH = self.ops.linear(self.ops.gated(both, self.part.activation), *self.up)
        return x_PH + self.norm(up_PH)
