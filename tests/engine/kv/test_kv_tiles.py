"""Keys and values in tiles are the same rows in another order."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.kv import TiledStorage
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.storage import KVShape, KVStorage
from fastslow.engine.model.base import Model
from fastslow.engine.types import Rows

DTYPES = [torch.float32, torch.bfloat16]


def make(kind: type[KVStorage], slots: int, dtype: torch.dtype = torch.float32) -> KVStorage:
    return kind(KVShape(3, slots, 2, 6, dtype, "cpu"))


def numbered(slots: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [3, slots, 2, 6] that all differ within a layer's side."""
    rows = torch.randn(2, 3, slots, 2, 6, generator=torch.Generator().manual_seed(5)).to(dtype)
    return rows[0], rows[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [KVStorage, TiledStorage])
def test_what_was_written_is_read_back_and_moved(kind: type[KVStorage], dtype: torch.dtype) -> None:
    storage, (keys, values) = make(kind, 40, dtype), numbered(40, dtype)
    assert storage.slots == 40 and storage.dtype == dtype
    order = np.random.default_rng(0).permutation(40)
    storage.write(order, keys, values)
    at = np.argsort(order)
    for got, given in zip(storage.read(np.arange(40)), (keys, values), strict=True):
        assert torch.equal(got, given[:, at])
    src, dst = np.array([15, 16, 17, 3]), np.array([16, 17, 2, 33])
    storage.move(src, dst)
    at[dst] = at[src]
    for got, given in zip(storage.read(np.arange(40)), (keys, values), strict=True):
        assert torch.equal(got, given[:, at])


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_the_elements_of_a_tile_lie(dtype: torch.dtype) -> None:
    """As tile.h says: keys by words of neighbours in a key, values by words of neighbouring slots."""
    storage, (keys, values) = make(TiledStorage, 40, dtype), numbered(40, dtype)
    storage.write(np.arange(40), keys, values)
    pack = 4 // dtype.itemsize
    for layer, slot, head, d in [(0, 0, 0, 0), (1, 21, 1, 5), (2, 39, 0, 3), (2, 18, 1, 2)]:
        tile = (slot // 16 * 2 + head) * 16 * 6
        lane = slot % 16
        key = storage.k[layer].flatten()[tile + (d // pack * 16 + lane) * pack + d % pack]
        value = storage.v[layer].flatten()[tile + (lane // pack * 6 + d) * pack + lane % pack]
        assert key == keys[layer, slot, head, d] and value == values[layer, slot, head, d]


def test_what_tiles_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype of tiles is torch.float64, but must be float32"):
        make(TiledStorage, 16, torch.float64)
    with pytest.raises(ValueError, match="head_dim of tiles is 3, but must be even"):
        TiledStorage(KVShape(1, 16, 1, 3, torch.float32, "cpu"))


def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Model]:
    """The same checkpoint on the kernels and in plain torch."""
    folder = checkpoints.write_dense(tmp_path, attention_bias=True)
    kernels = load_model(folder, "float32")
    library.available.cache_clear()
    with monkeypatch.context() as off:
        off.setenv(library.VARIABLE, "off")
        plain = load_model(folder, "float32")
    library.available.cache_clear()
    assert kernels.storage is TiledStorage and plain.storage is KVStorage
    return kernels, plain


@compiled
def test_a_storage_in_another_order_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, plain = both(tmp_path, monkeypatch)
    rows = Rows.of([texts.chunk([1, 2], 0, 2, np.arange(2))])
    with pytest.raises(ValueError, match="kv is a KVStorage, but must be a TiledStorage"):
        kernels.forward(rows, texts.storage(plain, 16))
    with pytest.raises(ValueError, match="kv is a TiledStorage, but must be a KVStorage"):
        plain.forward(rows, texts.storage(kernels, 16))
