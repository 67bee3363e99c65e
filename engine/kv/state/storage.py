"""Storage of keys and values: one row per slot, in every layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fastslow.engine.host.lazy_memory import lazy_zeros, take_memory
from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.windows import PageMap
from fastslow.engine.types import Ints

Sides: TypeAlias = tuple[torch.Tensor, ...]
"""Keys, and where they are kept apart values, of some layers."""


class KVStorage:
    """Keys and values of slots, `k[layer]` and `v[layer]`, each [slots, kv_heads, dim]; None in a layer without rows.

    A layer that shares the rows of another has that one's tensors, and values that lie in keys are a view of them.
    Where these keep other numbers beside keys, `v[layer]` is these. Layers whose rows are alike lie in one allocation.
    `sides`: these, each [layers, ...], keys before what is kept beside them.

    Other storages keep the same rows in another order; `read`, `write` and `move` work in any order. Rows
    start as zeros: a kernel may read (and mask) rows never written, and zero times a NaN is not zero.

    `running`: states of requests, where the layout has any. windows: where rows of layers with windows lie, if these
    have pages of their own.

    Where attention is data parallel, each of `dp_ranks` holds a part of the slots, one part after the
    other: a request's must all be of one. `share`: how much of a token's bytes the memory that is
    asked for KV has to hold. `slots`: rows per layer that were asked for; some storages round them up. `dtype`: in
    which rows are read and written.
    """

    page_size: ClassVar[int] = 16
    """Tokens of a page whose rows can be read in place."""
    dp_ranks: ClassVar[int] = 1
    share: ClassVar[float] = 1.0
    has_windows: ClassVar[bool] = True
    """Whether layers with windows may have pages of their own."""
    tile: ClassVar[int] = 1
    """Slots that lie side by side in a layer; 0: pages cannot be taken as they are."""
    running: RunningStates | None = None

    def __init__(
        self,
        layout: StateLayout,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str,
        windows: PageMap | None = None,
    ) -> None:
        self.layout, self.slots, self.dtype, self.windows = layout, slots, dtype, windows
        self.device = torch.device(device)
        self.sides = self._allocate()
        self.device = self.sides[0].device if self.sides else self.device  # with its number
        self._place(dict(self._owned()))
        self._starts = [
            (side.stride(1) * side.itemsize, [x.data_ptr() for x in side]) for side in self.sides
        ]
        self._unwritten = np.ones(slots, dtype=np.bool_)

    def _allocate(self) -> Sides:
        """Keys and values of all layers, alike ones together."""
        found: list[torch.Tensor] = []
        for row, layers in self._alike().items():
            shape = len(layers), self._room(row), row.heads
            if row.widths == (row.key_dim, row.key_dim):
                found += lazy_zeros((2, *shape, row.key_dim), self.dtype, self.device).unbind()
            else:
                each = [lazy_zeros((*shape, size), self.dtype, self.device) for size in row.widths]
                found += each
        return tuple(found)

    def _alike(self) -> dict[RowState, list[int]]:
        """The layers that have rows, by what these are like; their windows count where they have own pages."""
        found: dict[RowState, list[int]] = {}
        for n, row in self.layout.rows.items():
            apart = self.windows is not None and row.window > 0
            found.setdefault(replace(row, window=int(apart)), []).append(n)
        return found

    def _room(self, row: RowState) -> int:
        """Slots of layers that are like this."""
        where = self.windows
        return where.count * where.size if where is not None and row.window else self.slots

    def pages_of(self, layer: int) -> PageMap | None:
        """Where the rows of a layer lie; None: at their slots."""
        return self._maps[layer]

    def _owned(self) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        """Each layer that has rows, with its keys and values."""
        sides = iter(self.sides)
        for row, layers in self._alike().items():
            keys = next(sides)
            values = next(sides) if len(row.widths) > 1 else keys[..., : row.value_dim]
            yield from zip(layers, zip(keys.unbind(), values.unbind()))

    def _place(self, owned: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Let each layer find its rows."""
        owners = [self.layout.owner(n) for n in range(len(self.layout.layers))]
        sides, rows = [(None, None) if n is None else owned[n] for n in owners], self.layout.rows
        self._maps = [None if n is None or not rows[n].window else self.windows for n in owners]
        self.k: list[Any] = [keys for keys, _ in sides]
        self.v: list[Any] = [values for _, values in sides]
        starts = [[0 if x is None else x.data_ptr() for x in side] for side in (self.k, self.v)]
        self.pointers: NDArray[np.uint64] = np.array(starts, dtype=np.uint64)  # [2, layers]
        self._lists: dict[tuple[int, ...], NDArray[np.uint64]] = {}

    def only(self, layer: int) -> Self:
        """The rows of one layer, as those of the only layer of a model."""
        if (owner := self.layout.owner(layer)) is None:
            raise ValueError(f"layer {layer} has no rows")
        view = copy.copy(self)
        view.running = None
        view.layout = StateLayout((self.layout.rows[owner],))
        view.sides = tuple(
            side[layers.index(owner)][None]
            for side, layers in zip(self.sides, self._side_layers(), strict=True)
            if owner in layers
        )
        view._place({0: (self.k[owner], self.v[owner])})
        return view

    def _side_layers(self) -> list[list[int]]:
        """The layers of each side."""
        return [layers for row, layers in self._alike().items() for _ in row.widths]

    def addresses(self, layers: tuple[int, ...]) -> tuple[int, int]:
        """Of the lists in memory of where these layers' keys lie, and their values."""
        if (known := self._lists.get(layers)) is None:
            known = self._lists[layers] = np.ascontiguousarray(self.pointers[:, layers])
        keys: int = known.__array_interface__["data"][0]
        return keys, keys + known.strides[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(side.nbytes for side in self.sides)

    @property
    def memory_dtype(self) -> torch.dtype:
        """In which rows are kept, `dtype` in most storages."""
        return self.dtype

    @classmethod
    def token_bytes(cls, layout: StateLayout, dtype: torch.dtype) -> int:
        """Bytes that one token takes: keys and values of all layers."""
        return layout.token_bytes(dtype)

    def populate(self, slots: Ints) -> None:
        """Take the memory of slots i64 [n] that are written soon, of each layer at once where they lie in a row.

        A step's threads would wait for each 4 KiB of it, twice where they read before they write: a quarter of
        the time in which a small model reads a long prompt.
        """
        if not self.tile or self.device.type != "cpu" or not self._unwritten[slots].any():
            return
        self._unwritten[slots] = False
        starts = iter(self._starts)
        for part, at in self._parts(slots):
            sides = list(islice(starts, len(part)))
            for run in np.split(at, np.flatnonzero(np.diff(at) != 1) + 1):
                first, stop = int(run[0]) // self.tile, int(run[-1]) // self.tile + 1
                for size, layers in sides:
                    for layer in layers:
                        take_memory(layer + first * size, (stop - first) * size)

    def page(self, page: int, page_size: int) -> Sides:
        """A page of each side, in the order and numbers of the memory: views."""
        places = slice(page * page_size // self.tile, (page + 1) * page_size // self.tile)
        return tuple(side[:, places] for side in self.sides)

    def _parts(self, slots: Ints) -> Iterator[tuple[Sides, Ints]]:
        """The sides of layers that are alike, and where slots lie in them."""
        sides = iter(self.sides)
        for row in self._alike():
            where = self.windows if row.window else None
            at = slots if where is None else where(slots)
            yield tuple(islice(sides, len(row.widths))), at

    def read(self, slots: Ints) -> Sides:
        """A copy of slots i64 [n]: of each side [layers, n, kv_heads, dim]."""
        return tuple(rows for part, at in self._parts(slots) for rows in self._read(part, at))

    def write(self, slots: Ints, *sides: torch.Tensor) -> None:
        """Fill slots i64 [n], all different, with rows as `read` gives them."""
        given = iter(sides)
        for part, at in self._parts(slots):
            self._write(part, at, tuple(islice(given, len(part))))

    def _read(self, part: Sides, slots: Ints) -> Sides:
        at = torch.as_tensor(slots, device=self.device)
        return tuple(side.index_select(1, at) for side in part)

    def _write(self, part: Sides, slots: Ints, given: Sides) -> None:
        at = torch.as_tensor(slots, device=self.device)
        for side, rows in zip(part, given, strict=True):
            side.index_copy_(1, at, rows.to(self.dtype))

    def move(self, src: Ints, dst: Ints) -> None:
        """Copy row src[i] to dst[i] in every layer, as if all rows were read before any is written.

        src, dst: i64 [n] slots. They may overlap; a slot may occur only once in `dst`.
        """
        self.write(dst, *self.read(src))
