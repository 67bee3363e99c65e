"""Numbers that would make the kernels read or write somewhere else are refused in one sentence."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled, made
from refusals import refused

from fastslow.engine.backends.alike import AlikeLayers
from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.compiled import structures
from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.cpu.formats import Format
from fastslow.engine.backends.cpu.step import Tails
from fastslow.engine.backends.loader import load_model
from fastslow.engine.rows import Rows, Segment

pytestmark = compiled
FAR = 10**12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CpuDecoder:
    model = load_model(checkpoints.write_moge(tmp_path_factory.mktemp("checks")), "bfloat16")
    assert isinstance(model, CpuDecoder)
    return model


def step() -> Rows:
    """A text of four rows after four committed ones, and one of two rows."""
    texts_ = [
        Segment([5, 6, 7, 8], range(4, 8), [-1, 0, 0, 1], np.arange(4, 8), np.arange(4), 2, [3], 0),
        Segment([9, 10], range(2), [-1, 0], np.arange(16, 18), np.arange(0), None, [0, 1], 0),
    ]
    return Rows.of(texts_)


def spoil(name: str, at: int, value: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        numbers = rows.contexts[0] if name == "contexts" else getattr(rows, name)
        numbers[at] = value

    return change


WRONG: list[tuple[Callable[[Rows], None], str]] = [
    (spoil("tokens", 3, -1), r"token -1 must be in 0\.\.95"),
    (spoil("tokens", 0, 96), r"token 96 must be in 0\.\.95"),
    (spoil("tokens", 5, FAR), r"token 1000000000000 must be in 0\.\.95"),
    (spoil("slots", 2, -1), r"slot -1 must be in 0\.\.31"),
    (spoil("slots", 2, FAR), r"slot 1000000000000 must be in 0\.\.31"),
    (spoil("groups", 1, -2), "routed groups -2 must be in -1"),
    (spoil("contexts", 3, FAR), r"slot of a context 1000000000000 must be in 0\.\.31"),
    (spoil("contexts", 0, -FAR), "slot of a context -1000000000000 must be"),
    (spoil("outputs", 0, 6), r"row of an output 6 must be in 0\.\.5"),
    (spoil("outputs", 2, -1), "row of an output -1 must be"),
    (spoil("feature_rows", 1, FAR), "row to see 1000000000000 must be"),
    (spoil("starts", 1, 7), "starts of 2 requests do not ascend from 0 to the 6 rows"),
    (spoil("starts", 0, -3), "starts of 2 requests do not ascend"),
    (lambda rows: setattr(rows, "tokens", rows.tokens.astype(np.int32)), "tokens must be 6 of int64"),
    (lambda rows: setattr(rows, "slots", rows.slots[:4]), "slots must be 6 of int64, not 4"),
    (lambda rows: setattr(rows, "groups", np.zeros(12, np.int64)[::2]), "groups .*, with gaps"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_a_step_that_reaches_outside_is_refused_and_the_next_one_runs(
    model: CpuDecoder, change: Callable[[Rows], None], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails, angles = Tails.of(step()), model._rotary.at(step())  # of the rows as they should be
    monkeypatch.setattr(Tails, "of", lambda rows: tails)
    monkeypatch.setattr(model, "_rotary", SimpleNamespace(at=lambda rows: angles, width=model._rotary.width))
    kv = texts.storage(model, 32)
    want = model.forward(step(), kv, (0, 2))
    rows = step()
    change(rows)
    refused(sentence, model.forward, rows, kv, (0, 2))
    again = model.forward(step(), kv, (0, 2))
    assert torch.equal(want.logits, again.logits)


@pytest.mark.parametrize(("name", "at", "value", "sentence"), [
    ("slots", 4, FAR, "slot of a row's path 1000000000000 must be"),
    ("starts", 5, -1, "the path of row 5 leaves the list"),
    ("starts", 2, FAR, "the path of row 2 leaves the list"),
    ("lengths", 1, 0, "length of a row's path 0 must be"),
    ("lengths", 3, FAR, "length of a row's path 1000000000000 must be"),
])  # fmt: skip
def test_paths_that_reach_outside_are_refused(
    model: CpuDecoder, monkeypatch: pytest.MonkeyPatch, name: str, at: int, value: int, sentence: str
) -> None:
    tails = Tails.of(step())
    getattr(tails, name)[at] = value
    monkeypatch.setattr(Tails, "of", lambda rows: tails)
    refused(sentence, model.forward, step(), texts.storage(model, 32))


def test_keys_and_values_of_another_model_are_refused(model: CpuDecoder) -> None:
    count, a = len(model.config.layers), AlikeLayers.of(model.config).attention
    other = model.storage(texts.alike(count, a.kv_heads, 2 * a.head_dim), 32, model.dtype, "cpu")
    refused("is not that of this model", model.forward, step(), other)


SIZES = (
    *("layers", "hidden", "heads", "kv_heads", "head_dim", "neurons", "vocabulary", "experts"),
    *("chosen", "expert_neurons", "embedding_rows"),
)


@pytest.mark.parametrize("field", SIZES)
def test_the_kernels_hold_the_limits_that_python_reads(model: CpuDecoder, field: str) -> None:
    name = "vocabulary" if field == "embedding_rows" else field
    least, most = library.LIMITS[name]
    for value in (least - 1, most + 1):
        made(model)
        refused(rf"{name}={value} must be in {least}\.\.{most}", made, model, **{field: value})


@pytest.mark.parametrize(("field", "value", "sentence"), [
    ("hidden", 65, "matrix queries is .* by 64, not .* by 65"), ("heads", 6, "matrix queries is"),
    ("heads", 5, "heads=5 must be a multiple of kv_heads=2"),
    ("heads", 130, r"heads_per_kv_head=65 must be in 1\.\.64"), ("head_dim", 48, "matrix queries is"),
    ("head_dim", 15, "head_dim=15 even"), ("neurons", 8, "a layer has 64 neurons, not 1 to 8"),
    ("vocabulary", 1000, "matrix head is 96 by 64, not 1024 by 64"), ("experts", 100, "matrix router is"),
    ("chosen", 3, "16 experts are no multiple of 3 groups"), ("expert_neurons", 64, "matrix expert_gate_up is"),
    ("embedding_format", 7, "format 7 of the embedding is unknown"),
    ("embedding", None, "the embedding is neither in memory nor in a file"), ("norm", None, "vector norm is missing"),
    ("index_most", 4, "a layer of mixer 0 and window=0 chooses index_most=4 keys"),
])  # fmt: skip
def test_shapes_that_do_not_fit_their_matrices_are_refused(
    model: CpuDecoder, field: str, value: Any, sentence: str
) -> None:
    refused(sentence, made, model, **{field: value})


def test_numbers_that_their_c_type_does_not_hold_are_refused() -> None:
    refused("layers=2147483648 must be in -2147483648..2147483647", structures.CShape, layers=2**31)
    refused("expert_bytes=9223372036854775808 must be", structures.CLayer, expert_bytes=2**63)
    with pytest.raises(ctypes.ArgumentError, match="must be in -2147483648..2147483647"):
        library.kernels().fs_tile_bytes(Format.INT8, 2**32 + 64)
    refused(r"inputs=1048577 must be a whole number in 1\.\.1048576", library.tile_bytes, Format.INT8, 2**20 + 1)
    refused("heads=2.0 must be a whole number", library.check_limits, heads=2.0)


def test_memory_that_is_too_small_is_not_packed_into() -> None:
    rows = np.zeros((40, 64), np.float32)
    whole = np.zeros(2 * library.tile_bytes(Format.INT8, 64) + 64, np.uint8)
    whole = whole[-whole.ctypes.data % 64 :]
    library.pack(whole, Format.INT8, rows)
    refused("memory of packed rows must be .* not", library.pack, whole[:-128].copy(), Format.INT8, rows)
    refused("must begin on a cache line", library.pack, whole[1:], Format.INT4, rows[:32])
    refused("rows must be 2560 of float32", library.pack, whole, Format.INT8, rows.astype(np.float64))
    with pytest.raises(ValueError, match="scales must be 40 of float32, not 39"):
        library.pack_int8(whole, Format.INT8, rows.astype(np.int8), np.zeros(39, np.float32))
    with pytest.raises(ValueError, match="rows of blocks must be 1600 of uint8, not 1560"):
        library.pack_gguf(whole, Format.INT4, [np.zeros((40, 39), np.uint8)], np.arange(32), 64)
