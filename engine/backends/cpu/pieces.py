"""Pieces of packed weights: how each is made from a checkpoint's tensors, in the form that the kernels read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.model.ops import QuantLinear, ReadQuant
from fastslow.engine.types import Ints

Bytes = NDArray[np.uint8]
Read = Callable[[str], Tensor]
ReadBlocks = Callable[[str], "NDArray[np.uint8] | None"]


@dataclass(frozen=True, slots=True)
class Sources:
    """How a checkpoint's tensors are read by name: as floats; and as 4-bit blocks or in int8, where it
    has them so. at_once: pieces that are packed at a time; more than 1 where reading makes no copies."""

    read: Read
    blocks: ReadBlocks
    linear: ReadQuant
    at_once: int = 1


TOO_SMALL = 1e-36  # a row whose largest weight is no larger is zeros in int8, see kernels/blocks.h
SMALLEST = 2.0**-126  # of normal float32


def pack_rows(
    into: Bytes, form: Format, inputs: int, order: Ints, rows: Callable[[Tensor], Tensor]
) -> None:
    """Pack a matrix into memory. rows: gives those of some numbers; `order` -1 is a row of zeros.

    A few tiles at a time: a whole matrix in float32 may be larger than what it is packed to.
    """
    step = max(TILE, (1 << 22) // inputs // TILE * TILE)
    tile = library.tile_bytes(form, inputs)
    for first in range(0, len(order), step):
        picked = order[first : first + step]
        some = np.ascontiguousarray(rows(torch.from_numpy(np.maximum(picked, 0))).float().numpy())
        if some.shape != (len(picked), inputs):
            raise ValueError(f"rows to pack are {some.shape}, not {(len(picked), inputs)}")
        some[picked < 0] = 0
        library.pack(into[first // TILE * tile :], form, some)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed matrix. sources: names of the tensors whose rows, below each other, `order` picks."""

    key: str
    format: Format
    inputs: int
    order: Ints
    sources: tuple[str, ...]

    @property
    def outputs(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        return self.outputs // TILE * library.tile_bytes(self.format, self.inputs)

    def write(self, into: Bytes, sources: Sources) -> None:
        """Pack into `nbytes` bytes, from 4-bit blocks or int8 where the source has them."""
        if self.format is Format.INT8:
            matrices = [m for name in self.sources if (m := sources.linear(name)) is not None]
            if len(matrices) == len(self.sources):
                self._keep(into, QuantLinear.stack(matrices))
                return
        if library.block_of(self.format)[0]:
            found = [(name, sources.blocks(name)) for name in self.sources]
            parts = [part for _, part in found if part is not None]
            if len(parts) == len(found):
                library.pack_gguf(into, self.format, parts, self.order, self.inputs)
                return
            if self.format is not Format.INT4:  # which floats are packed in, too
                missing = ", ".join(name for name, part in found if part is None)
                raise ValueError(f"{missing}: not in {self.format.name} in the file")
        whole = torch.cat([sources.read(name) for name in self.sources])
        pack_rows(into, self.format, self.inputs, self.order, whole.__getitem__)

    def _keep(self, into: Bytes, matrix: QuantLinear) -> None:
        rows = _ordered(matrix.weight_OI.numpy(), self.order)
        scales = _ordered(matrix.scale_O.numpy(), self.order)
        library.pack_int8(into, self.format, rows, scales)


@dataclass(frozen=True, slots=True)
class MatrixRuns:
    """Matrices below each other, each in its format."""

    key: str
    runs: tuple[PackedMatrix, ...]

    @property
    def outputs(self) -> int:
        return sum(run.outputs for run in self.runs)

    @property
    def nbytes(self) -> int:
        return sum(run.nbytes for run in self.runs)

    def write(self, into: Bytes, sources: Sources) -> None:
        """Pack one after the other."""
        at = 0
        for run in self.runs:
            run.write(into[at : at + run.nbytes], sources)
            at += run.nbytes


@dataclass(frozen=True, slots=True)
class Vector:
    """Plain numbers, in `order` where given, plus `offset`: norms, biases, scales, the embedding."""

    key: str
    count: int
    dtype: torch.dtype
    sources: tuple[str, ...]
    order: Ints | None = None
    offset: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def write(self, into: Bytes, sources: Sources) -> None:
        """Copy to `nbytes` bytes."""
        values = torch.cat([sources.read(name).flatten() for name in self.sources]).to(self.dtype)
        if self.offset:
            values = values + self.offset
        if self.order is not None:
            picked = values.numpy()[np.maximum(self.order, 0)]
            picked[self.order < 0] = 0
            values = torch.from_numpy(picked)
        if len(values) != self.count:
            raise ValueError(f"{self.key} has {len(values)} numbers, not {self.count}")
        into[:] = values.contiguous().view(torch.uint8).numpy()


@dataclass(frozen=True, slots=True)
class ScreenNorms:
    """float32 [2, outputs]: norms of a matrix' rows in bfloat16, and of what int8 makes of them less.

    Both are rounded up, and infinite where they are too large for float32 or some weight is not finite.
    Rows of padding have no norm and an endless error: nothing is known of them.
    """

    key: str
    rows: int
    source: str

    @property
    def outputs(self) -> int:
        return -(-self.rows // TILE) * TILE

    @property
    def nbytes(self) -> int:
        return 2 * self.outputs * 4

    def write(self, into: Bytes, sources: Sources) -> None:
        """Compute into `nbytes` bytes."""
        found = into.view(np.float32).reshape(2, self.outputs)
        found[0], found[1] = 0.0, np.inf
        whole = sources.read(self.source)
        for first in range(0, self.rows, 4096):
            last = min(first + 4096, self.rows)
            some = whole[first:last].float()
            exact = some.bfloat16().float()
            largest = some.abs().amax(-1, keepdim=True)
            inverse = torch.where(largest > TOO_SMALL, 127 / largest, 0.0)
            int8 = (some * inverse).round() * (largest / 127)
            found[0, first:last] = _lengths(exact).numpy()
            found[1, first:last] = _lengths(exact - int8).numpy()


def _lengths(rows: Tensor) -> Tensor:
    """f32 [n], the rows' norms, none below the true one. In float64, in which no square is lost."""
    exact = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64) * (1 + 2**-20)
    return torch.where(exact == 0, 0.0, exact.clamp_min(SMALLEST)).nan_to_num(torch.inf).float()


def _ordered(rows: NDArray[Any], picked: Ints) -> NDArray[Any]:
    some = rows[np.maximum(picked, 0)]
    some[picked < 0] = 0
    return some


LANES = 16  # keys of a tile, see kernels/tile.h


@dataclass(frozen=True, slots=True)
class SinkTiles:
    """float32 tiles [sinks / 16][kv_heads], of keys [dim][16] or values [16][dim].

    dims: of a key in the kernels' order, empty for values, which are filled up with zeros. norm: the name of what
    keys are normed by, as keys of the text are, less `norm_offset`; "": nothing. source: "": zeros.
    """

    key: str
    sinks: int
    kv_heads: int
    dim: int
    source: str
    dims: tuple[int, ...] = ()
    norm: str = ""
    norm_offset: float = 0.0
    eps: float = 0.0

    @property
    def nbytes(self) -> int:
        return -(-self.sinks // LANES) * LANES * self.kv_heads * self.dim * 4

    def write(self, into: NDArray[np.uint8], sources: Sources) -> None:
        """Fill `nbytes` bytes."""
        if not self.source:
            into[:] = 0
            return
        given: Tensor = sources.read(self.source).float()  # [sinks, kv_heads, dim]
        if self.norm:
            size = torch.rsqrt(given.square().mean(-1, keepdim=True) + self.eps)
            given = given * size * (sources.read(self.norm).float() + self.norm_offset)
        if self.dims:
            given = given[..., list(self.dims)]
        count = -(-self.sinks // LANES) * LANES
        padded = np.zeros((count, self.kv_heads, self.dim), np.float32)
        padded[: self.sinks, :, : given.shape[-1]] = given.numpy()
        tiles = padded.reshape(-1, LANES, self.kv_heads, self.dim)
        order = (0, 2, 3, 1) if self.dims else (0, 2, 1, 3)
        into.view(np.float32)[:] = tiles.transpose(order).ravel()


Piece = PackedMatrix | MatrixRuns | Vector | ScreenNorms | SinkTiles
