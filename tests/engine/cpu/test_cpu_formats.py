"""The weight formats of the CPU kernels: right to their own rounding, and blind to other rows."""

from itertools import cycle

import gguf_rows
import numpy as np
import pytest
from gguf_rows import Array, product
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import pairwise

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import GGUF_FORMATS, Format
from fastslow.engine.backends.cpu.library import TILE

FLOATS = [Format.FLOAT32, Format.BFLOAT16, Format.FLOAT16]
INTEGERS = [Format.INT8, Format.INT4]
FORMATS = [*FLOATS, *INTEGERS]  # that floats are packed in
BLOCK = 32
# A float32 sum of K products, rounded once or twice each, is within K of these of their sizes.
UNIT = 2.0**-23
SHAPES = [(1, 1), (33, 17), (64, 48), (70, 577), (32, 1600)]


def packed(form: Format, weights: Array) -> Array:
    outputs, inputs = weights.shape
    room = np.zeros(-(-outputs // TILE) * library.tile_bytes(form, inputs) + 64, np.uint8)
    tiles = room[-room.ctypes.data % 64 :][: len(room) - 64]
    weights = np.ascontiguousarray(weights, np.float32)
    library.kernels().fs_pack(form, tiles.ctypes.data, weights.ctypes.data, outputs, inputs)
    return tiles


def multiply(form: Format, weights: Array, x: Array) -> Array:
    return product(form, packed(form, weights), len(weights), x)


def some(outputs: int, inputs: int, rows: int, seed: int = 0) -> tuple[Array, Array]:
    """Weights and rows as they occur: small, of unlike sizes, with a few large inputs."""
    random = np.random.default_rng(seed)
    weights = random.standard_normal((outputs, inputs)) * random.uniform(0.01, 0.1, (outputs, 1))
    x = random.standard_normal((rows, inputs)) * random.uniform(0.1, 5, (rows, 1))
    x[random.random(x.shape) < 0.01] *= 20
    return weights.astype(np.float32), x.astype(np.float32)


def bfloat16(x: Array) -> Array:
    """Rounded to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    kept: Array = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return kept.view(np.float32)


def in_blocks(x: Array, size: int = BLOCK) -> Array:
    """[rows, blocks, size], the last block filled up with each row's last number."""
    short = -x.shape[1] % size
    return np.pad(x, ((0, 0), (0, short)), mode="edge").reshape(len(x), -1, size)


def spread(steps: Array, inputs: int) -> Array:
    """Per block [rows, blocks] to per input [rows, inputs]."""
    return np.repeat(steps, BLOCK, axis=1)[:, :inputs]


def weight_steps(form: Format, weights: Array) -> Array:
    """Distances between the numbers that a weight is rounded to, of the weights' shape."""
    if form == Format.INT8:
        return np.broadcast_to(np.abs(weights).max(1, keepdims=True) / 127, weights.shape)
    blocks = in_blocks(weights)
    return spread((blocks.max(2) - blocks.min(2)) / 15, weights.shape[1])


def input_steps(form: Format, x: Array) -> Array:
    """The same of inputs: in matrix tiles int8 has one step for a row, of 16 bits."""
    if form == Format.INT8 and library.kernels().fs_dot_instructions() & TILES:
        return np.broadcast_to(np.abs(x).max(1, keepdims=True) / (127 * 256), x.shape)
    return spread(np.abs(in_blocks(x)).max(2) / 127, x.shape[1])


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("form", FLOATS)
def test_floats_are_summed_right(form: Format, outputs: int, inputs: int) -> None:
    weights, x = some(outputs, inputs, 13)
    out = multiply(form, weights, x)
    if form == Format.BFLOAT16:
        weights, x = bfloat16(weights), bfloat16(x)
    if form == Format.FLOAT16:
        weights = weights.astype(np.float16).astype(np.float32)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    sizes = np.abs(x).astype(np.float64) @ np.abs(weights.T).astype(np.float64)
    assert (np.abs(out - exact) <= inputs * UNIT * sizes + 1e-30).all()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("form", INTEGERS)
def test_integers_are_within_half_a_step(form: Format, outputs: int, inputs: int) -> None:
    """Every factor is off by half a step at most, and d and m by half precision's rounding."""
    weights, x = some(outputs, inputs, 13)
    out = multiply(form, weights, x)
    of_x = input_steps(form, x) / 2
    of_w = weight_steps(form, weights) / 2
    if form == Format.INT4:
        of_w = of_w + 2.0**-11 * (np.abs(spread(in_blocks(weights).min(2), inputs)) + 30 * of_w)
    bound = np.abs(x) @ of_w.T + of_x @ np.abs(weights.T) + of_x @ of_w.T
    exact = x.astype(np.float64) @ weights.T.astype(np.float64)
    assert (np.abs(out - exact) <= 1.001 * bound + inputs * UNIT * np.abs(x).max()).all()
    # rounding to a step spreads by step / sqrt(12): more than that is a wrong scale somewhere
    if inputs >= 48:
        spread_of = np.sqrt((x**2) @ (of_w**2 / 3).T + (of_x**2 / 3) @ (weights.T**2))
        assert 0.8 < np.sqrt((((out - exact) / spread_of) ** 2).mean()) < 1.1


@pytest.mark.parametrize(("form", "inputs", "sign"), pairwise(INTEGERS, (16, 32, 80, 1600), (-1, 1)))
def test_whole_numbers_are_exact(form: Format, inputs: int, sign: int) -> None:
    """All steps are 1, and the largest factors meet: nothing saturates or wraps."""
    random = np.random.default_rng(1)
    low, high = (-127, 127) if form == Format.INT8 else (0, 15)
    weights = random.integers(low, high + 1, (32, inputs)).astype(np.float32)
    weights[:8] = high
    weights[:, 0::16], weights[:, 1::16] = low, high
    x = random.integers(-127, 128, (9, inputs)).astype(np.float32)
    x[:3] = sign * 127
    x[:, 0::32] = sign * 127
    assert (multiply(form, weights, x) == x @ weights.T).all()


@pytest.mark.parametrize("form", INTEGERS)
def test_tiny_inputs_are_right_and_below_a_bound_zero(form: Format) -> None:
    weights, x = some(33, 80, 1)[0], np.random.default_rng(2).uniform(-1, 1, (3, 80))
    x[:, ::32] = 1
    usual = multiply(form, weights, x.astype(np.float32))
    for down in (109, 113, 116, 119):  # to 1.5e-36
        tiny = multiply(form, weights, np.ldexp(x, -down).astype(np.float32)).astype(np.float64)
        assert np.abs(np.ldexp(tiny, down) - usual).max() < 2e-3 * np.abs(usual).max(), down
    assert not multiply(form, weights, np.ldexp(x, -120).astype(np.float32)).any()


def test_sums_of_very_many_inputs_do_not_wrap() -> None:
    """More than whole numbers of 32 bits hold the sums of."""
    inputs = (1 << 17) + 80
    weights, x = np.full((32, inputs), 127, np.float32), np.full((2, inputs), 127, np.float32)
    x[1, ::2] = -126
    np.testing.assert_allclose(multiply(Format.INT8, weights, x), x.astype(float) @ weights.T.astype(float), 1e-4)


def example(kind: Format | str, outputs: int, inputs: int, seed: int = 0) -> tuple[Format, Array]:
    """A format, or a type of GGUF's, with packed weights."""
    if isinstance(kind, Format):
        return kind, packed(kind, some(outputs, inputs, 1, seed)[0])
    blocks = gguf_rows.like_weights(kind, outputs, inputs, seed)
    return GGUF_FORMATS[kind], gguf_rows.packed(kind, blocks, inputs)


@pytest.mark.parametrize("kind", [*FORMATS, *gguf_rows.TYPES])
@settings(max_examples=10)
@given(data=st.data())
def test_a_row_is_the_same_among_any(kind: Format | str, data: st.DataObject) -> None:
    inputs = data.draw(st.integers(1, 700))  # more than the longest stretch of a pass
    if isinstance(kind, str):
        inputs = gguf_rows.block_inputs(kind) * data.draw(st.integers(1, 5))
    outputs, seed = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 1000))
    form, tiles = example(kind, outputs, inputs, seed)
    x = some(1, inputs, 17, seed)[1]
    alone = np.concatenate([product(form, tiles, outputs, row[None]) for row in x])
    for count in range(2, len(x) + 1):
        first = data.draw(st.integers(0, len(x) - count))
        among = product(form, tiles, outputs, x[first : first + count])
        kept = alone[first : first + count]
        assert (among.view(np.int32) == kept.view(np.int32)).all(), count


