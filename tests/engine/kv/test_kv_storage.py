"""Keys and values in tiles and in int8: where they lie, what is kept, and attention over it."""

from __future__ import annotations

import mmap
import platform
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import texts
import torch
from kernel_tools import compiled

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage
from fastslow.engine.backends.loader import load_model
from fastslow.engine.kv.state.layout import RowState, SharedState, StateLayout
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.rows import Rows
from fastslow.llm import LLM

LAYOUT = texts.alike(3, 2, 8)
WIDE, NARROW = RowState(1, 16, 16), RowState(2, 8, 8, 4)
LATENTS = StateLayout((RowState(1, 24, 16, values_in_keys=True),) * 3)
INDEXED = StateLayout((RowState(1, 24, 16, values_in_keys=True, beside=16),) * 3)
MIXED = StateLayout((NARROW, WIDE, NARROW, SharedState(1)))
DTYPES = (torch.float32, torch.bfloat16)
KINDS = [*((kind, dtype) for kind in (KVStorage, TiledStorage) for dtype in DTYPES)]


def make(
    kind: type[KVStorage], slots: int, dtype: torch.dtype = torch.float32, layout: StateLayout = LAYOUT
) -> KVStorage:
    return kind(layout, slots, dtype, "cpu")


def some(slots: int, dtype: torch.dtype, layout: StateLayout) -> list[torch.Tensor]:
    """Rows of each side."""
    random = torch.Generator().manual_seed(5)
    shapes = [(3, slots, 2, 8)] if layout is LAYOUT else [(2, slots, 2, 8), (1, slots, 1, 16)]
    count = 2 if layout in (LAYOUT, MIXED) else 1
    latents = {LATENTS: [(3, slots, 1, 24)], INDEXED: [(3, slots, 1, 24), (3, slots, 1, 16)]}
    shapes = latents.get(layout, shapes)
    each = [torch.randn(count, *shape, generator=random) for shape in shapes]
    return [(side * torch.linspace(0.1, 30, slots)[:, None, None]).to(dtype) for both in each for side in both]


@pytest.mark.parametrize("layout", [LAYOUT, MIXED, LATENTS, INDEXED])
@pytest.mark.parametrize(("kind", "dtype"), [*KINDS, (Int8Tiles, torch.float32)])
def test_what_was_written_is_read_back_and_moved(
    kind: type[KVStorage], dtype: torch.dtype, layout: StateLayout
) -> None:
    """Int8 keeps rows to half a step, and moves them bit for bit."""
    storage, sides = make(kind, 40, dtype, layout), some(40, dtype, layout)
    order = np.random.default_rng(0).permutation(40)
    storage.write(order, *sides)
    found = storage.read(order)
    assert len({tuple(side.data_ptr() for side in (storage.k[n], storage.v[n])) for n in range(3)}) == 3
    assert layout is not MIXED or (
        storage.k[3] is storage.k[1] and storage.pointers[:, 3].tolist() == storage.pointers[:, 1].tolist()
    )
    for got, given in zip(found, sides, strict=True):
        step = given.abs().amax(-1, keepdim=True) / 127
        assert torch.equal(got, given) == (kind is not Int8Tiles)
        assert ((got - given).abs() <= 0.501 * step).all()
    storage.move(order[[15, 16, 17, 3]], order[[16, 17, 2, 33]])
    for got, before in zip(storage.read(order), found, strict=True):
        assert torch.equal(got[:, [16, 17, 2, 33]], before[:, [15, 16, 17, 3]])
        assert torch.equal(got[:, :2], before[:, :2])
    alone = storage.only(1).read(order)
    assert all(
        torch.equal(got, side[-1:] if layout is MIXED else side[1:2])
        for got, side in zip(alone, storage.read(order)[-len(alone) :])
    )
    assert storage.dtype == dtype and storage.slots == 40
    assert storage.memory_dtype == (torch.int8 if kind is Int8Tiles else dtype)


LINUX = tuple(map(int, platform.release().split(".")[:2])) if sys.platform == "linux" else (0, 0)


