"""A layer for multi-token prediction as drafters need it, and what every implementation shares."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, ModelOutput


class MtpModel(Protocol):
    """The layer of `DecoderShape.mtp` with the model's embedding and head. Its rows are the last layer of the model's
    storage. The row of a token reads the hidden state of the token before it, and predicts the token after it."""

    def states(self, features: Features) -> Tensor:
        """Hidden states [S, H] for rows to read, from the model's features [S, H] of its last layer."""

    def forward(self, rows: Rows, kv: KVStorage) -> ModelOutput:
        """Run rows with their `inputs`. Gives logits of `rows.outputs`, as `Model.forward` does, and as `seen` the
        hidden states [M, H] that rows of the tokens after them read.

        ValueError: a step without rows or without inputs, or another kind of storage."""


def inputs_of(rows: Rows) -> Tensor:
    """The hidden states that the rows read. ValueError where one is missing."""
    if rows.inputs is None or len(rows.inputs) != len(rows.tokens):
        had = 0 if rows.inputs is None else len(rows.inputs)
        raise ValueError(f"{len(rows.tokens)} rows of an MTP layer have {had} hidden states")
    return rows.inputs