@pytest.mark.parametrize("kind", [*FORMATS, *gguf_rows.TYPES])
def test_a_row_is_the_same_among_many(kind: Format | str) -> None:
    """Around the counts of rows from which they go another way, as through matrix tiles; inputs that end within
    a block, and more of them than are unpacked at once."""
    sizes = (16, 80, 2110) if isinstance(kind, Format) else (1, 9)
    for inputs in sizes if isinstance(kind, Format) else [gguf_rows.block_inputs(kind) * n for n in sizes]:
        form, tiles = example(kind, 40, inputs)
        x = some(1, inputs, 80)[1]
        alone = np.concatenate([product(form, tiles, 40, row[None]) for row in x])
        for count in (3, 8, 9, 16, 27, 28, 29, 30, 44, 45, 46, 63, 64, 65, 76, 77, 80):
            among = product(form, tiles, 40, x[:count])
            assert (among.view(np.int32) == alone[:count].view(np.int32)).all(), (inputs, count)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 1000))
def test_bfloat16_rows_are_packed_as_their_floats_are(pairs: int, outputs: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (outputs, 2 * pairs)).astype(np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] = 0  # what is not finite
    floats = np.append((bits.astype(np.uint32) << 16).view(np.float32), np.zeros_like(bits[:1]), 0)
    order = np.pad(np.arange(outputs)[::-1], (0, -outputs % 32), constant_values=-1)
    size = len(order) // 32 * library.tile_bytes(Format.BFLOAT16, 2 * pairs)
    rooms = [np.full(size + 64, 255, np.uint8) for _ in range(2)]
    one, other = (room[-room.ctypes.data % 64 :][:size] for room in rooms)
    library.pack(one, Format.BFLOAT16, floats[order].astype(np.float32))
    library.pack_gguf(other, Format.BFLOAT16, [bits.view(np.uint8)], order, 2 * pairs)
    assert (one == other).all()