@pytest.mark.skipif(LINUX < (5, 14), reason="only Linux 5.14 takes memory before it is written")
@pytest.mark.parametrize("kind", [KVStorage, TiledStorage, Int8Tiles])
def test_populated_slots_are_written_without_faults(kind: type[KVStorage]) -> None:
    """And no others take memory, though they lie beside them in every layer."""
    import resource

    def faults(part: slice) -> float:
        """Of each memory page that is written."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for layer in (*storage.k, *storage.v):
            layer[part] = 1
        size: int = sum(layer[part].nbytes for layer in (*storage.k, *storage.v))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return (after - before) * mmap.PAGESIZE / size

    storage = make(kind, 16384)
    storage.populate(np.r_[4096:8192, 12288:14336])
    tile = storage.tile
    most = 0.5 if library.level().endswith("sanitize") else 0.2  # a sanitizer has faults of its own
    assert faults(slice(12288 // tile, 14336 // tile)) < most
    assert faults(slice(4096 // tile, 8192 // tile)) < most
    assert faults(slice(0, 4000 // tile)) > 0.8


def test_a_token_takes_a_byte_a_number_and_its_scales() -> None:
    for layout in (LAYOUT, MIXED, LATENTS, INDEXED):
        token = Int8Tiles.token_bytes(layout, torch.bfloat16)
        assert make(Int8Tiles, 48, layout=layout).nbytes == 48 * token
    layout = texts.alike(30, 3, 64)
    wide = KVStorage.token_bytes(layout, torch.bfloat16)
    slim = Int8Tiles.token_bytes(layout, torch.bfloat16)
    assert slim / wide == (64 + 4) / 128


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, width, dtype, said in (
        (Int8Tiles, 6, torch.float32, "int8 need a head_dim that is a multiple of 4, not 6"),
        (TiledStorage, 3, torch.float32, "head_dim of tiles is 3, but must be even"),
        (TiledStorage, 6, torch.float64, "dtype of tiles is torch.float64, but must be float32"),
    ):
        with pytest.raises(ValueError, match=said):
            kind(texts.alike(1, 1, width), 1, dtype, "cpu")
    for kind, row in ((Int8Tiles, RowState(1, 8, 4)), (TiledStorage, RowState(1, 8, 4))):
        with pytest.raises(ValueError, match=f"{kind.__name__} keeps values as wide as keys, and layer 0 has others"):
            kind(StateLayout((row,)), 1, torch.float32, "cpu")
    folder = checkpoints.write_dense(tmp_path)
    with pytest.raises(ValueError, match="kv_dtype 'int9' is not one of auto, int8, model"):
        load_model(folder, kv_dtype="int9")
    monkeypatch.setattr(library, "available", lambda: False)
    with pytest.raises(ValueError, match="kv_dtype 'int8' needs the CPU kernels"):
        load_model(folder, kv_dtype="int8")


@compiled
@pytest.mark.parametrize("head_dim", [4, 20, 64])
def test_attention_over_int8_is_exact_over_what_is_kept(tmp_path: Path, head_dim: int) -> None:
    """A model on float keys and values that are given what int8 keeps says the same next token."""
    folder = checkpoints.write_dense(tmp_path, attention_bias=True, head_dim=head_dim)
    exact, rounded = load_model(folder, "float32"), load_model(folder, "float32", kv_dtype="int8")
    assert exact.storage is TiledStorage and rounded.storage is Int8Tiles
    count = 300  # over a block of keys
    tokens, slots = texts.tokens_of(count), np.random.default_rng(1).permutation(400)[:count]
    kept = texts.storage(rounded, 400)
    rounded.forward(Rows.of([texts.chunk(tokens, 0, count - 1, slots)]), kept)
    given = texts.storage(exact, 400)
    given.write(slots[:-1], *kept.read(slots[:-1]))
    last = Rows.of([texts.chunk(tokens, count - 1, count, slots)])
    near, same = rounded.forward(last, kept).logits, exact.forward(last, given).logits
    # only the last row's own key and value are rounded once more
    assert (near - same).norm() < 4e-3 * same.norm()
    again = texts.storage(exact, 400)
    exact.forward(Rows.of([texts.chunk(tokens, 0, count - 1, slots)]), again)
    first = slots[:1]  # of the first layer: later ones come from rounded attention
    for mine, theirs in zip(kept.read(first), again.read(first), strict=True):
        step = theirs[0].abs().amax(-1, keepdim=True) / 127
        assert ((mine[0] - theirs[0]).abs() <= 0.51 * step).all()


@compiled
def test_an_engine_with_int8_keys_speculates_exactly(tmp_path: Path) -> None:
    folder = checkpoints.write_moge(tmp_path, eos_token_id=None)
    params = SamplingParams(max_tokens=24)
    prompts = [texts.tokens_of(n, seed=n) * 3 for n in (5, 9, 14)]
    with LLM(folder, kv_dtype="int8", kv_memory="4MiB") as llm:
        plain = llm.generate(prompts, params, speculation="off")
        for drafter in ("ngram", "suffix", "self"):
            # a fixed length: the adaptive one may rightly draft nothing where rows are slow
            settings = Speculation(drafter=drafter, nodes=4)
            drafted = llm.generate(prompts, params, speculation=settings)
            assert [o.token_ids for o in drafted] == [o.token_ids for o in plain]
        assert sum(o.metrics.drafted for o in drafted)


@compiled
def test_a_storage_in_another_order_is_refused(tiny_dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load_model(tiny_dense, "float32")
    monkeypatch.setattr(library, "available", lambda: False)
    plain = load_model(tiny_dense, "float32")
    assert kernels.storage is TiledStorage and plain.storage is KVStorage
    rows = Rows.of([texts.chunk([1, 2], 0, 2, np.arange(2))])
    with pytest.raises(ValueError, match="kv is a KVStorage, but must be a TiledStorage"):
        kernels.forward(rows, texts.storage(plain, 16))
    with pytest.raises(ValueError, match="kv is a TiledStorage, but must be a KVStorage"):
        plain.forward(rows, texts.storage(kernels, 16))
