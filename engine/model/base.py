"""What the engine and the drafters need of a model."""

from __future__ import annotations

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

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> Output: ...
