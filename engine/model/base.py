"""What the engine and the drafters need of a model, and what every implementation shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.types import Ints, ModelOutput, Rows

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

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput: ...

    def keep(self, layers: Sequence[int]) -> Model:
        """The same weights with only these layers, for the same KV: layer n still reads and writes
        `kv.k[n]` and `kv.v[n]`, those of the others are left alone.

        Args:
            layers: ascending, of those that run here.

        Raises:
            ValueError: none, out of order, or one that this model does not run.
        """


def kept_layers(layers: Sequence[int], running: Sequence[int]) -> tuple[int, ...]:
    """`layers`, of the `running` ones, as they will run.

    Raises:
        ValueError: none, out of order, or one that does not run.
    """
    kept = tuple(layers)
    if not kept or not set(kept) <= set(running) or any(a >= b for a, b in pairwise(kept)):
        raise ValueError(f"layers {list(kept)} must ascend and be {_of(running)}")
    return kept


def check_features(features: Sequence[int], running: Sequence[int]) -> None:
    """ValueError for a feature layer that does not run."""
    if absent := [n for n in features if n not in running]:
        raise ValueError(f"feature layer {absent[0]} must be {_of(running)}")


def _of(running: Sequence[int]) -> str:
    every = tuple(range(len(running)))
    return f"in 0..{every[-1]}" if tuple(running) == every else f"one of {list(running)}"


def best_tokens(logits_MV: Tensor, only_best: NDArray[np.bool_]) -> Ints:
    """int64 [M]: the first of the likeliest tokens of the marked rows, else -1; see `types.Output`."""
    if not only_best.any():
        return np.full(len(only_best), -1)
    finite = logits_MV.isfinite().all(-1).cpu().numpy()
    best: Ints = np.where(only_best & finite, logits_MV.argmax(-1).cpu().numpy(), -1)
    return best


def kv_cache_for(
    model: Model, pages: int, page_size: int = 16, prefix_caching: bool = True
) -> KVCache:
    """A cache whose rows have the shape, dtype, place and order of a model's."""
    return KVCache(
        layers=model.config.layers,
        kv_heads=model.config.kv_heads,
        head_dim=model.config.head_dim,
        pages=pages,
        page_size=page_size,
        dtype=model.dtype,
        device=model.device,
        prefix_caching=prefix_caching,
        storage=model.storage,
    )
