"""Random blocks of GGUF's types, of every bit pattern, and products on the kernels."""

from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import GGUF_FORMATS, Format

Array = NDArray[Any]
# Where a block has scales in half precision, and their sizes where its weights are about zero.
HALVES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 1}, "Q4_1": {0: 1, 2: -7.5}, "Q5_0": {0: 1}, "Q8_0": {0: 1}, "Q4_K": {0: 1, 2: 7.5},
    "Q5_K": {0: 1, 2: 15.5}, "Q6_K": {208: 1},
}  # fmt: skip
TYPES = (*HALVES, "MXFP4")


def block_inputs(name: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]


def rows(name: str, outputs: int, inputs: int, seed: int = 0, scales: Array | None = None) -> Array:
    """[outputs, bytes of a row]. scales: of the blocks, where they should not be of all sizes."""
    random = np.random.default_rng(seed)
    step, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    count = inputs // step
    found = random.integers(0, 256, (outputs, count, size), dtype=np.uint8)
    for at, factor in HALVES.get(name, {}).items():
        # from below half precision's normal numbers to its largest
        exponents = random.uniform(-8, 4.8, (outputs, count, 1))
        some = random.choice([-1, 1], exponents.shape) * 10.0**exponents
        found[:, :, at : at + 2] = (some if scales is None else factor * scales).astype(np.float16).view(np.uint8)
    if name == "MXFP4" and scales is not None:
        found[:, :, 0] = np.round(np.log2(scales[..., 0])) + 128
    return found.reshape(outputs, -1)


def like_weights(name: str, outputs: int, inputs: int, seed: int = 0) -> Array:
    """The same of numbers as a model has them: a row times a row of ones is about one."""
    ones = np.ones((outputs, inputs // block_inputs(name), 1))
    size = floats(name, rows(name, outputs, inputs, seed, ones)).std()
    return rows(name, outputs, inputs, seed, ones / size / inputs**0.5)


def floats(name: str, blocks: Array) -> Array:
    """The weights that blocks mean, in float32, by GGUF's own reader."""
    with np.errstate(all="ignore"):
        found: Array = dequantize(blocks, GGMLQuantizationType[name])
    return found


def packed(name: str, blocks: Array, inputs: int) -> Array:
    """Tiles of the rows, and of rows of zeros after them."""
    form = GGUF_FORMATS[name]
    order = np.pad(np.arange(len(blocks)), (0, -len(blocks) % library.TILE), constant_values=-1)
    room = np.zeros(len(order) // library.TILE * library.tile_bytes(form, inputs) + 64, np.uint8)
    tiles = room[-room.ctypes.data % 64 :][: len(room) - 64]
    library.pack_gguf(tiles, form, [blocks], order, inputs)
    return tiles


def product(form: Format, tiles: Array, outputs: int, x: Array) -> Array:
    """Rows times packed weights, on the kernels."""
    x = np.ascontiguousarray(x, np.float32)
    count, inputs = x.shape
    out = np.full((count, outputs), np.nan, np.float32)
    library.kernels().fs_product(form, tiles.ctypes.data, outputs, inputs, x.ctypes.data, count, out.ctypes.data)
    return out
