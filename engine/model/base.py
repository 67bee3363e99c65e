"""The model as the engine and the drafters need it, and what every implementation shares."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.rows import Rows
from fastslow.engine.types import Features, Ints, ModelOutput


@runtime_checkable
class MtpModel(Protocol):
    """The layers of `DecoderShape.mtp`, its heads, with the model's embedding and head. Their rows are the last layers
    of the model's storage. The row of a token reads the hidden state of the token before it, and predicts the token
    after it.

    An assistant is one, too: its rows are no rows of the storage, and all have the place of the text's last token."""

    heads: int

    def states(self, features: Features) -> Tensor:
        """Hidden states [S, H] for rows of the first head to read, from the model's features [S, H] of its last
        layer."""

    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        """Run rows with their `inputs` in a head, the last one by default. Gives logits of `rows.outputs`, as
        `Model.forward` does, and as `seen` the hidden states [S, H] of `rows.feature_rows` that rows of the tokens
        after them read, in this head or the next.

        ValueError: a step without rows or without inputs, or another kind of storage."""


class Model(Protocol):
    """Token ids and a KV cache in, logits out."""

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

    @property
    def mtp(self) -> MtpModel | None:
        """Its layer for multi-token prediction; None: it has none, or cannot run it."""

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """Run the rows, writing their keys and values to `kv` at their slots.

        Returns logits, float32 [M, V] (float64 for a float64 model), of `rows.outputs` (only their best
        tokens where `rows.only_best`), and where `features` names layers, their outputs (0 = the first
        layer's) of `rows.feature_rows`, [S, len(features) * H] in the model's dtype. M and S may be 0.
        ValueError: a step without rows, a layer that does not run, or another kind of storage."""

    def layer_subset(self, layers: Sequence[int]) -> Model:
        """The same weights with only these layers, ascending; layer n still uses `kv.k[n]` and `kv.v[n]`.

        ValueError: none, out of order, or one that this model does not run."""


def check_layers(layers: Sequence[int] | None, running: Sequence[int]) -> tuple[int, ...]:
    """`layers`, of the `running` ones, as they will run; None = all. ValueError as `layer_subset` says."""
    chosen = tuple(running if layers is None else layers)
    if not chosen or not set(chosen) <= set(running) or any(a >= b for a, b in pairwise(chosen)):
        raise ValueError(f"layers {list(chosen)} must ascend and be {_of(running)}")
    return chosen


def check_step(
    rows: Rows,
    kv: KVStorage,
    storage: type[KVStorage],
    features: Sequence[int],
    running: Sequence[int],
) -> None:
    """ValueError for what `Model.forward` refuses. running: the layers that run."""
    if not len(rows.tokens):
        raise ValueError("rows must hold at least 1 row, got 0")
    if type(kv) is not storage:  # its rows lie in another order
        raise ValueError(f"kv is a {type(kv).__name__}, but must be a {storage.__name__}")
    if absent := [n for n in features if n not in running]:
        raise ValueError(f"feature layer {absent[0]} must be {_of(running)}")


def _of(running: Sequence[int]) -> str:
    every = tuple(range(len(running)))
    return f"in 0..{every[-1]}" if tuple(running) == every else f"one of {list(running)}"


def inputs_of(rows: Rows) -> Tensor:
    """The hidden states that the rows read. ValueError where one is missing."""
    if rows.inputs is None or len(rows.inputs) != len(rows.tokens):
        had = 0 if rows.inputs is None else len(rows.inputs)
        raise ValueError(f"{len(rows.tokens)} rows of an MTP layer have {had} hidden states")
    return rows.inputs


def best_tokens(logits_MV: Tensor, only_best: NDArray[np.bool_]) -> Ints:
    """int64 [M]: the first of the likeliest tokens of the marked rows, else -1; see `types.Output`."""
    if not only_best.any():
        return np.full(len(only_best), -1)
    finite = logits_MV.isfinite().all(-1).cpu().numpy()
    best: Ints = np.where(only_best & finite, logits_MV.argmax(-1).cpu().numpy(), -1)
    return best


def kv_cache_for(
    model: Model,
    pages: int,
    page_size: int = 16,
    prefix_caching: bool = True,
    places: int = 64,
    snapshots: int = 16,
    ring: int = 0,
) -> KVCache:
    """A cache whose states have the shapes, dtype, place and order of a model's. places, snapshots, ring: see `KVCache`."""
    return KVCache(
        layout=model.config.state_layout,
        pages=pages,
        page_size=page_size,
        dtype=model.dtype,
        device=model.device,
        prefix_caching=prefix_caching,
        storage=model.storage,
        places=places,
        snapshots=snapshots,
        ring=ring,
    )


def layer_columns(features: Features, layers: Sequence[int], wanted: Sequence[int]) -> Features:
    """The `wanted` layers' columns out of features [C, F] of `layers`, all of which are there."""
    if layers == wanted:
        return features
    parts = torch.as_tensor(features).chunk(len(layers), -1)
    return torch.cat([parts[layers.index(layer)] for layer in wanted], -1)
