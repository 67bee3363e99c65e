"""Weight formats of the CPU kernels, and how pieces in them are made from a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray
from torch import Tensor

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.model.ops import QuantLinear, Read, ReadQuant
from fastslow.engine.types import Ints

QUANTIZATIONS = ("int8", "int4")
EMBEDDING = "model.embed_tokens.weight"
Bytes = NDArray[np.uint8]
ReadBlocks = Callable[[str], "NDArray[np.uint8] | None"]
TOO_SMALL = 1e-36  # a row whose largest weight is no larger is zeros in int8, see kernels/blocks.h
SMALLEST = 2.0**-126  # of normal float32
LANES = 16  # keys of a tile, see kernels/tile.h


class Format(IntEnum):
    """Format of a packed matrix; the numbers are those of kernels/format.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # a scale per output; activations in int8, a scale per 32, or with AMX in 16 bits, a scale per row
    INT4 = 3  # groups of 32 inputs with a scale and a minimum, as in Q4_1; activations in int8
    # The numbers of a GGUF file as they are; activations in int8.
    Q4_0 = 4
    Q4_1 = 5
    Q5_0 = 6
    Q8_0 = 7
    Q4_K = 8
    Q5_K = 9
    Q6_K = 10
    MXFP4 = 11
    FLOAT16 = 12  # of weights; activations in float32
    # Groups of 32 or 128 inputs with a float32 scale and a zero point; activations in int8.
    U4_32 = 13
    U4_128 = 14
    U8_32 = 15
    U8_128 = 16


# GGUF's types that run as they are.
GGUF_FORMATS = {
    "F32": Format.FLOAT32,
    "F16": Format.FLOAT16,
    "BF16": Format.BFLOAT16,
    **{form.name: form for form in Format if Format.Q4_0 <= form <= Format.MXFP4},
}


def float_format(dtype: torch.dtype) -> Format:
    """Of float32 or bfloat16."""
    return Format.FLOAT32 if dtype == torch.float32 else Format.BFLOAT16


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats that a model is packed in. Norms, biases and the router stay float32 in all of them.

    kv: of keys and values, which is also the dtype that the model shows. kept: names of matrices
    that the checkpoint itself has in int8, and that are packed as they are. types: formats of the
    matrices of a GGUF file, by name. tiles: that of the embedding where it is read from tiles, which are
    the head's where it is tied; None where its rows are plain numbers. screened: a bfloat16 head has an int8 copy.
    """

    name: str
    layers: Format
    head: Format
    embedding: torch.dtype
    kv: torch.dtype
    kept: frozenset[str] = frozenset()
    types: Mapping[str, Format] = field(default_factory=dict, hash=False)
    tiles: Format | None = None
    screened: bool = True

    def matrix(self, names: Sequence[str]) -> Format:
        """Of matrices below each other: a checkpoint's own only where all of them have it. Those of a file that are
        unlike each other are taken to float32, which has all their numbers."""
        if self.types:
            found = {self.types.get(name, self.layers) for name in names}
            if len(found) > 1:
                logger.info("{} are of unlike types: they run in float32", " and ".join(names))
            return found.pop() if len(found) == 1 else Format.FLOAT32
        return Format.INT8 if self.kept.issuperset(names) else self.layers

    def apart(self, names: Sequence[str]) -> bool:
        """Tell whether matrices that lie below each other differ in format."""
        return len({self.matrix((name,)) for name in names}) > 1

    def alike(self, prefixes: Iterable[str]) -> Formats:
        """The same with all gates, ups and downs below the prefixes in one format: experts lie at one distance."""
        every, odd = list(prefixes), set[str]()
        for parts in (("gate", "up"), ("down",)):
            names = [[f"{prefix}.{part}_proj.weight" for part in parts] for prefix in every]
            if len({tuple(self.matrix((name,)) for name in some) for some in names}) > 1:
                odd.update(*names)
        types = {name: form for name, form in self.types.items() if name not in odd}
        return replace(self, kept=self.kept - odd, types=types) if odd else self

    @property
    def screens(self) -> bool:
        """True where the head has an int8 copy, read first where only the best token is wanted; a file's has none."""
        return self.head is Format.BFLOAT16 and self.screened

    @classmethod
    def of(cls, dtype: torch.dtype, quantization: str) -> Formats:
        """For a dtype (float32 or bfloat16) and "int8", "int4" or "none". The head of a 4-bit model is int8: it
        decides between near words."""
        if quantization == "none":
            form = float_format(dtype)
            return cls(str(dtype).removeprefix("torch."), form, form, dtype, dtype)
        layers = Format.INT8 if quantization == "int8" else Format.INT4
        return cls(quantization, layers, Format.INT8, torch.bfloat16, torch.bfloat16)

    @classmethod
    def w8a8(cls, dtype: torch.dtype, kept: Iterable[str], head: str) -> Formats:
        """For a checkpoint that has the matrices `kept` in int8; all else is in dtype. head: its matrix' name."""
        plain = cls.of(dtype, "none")
        own = frozenset(kept)
        form = Format.INT8 if head in own else plain.head
        tiles = Format.INT8 if EMBEDDING in own else None
        return cls(f"w8a8-{plain.name}", plain.layers, form, dtype, dtype, own, tiles=tiles)

    @classmethod
    def of_file(cls, types: Mapping[str, Format], dtype: torch.dtype, head: str) -> Formats:
        """For a GGUF file whose matrices have these formats; any other is in dtype. head: the name of its matrix,
        the embedding's where they are tied, which is then read from the head's tiles."""
        plain = cls.of(dtype, "none")
        own = types.get(EMBEDDING, plain.layers)
        rows = own in (Format.FLOAT32, Format.BFLOAT16) and head != EMBEDDING
        embedding = torch.float32 if own is Format.FLOAT32 else torch.bfloat16
        form, tiles = types.get(head, plain.head), None if rows else own
        made = cls(f"gguf-{plain.name}", plain.layers, form, embedding, dtype, tiles=tiles)
        return replace(made, types=dict(types), screened=False)

    @classmethod
    def published(cls, types: Mapping[str, Format], dtype: torch.dtype, head: str) -> Formats:
        """For a quantised checkpoint whose matrices have these formats; all else is in dtype."""
        plain = cls.of(dtype, "none")
        form = types.get(head, plain.head)
        return cls(f"own-{plain.name}", plain.layers, form, dtype, dtype, types=dict(types))