# Infinities, the usual NaN, and NaNs whose bits a careless rounding carries into a number.
SICK = (0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF)


@pytest.mark.parametrize(("kind", "bits"), list(zip([*FORMATS, *gguf_rows.TYPES], cycle(SICK))))
def test_a_row_that_is_not_finite_shows_it_alone(kind: Format | str, bits: int) -> None:
    inputs = 80 if isinstance(kind, Format) else 2 * gguf_rows.block_inputs(kind)
    form, tiles = example(kind, 40, inputs)
    x = some(1, inputs, 5)[1]
    good = product(form, tiles, 40, x)
    x.view(np.uint32)[2, 50] = bits
    out = product(form, tiles, 40, x)
    assert not np.isfinite(out[2]).any() and (np.delete(out, 2, 0) == np.delete(good, 2, 0)).all()
    assert (product(form, tiles, 40, 0 * np.nan_to_num(x)) == 0).all() or isinstance(kind, Format)


DOTS, TILES = 1, 4  # of fs_dot_instructions
TURN = 32  # inputs of a row of a matrix tile


def fused(total: Array, a: Array, b: Array) -> Array:
    """total + a * b, rounded once: a product of two bfloat16 is exact in float32."""
    summed: Array = total + a * b
    return summed


def tile_sums(weights: Array, x: Array) -> Array:
    """Intel's TDPBF16PS: in each 32 inputs a chain of the even ones and one of the odd; their sum is added."""
    short = -x.shape[1] % TURN
    w_KO = np.pad(bfloat16(weights), ((0, 0), (0, short))).T[:, None]
    x_KR = np.pad(bfloat16(x), ((0, 0), (0, short))).T[:, :, None]
    total = np.zeros((len(x), len(weights)), np.float32)
    for first in range(0, len(w_KO), TURN):
        even, odd = np.zeros_like(total), np.zeros_like(total)
        for k in range(first, first + TURN, 2):
            even = fused(even, x_KR[k], w_KO[k])
            odd = fused(odd, x_KR[k + 1], w_KO[k + 1])
        total += even + odd
    return total


def dot_sums(weights: Array, x: Array) -> Array:
    """Sums on chips with other dots of pairs (VDPBF16PS): one chain, of each pair the odd one first; without such
    dots, the even one."""
    first = int(library.kernels().fs_dot_instructions() & DOTS)
    w_KO, x_KR = bfloat16(weights).T[:, None], bfloat16(x).T[:, :, None]
    total = np.zeros((len(x), len(weights)), np.float32)
    for k in range(0, len(w_KO), 2):
        for input_ in (k + first, k + 1 - first):
            if input_ < len(w_KO):
                total = fused(total, x_KR[input_], w_KO[input_])
    return total


@pytest.mark.parametrize(("outputs", "inputs"), [(33, 31), (64, 48), (32, 577), (64, 1536)])
def test_sums_are_those_of_the_manual(outputs: int, inputs: int) -> None:
    weights, x = some(outputs, inputs, 40)
    tiles = packed(Format.BFLOAT16, weights)
    in_tiles = library.kernels().fs_dot_instructions() & TILES
    expected = (tile_sums if in_tiles else dot_sums)(weights, x)
    for count in range(1, 41):
        found = product(Format.BFLOAT16, tiles, outputs, x[:count])
        assert (found.view(np.int32) == expected[:count].view(np.int32)).all(), count
