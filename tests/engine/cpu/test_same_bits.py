"""Products have the same bits at every level of every kind of chip, format by format."""

import hashlib
from typing import Any

import numpy as np
import pytest
from kernel_tools import compiled
from numpy.typing import NDArray

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.cpu.library import TILE

PAIRS, TILES, FUSED = 1, 4, 8  # of fs_dot_instructions
OUTPUTS, ROWS = 64, 33
# Of products, where a product and its sum are rounded once.
DIGESTS = {
    "FLOAT32": "55b69577", "BFLOAT16": "0ee3ab3c", "INT8": "26335876", "INT4": "940f991b", "Q4_0": "0cb36d44",
    "Q4_1": "d08add9a", "Q5_0": "c6226854", "Q8_0": "f247f86d", "Q4_K": "ce349169", "Q5_K": "ebc701ad",
    "Q6_K": "be8bd46e", "MXFP4": "956e26c1", "FLOAT16": "9209157f", "U4_32": "6519877e", "U4_128": "16ca9f85",
    "U8_32": "a647b53e", "U8_128": "9d97cfd4",
}  # fmt: skip
# `plain` rounds both, on x86 and Arm alike; products of two bfloat16 are exact.
PLAIN = {
    "FLOAT32": "c46b4ccc", "INT8": "b88bebff", "INT4": "f7a9b43b", "Q4_0": "6bfc7b2c", "Q4_1": "ce09c1df",
    "Q5_0": "22deb13f", "Q8_0": "8f25870b", "Q4_K": "7f2d2327", "Q5_K": "1645e79f", "Q6_K": "6cf0a1f1",
    "MXFP4": "876efce7", "FLOAT16": "5f03fabd", "U4_32": "7b44dbeb", "U4_128": "024e4c62", "U8_32":
    "b484a075", "U8_128": "5e85fa01",
}  # fmt: skip
PAIRED = "500e016d"  # of bfloat16, where there are dots of pairs: they begin with the second
HALVES = {
    Format.Q4_0: [0], Format.Q4_1: [0, 2], Format.Q5_0: [0], Format.Q8_0: [0], Format.Q4_K: [0, 2],
    Format.Q5_K: [0, 2], Format.Q6_K: [208],
}  # fmt: skip


def some(count: int, seed: int) -> NDArray[Any]:
    """Numbers from -1 to 1 that no library's logarithm has a part in."""
    bits = np.random.default_rng(seed).integers(-(1 << 23), 1 << 23, count)
    found: NDArray[Any] = np.ldexp(bits.astype(np.float32), -23)
    return found


def packed(form: Format, inputs: int) -> NDArray[Any]:
    """Tiles of random weights: of floats, or of a file's blocks with scales of a few sizes."""
    kernels = library.kernels()
    room = np.zeros(OUTPUTS // TILE * library.tile_bytes(form, inputs) + 64, np.uint8)
    tiles = room[-room.ctypes.data % 64 :][: len(room) - 64]
    if kernels.fs_packs(form):
        weights = some(OUTPUTS * inputs, 1) / np.float32(8)
        kernels.fs_pack(form, tiles.ctypes.data, weights.ctypes.data, OUTPUTS, inputs)
        return tiles
    each, size = library.block_of(form)
    count = OUTPUTS * inputs // each
    blocks = np.random.default_rng(2).integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES.get(form, []):
        blocks[:, at + 1] = blocks[:, at + 1] & 0x83 | 0x20  # 2^-7 to 2^-6
    if form == Format.MXFP4:
        blocks[:, 0] = blocks[:, 0] % 16 + 112
    elif form not in HALVES:
        blocks[:, :4] = (some(count, 3) / np.float32(64)).view(np.uint8).reshape(count, 4)
    rows = (blocks.ctypes.data + np.arange(OUTPUTS, dtype=np.uint64) * np.uint64(inputs // each * size)).astype(
        np.uint64
    )
    kernels.fs_pack_blocks(form, tiles.ctypes.data, rows.ctypes.data, OUTPUTS, inputs)
    return tiles


@compiled
@pytest.mark.parametrize("form", list(Format))
def test_a_product_has_the_bits_of_every_level(form: Format) -> None:
    used = library.kernels_with(form).fs_dot_instructions()
    inputs = 592 if library.kernels().fs_packs(form) else 768
    tiles, x = packed(form, inputs), some(ROWS * inputs, 4) * np.float32(3)
    out = np.empty((ROWS, OUTPUTS), np.float32)
    library.kernels().fs_product(form, tiles.ctypes.data, OUTPUTS, inputs, x.ctypes.data, ROWS, out.ctypes.data)
    found = hashlib.sha256(out.tobytes()).hexdigest()[:8]
    if form in (Format.INT8, Format.BFLOAT16) and used & TILES:
        pytest.skip("matrix tiles sum in another order: test_cpu_formats.py")
    paired = form == Format.BFLOAT16 and used & PAIRS
    assert found == (PAIRED if paired else (DIGESTS if used & FUSED else {**DIGESTS, **PLAIN})[form.name])