@dataclass(frozen=True, slots=True)
class Sources:
    """Readers of a checkpoint's tensors by name: as floats; and as 4-bit blocks or in int8, where it
    has them so. at_once: pieces that are packed at a time; more than 1 where reading makes no copies."""

    read: Read
    blocks: ReadBlocks
    linear: ReadQuant
    at_once: int = 1


def pack_rows(
    into: Bytes, form: Format, inputs: int, order: Ints, rows: Callable[[Tensor], Tensor]
) -> None:
    """Pack a matrix into memory. rows: gives those of some numbers; `order` -1 is a row of zeros. A few tiles at a
    time: a whole matrix in float32 may be larger than what it is packed to."""
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
        if self.format is not Format.BFLOAT16 and library.block_of(self.format)[0]:
            found = [(name, sources.blocks(name)) for name in self.sources]
            parts = [part for _, part in found if part is not None]
            if len(parts) == len(found):
                library.pack_gguf(into, self.format, parts, self.order, self.inputs)
                return
            if self.format is not Format.INT4:  # which floats are packed in, too
                missing = ", ".join(name for name, part in found if part is None)
                raise ValueError(f"{missing}: not in {self.format.name} in the file")
        read = [sources.read(name) for name in self.sources]
        own = all(x.dtype is torch.bfloat16 and x.is_contiguous() for x in read)
        if self.format is Format.BFLOAT16 and own and not self.inputs % 2:
            rows = [tensor.view(torch.uint8).numpy() for tensor in read]
            library.pack_gguf(into, self.format, rows, self.order, self.inputs)
            return
        whole = read[0] if len(read) == 1 else torch.cat(read)
        pack_rows(into, self.format, self.inputs, self.order, whole.__getitem__)

    def _keep(self, into: Bytes, matrix: QuantLinear) -> None:
        rows = _ordered(matrix.weight_OI.numpy(), self.order)
        scales = _ordered(matrix.scale_O.numpy(), self.order)
        library.pack_int8(into, self.format, rows, scales)


@dataclass(frozen=True, slots=True)
class TurnedMatrix(PackedMatrix):
    """Columns of the first `inputs` rows of each head become rows: of a matrix whose heads lie below each other."""

    heads: int

    def write(self, into: Bytes, sources: Sources) -> None:
        whole = sources.read(self.sources[0]).unflatten(0, (self.heads, -1))
        rows = whole[:, : self.inputs].transpose(1, 2).flatten(0, 1).contiguous()
        pack_rows(into, self.format, self.inputs, self.order, rows.__getitem__)


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
        at = 0
        for run in self.runs:
            run.write(into[at : at + run.nbytes], sources)
            at += run.nbytes


@dataclass(frozen=True, slots=True)
class Vector:
    """Plain numbers, in `order` where given, plus `offset`: norms, biases, scales, the embedding. turn: what is made
    of them first."""

    key: str
    count: int
    dtype: torch.dtype
    sources: tuple[str, ...]
    order: Ints | None = None
    offset: float = 0.0
    turn: Callable[[Tensor], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def write(self, into: Bytes, sources: Sources) -> None:
        values = torch.cat([sources.read(name).flatten() for name in self.sources]).to(self.dtype)
        if self.turn is not None:
            values = self.turn(values)
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


@dataclass(frozen=True, slots=True)
class SinkTiles:
    """float32 tiles [sinks / 16][kv_heads], of keys [dim][16] or values [16][dim].

    dims: of a key in the kernels' order, empty for values, which are filled up with zeros. norm: the name of what
    keys are normed by, as keys of the text are, less `norm_offset`; "": nothing. source: "": zeros. beside: the name of
    what follows a latent in its key, not normed.
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
    beside: str = ""

    @property
    def nbytes(self) -> int:
        return -(-self.sinks // LANES) * LANES * self.kv_heads * self.dim * 4

    def write(self, into: Bytes, sources: Sources) -> None:
        if not self.source:
            into[:] = 0
            return
        given: Tensor = sources.read(self.source).float().view(self.sinks, self.kv_heads, -1)
        if self.norm:
            size = torch.rsqrt(given.square().mean(-1, keepdim=True) + self.eps)
            given = given * size * (sources.read(self.norm).float() + self.norm_offset)
        if self.beside:
            given = torch.cat((given, sources.read(self.beside).float()[:, None]), -1)
        if self.dims:
            given = given[..., list(self.dims)]
        count = -(-self.sinks // LANES) * LANES
        padded = np.zeros((count, self.kv_heads, self.dim), np.float32)
        padded[: self.sinks, :, : given.shape[-1]] = given.numpy()
        tiles = padded.reshape(-1, LANES, self.kv_heads, self.dim)
        order = (0, 2, 3, 1) if self.dims else (0, 2, 1, 3)
        into.view(np.float32)[:] = tiles.transpose(order).ravel()


Piece = PackedMatrix | MatrixRuns | Vector | ScreenNorms | SinkTiles
