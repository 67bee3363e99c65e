"""What the engine and the drafters need of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Output, Rows

if TYPE_CHECKING:
    from fastslow.engine.kv.storage import KVStorage


class Model(Protocol):
    """Token ids and a KV cache in, logits out; `engine.model.decoder` describes it in full."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of keys, values and features."""

    @property
    def device(self) -> torch.device: ...

    @property
    def storage(self) -> type[KVStorage]:
        """In which order its `forward` wants keys and values."""

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> Output: ...

    def keep(self, layers: Sequence[int]) -> Model:
        """The same weights with only these layers, for the same KV: layer n still reads and writes
        `kv.k[n]` and `kv.v[n]`, those of the others are left alone.

        Args:
            layers: ascending, of those that run here.

        Raises:
            ValueError: none, out of order, or one that this model does not run.
        """
