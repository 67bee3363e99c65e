"""Matrices, biases and norms as pieces of memory, and the parts of a matrix that heads are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.formats import (
    Formats,
    PackedMatrix,
    Piece,
    Vector,
)
from fastslow.engine.backends.cpu.library import TILE
from fastslow.engine.model.mixers.grouped import GroupedAttention
from fastslow.engine.model.norms import RmsNorm
from fastslow.engine.types import Ints

SIDES = "queries", "keys", "values"


def norm(
    alike: AlikeLayers,
    key: str,
    size: int,
    source: str,
    order: Ints | None = None,
    factor: float = 1.0,
) -> Vector:
    kind = alike.norms.kind
    offset = kind.offset * factor if isinstance(kind, RmsNorm) else 0.0
    turn = None if factor == 1 else partial(torch.mul, factor)
    return Vector(key, size, torch.float32, (f"{source}.weight",), order, offset, turn)


def matrix(
    key: str, formats: Formats, inputs: int, rows: Ints, sources: Sequence[str], bias: bool
) -> Iterator[Piece]:
    names = tuple(f"{s}.weight" for s in sources)
    yield PackedMatrix(key, formats.matrix(names), inputs, rows, names)
    if bias:
        yield bias_piece(key, rows, sources)


def bias_piece(key: str, rows: Ints, sources: Sequence[str]) -> Vector:
    names = tuple(f"{source}.bias" for source in sources)
    return Vector(f"{key}_bias", len(rows), torch.float32, names, rows)


def head_counts(a: GroupedAttention) -> list[int]:
    """Heads of queries, keys and values, as far as a layer has matrices of its own for them."""
    if a.shares is not None:
        return [a.heads]
    return [a.heads, a.kv_heads] + [a.kv_heads] * (not a.keys_as_values)


def head_matrices(
    whole: structures.CMatrix, counts: Sequence[int], head_rows: int
) -> dict[str, structures.CMatrix]:
    """Queries, keys and values of one packed matrix, so many heads in this order, `head_rows` rows a head."""
    found, first = {}, 0
    for name, count in zip(SIDES, counts):
        found[name] = part_of(whole, first, count * head_rows)
        first += count * head_rows
    return found


def part_of(whole: structures.CMatrix, first: int, rows: int) -> structures.CMatrix:
    """Rows of a packed matrix, whole tiles of them."""
    tiles = whole.tiles + first // TILE * library.tile_bytes(whole.format, whole.inputs)
    bias = whole.bias + 4 * first if whole.bias else None
    return structures.CMatrix(tiles, bias, whole.format, whole.inputs, rows)
