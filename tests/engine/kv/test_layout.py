"""Layouts of states: bytes, whose rows a layer reads, and storages of layers that differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from schedule_tools import small_cache

from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage
from fastslow.engine.kv.state.layout import RowsAndRunning, RowState, RunningState, SharedState, State, StateLayout
from fastslow.engine.kv.state.storage import KVStorage

LATENT = RowState(1, 12, 8, values_in_keys=True)
MIXED: tuple[State, ...] = (
    RowState(2, 4, 4), RowState(2, 4, 6), None, RowState(2, 4, 4, window=3), LATENT, SharedState(1),
)  # fmt: skip


def test_a_token_takes_the_rows_that_layers_own() -> None:
    layout = StateLayout(MIXED)
    assert layout.token_bytes(torch.bfloat16) == 2 * (16 + 20 + 16 + 12)
    assert layout.request_bytes(torch.bfloat16) == 0
    assert [layout.owner(n) for n in range(6)] == [0, 1, None, 3, 4, 1]
    assert KVStorage(layout, 10, torch.bfloat16, "cpu").nbytes == 10 * layout.token_bytes(torch.bfloat16)
    indexed = KVStorage(StateLayout((replace(LATENT, beside=6),)), 10, torch.bfloat16, "cpu")
    assert indexed.v[0].shape == (10, 1, 6) and indexed.nbytes == 10 * 2 * (12 + 6)


def test_a_layer_with_rows_and_a_running_state_has_both() -> None:
    both = RowsAndRunning(LATENT, RunningState(((2, 5),), ((5,),)))
    layout = StateLayout((None, both, RowState(2, 4, 4, window=3), SharedState(1)))
    assert layout.rows == {1: LATENT, 2: RowState(2, 4, 4, window=3)} and layout.running == {1: both.running}
    assert [layout.owner(n) for n in range(4)] == [None, 1, 2, 1]
    assert layout.token_bytes(torch.float32) == 4 * (12 + 16) and layout.snapshot_bytes(torch.float32) == 4 * 10
    assert [layout.within(windows).rows.keys() for windows in (False, True)] == [{1}, {2}]
    alone = KVStorage(layout, 12, torch.float32, "cpu").only(3)
    assert alone.layout == StateLayout((LATENT,)) and alone.k[0].shape == (12, 1, 12)


def test_layers_that_differ_are_written_read_and_moved() -> None:
    storage = KVStorage(StateLayout(MIXED), 12, torch.float32, "cpu")
    assert [None if x is None else tuple(x.shape[1:]) for x in storage.k] == [
        (2, 4),
        (2, 4),
        None,
        (2, 4),
        (1, 12),
        (2, 4),
    ]
    assert [None if x is None else tuple(x.shape[1:]) for x in storage.v] == [
        (2, 4),
        (2, 6),
        None,
        (2, 4),
        (1, 8),
        (2, 6),
    ]
    assert storage.k[5] is storage.k[1] and storage.v[4].data_ptr() == storage.k[4].data_ptr()
    assert storage.pointers[0].tolist() == [0 if x is None else x.data_ptr() for x in storage.k]
    for n, layer in enumerate((*storage.k[:2], *storage.v[:2], storage.k[3], storage.k[4])):
        layer[:] = torch.arange(12.0)[:, None, None] + 100 * n
    storage.move(np.array([3, 4]), np.array([4, 5]))
    for n, layer in enumerate((*storage.k[:2], *storage.v[:2], storage.k[3], storage.k[4], storage.v[4])):
        assert layer[:7, 0, 0].tolist() == [100 * min(n, 5) + place for place in (0, 1, 2, 3, 3, 4, 6)]
    assert [tuple(side[:, :2].shape) for side in storage.page(0, 4)] == [
        (2, 2, 2, 4), (2, 2, 2, 4), (1, 2, 2, 4), (1, 2, 2, 6), (1, 2, 1, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [KVStorage, TiledStorage])
def test_one_layer_is_seen_alone(kind: type[KVStorage]) -> None:
    layers: tuple[State, ...] = (
        MIXED if kind is KVStorage else (RowState(2, 4, 4), None, RowState(2, 4, 4), SharedState(0))
    )
    storage = kind(StateLayout(layers), 32, torch.float32, "cpu")
    last = len(layers) - 1
    view, owner = storage.only(last), storage.layout.owner(last)
    assert type(view) is kind and view.layout == StateLayout((layers[owner or 0],))
    view.write(np.arange(4), *(torch.randn(1, 4, *side.shape[2:]) for side in view.read(np.arange(4))))
    assert view.k[0].data_ptr() == storage.k[last].data_ptr() and view.k[0].any()
    assert view.pointers.tolist() == storage.pointers[:, [last]].tolist()
    view.move(np.array([1]), np.array([20]))
    for mine, before in zip(view.read(np.array([20])), view.read(np.array([1])), strict=True):
        assert torch.equal(mine, before) and before.any()
    others = [n for n in storage.layout.rows if n != owner]
    assert not any(storage.k[n].any() for n in others)
    with pytest.raises(ValueError, match="layer 1 has no rows" if kind is TiledStorage else "layer 2 has no rows"):
        storage.only(layers.index(None))


def test_what_a_storage_cannot_keep_is_refused() -> None:
    wider = StateLayout((RowState(2, 4, 4), RowState(1, 4, 6)))
    for kind in (TiledStorage, Int8Tiles):
        said = f"{kind.__name__} keeps values as wide as keys, and layer 1 has others"
        with pytest.raises(ValueError, match=said):
            kind(wider, 16, torch.float32, "cpu")
    with pytest.raises(ValueError, match="layer 1 shares rows of layer 1, which is no earlier one with rows"):
        StateLayout((RowState(1, 2, 2), SharedState(1)))


def test_a_cache_of_layers_that_differ_commits_a_branch() -> None:
    cache = small_cache(8, layout=StateLayout(MIXED))
    cache.open(0, [1, 2], None, 1)
    assert cache.reserve(0, 8)
    cache.advance(0, 1, [1, 2])
    for side in (*cache.storage.sides,):
        side[:] = torch.arange(side.shape[1], dtype=torch.float32)[None, :, None, None]
    slots = cache.slots(0, 0, 8).copy()
    cache.commit(0, 2, [1, 3], [1, 2, 3, 4, 5])
    for side in cache.storage.sides:
        assert side[0, slots[[2, 3]], 0, 0].tolist() == slots[[3, 5]].tolist()
