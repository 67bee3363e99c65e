"""Pages that go to a file and come back: bit for bit, least recently used first, and never wrongly."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import texts
import torch
from schedule_tools import small_cache

from fastslow.engine.backends.accelerator.kv import BlockStorage
from fastslow.engine.backends.cpu.kv import Int8Tiles, TiledStorage
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.prefix import Key
from fastslow.engine.kv.state.storage import KVStorage

PAGE = 16


def cache(storage: type[KVStorage] = KVStorage, pages: int = 8, dtype: Any = torch.float32) -> KVCache:
    size = PAGE if storage.tile else 128
    layout = texts.alike(2, 2, 8)
    return small_cache(pages, layout=layout, page_size=size, dtype=dtype, storage=storage)


def spilling(folder: Path, kv: KVCache, pages: int = 100) -> PageFile:
    size = sum(side.numel() * side.itemsize for side in kv.storage.page(0, PAGE))
    kv.evicted.file = PageFile(kv.storage, PAGE, pages * size + 1, folder)
    assert kv.evicted.file.capacity == pages
    return kv.evicted.file


def no_space(data: memoryview) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def write(
    kv: KVCache, request: int, tokens: list[int], root: str = "root", for_all: str | None = None
) -> tuple[int, list[torch.Tensor]]:
    """Read a text with rows of its own; how many were there before, and the raw rows of its pages."""
    found = kv.open(request, tokens, root, len(tokens) - 1, for_all=for_all)
    assert kv.reserve(request, len(tokens))
    fresh = torch.Generator().manual_seed(request)
    for place in range(found, len(tokens)):
        rows = torch.randn((2, 2, 1, 2, 8), generator=fresh).to(kv.storage.dtype)
        kv.storage.write(kv.slots(request, place, place + 1), *rows)
    kv.advance(request, len(tokens), tokens)
    pages = kv._tables[request].pages[: len(tokens) // PAGE]
    return found, [side.clone() for page in pages for side in kv.storage.page(page, PAGE)]


@pytest.mark.parametrize("storage", [KVStorage, TiledStorage, Int8Tiles])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_come_back_bit_for_bit(tmp_path: Path, storage: Any, dtype: Any) -> None:
    kv = cache(storage, dtype=dtype)
    spill = spilling(tmp_path, kv)
    text = list(range(70))  # four pages and a bit
    _, before = write(kv, 0, text)
    kv.close(0)
    for other in (1, 2):
        write(kv, other, [100 * other + n for n in range(120)])
        kv.close(other)
    kv.check_integrity()
    assert spill.stored >= 4
    found, after = write(kv, 3, text)
    assert found == 64 and spill.restored >= 4
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(before, after))
    kv.check_integrity()
    kv.close(3)
    assert list(tmp_path.iterdir()) == []  # the file has no name


@pytest.mark.parametrize("seed", range(6))
def test_texts_that_branch_have_their_own_rows(tmp_path: Path, seed: int) -> None:
    """Any order of texts, evictions and hits, with a file that is too small as well."""
    random = Random(seed)
    kv = cache(pages=10)
    spilling(tmp_path, kv, random.choice([1, 3, 100]))
    rows: dict[tuple[int, ...], list[torch.Tensor]] = {}
    hits = 0
    for request in range(60):
        text = [n for part in random.choices(range(3), k=4) for n in [part] * PAGE] + [7]
        found, pages = write(kv, request, text)
        for n in range(len(text) // PAGE):
            key, own = tuple(text[: (n + 1) * PAGE]), pages[2 * n : 2 * n + 2]
            if n < found // PAGE:
                hits += 1
                assert all(torch.equal(a, b) for a, b in zip(rows[key], own, strict=True))
            rows[key] = own
        kv.check_integrity()
        kv.close(request)
        kv.check_integrity()
        if random.random() < 0.05:
            kv.clear_prefix()
            assert kv.evicted.file is not None and len(kv.evicted.file) == 0
            rows.clear()
    assert hits > 10 and kv.free_pages == kv.pages


def test_a_page_after_other_pages_of_its_text_is_not_restored(tmp_path: Path) -> None:
    kv = cache(pages=8)
    spilling(tmp_path, kv)
    text = [n // PAGE for n in range(2 * PAGE + 1)]
    write(kv, 0, text, "own")
    kv.close(0)
    write(kv, 1, [100 + n for n in range(8 * PAGE)])  # which takes all pages
    kv.close(1)
    write(kv, 2, text[: PAGE + 1], "other")
    kv.close(2)
    kv.pins.add(0, text[:PAGE], "other", 0, for_all="all")
    assert write(kv, 3, text, "own", "all")[0] == 2 * PAGE  # its second page follows the pinned one
    kv.close(3)
    kv.pins.remove(0)
    assert write(kv, 4, text, "own", "all")[0] == PAGE
    kv.check_integrity()
    kv.close(4)
    kv.check_integrity()


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_ends_the_spilling_and_what_cannot_be_read_back_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    kv = cache()
    spill = spilling(tmp_path, kv)
    for request, size in ((0, 120), (1, 40 if full else 120)):
        write(kv, request, [500 * request + n for n in range(size)])
        kv.close(request)
    assert len(spill) > 0
    wrote = no_space if full else len  # a full disk, or a file cut off
    file = SimpleNamespace(seek=int, write=wrote, readinto=lambda data: len(data) - 1)
    monkeypatch.setattr(spill, "_file", file)
    if full:
        write(kv, 2, [900 + n for n in range(120)])
        kv.close(2)
        assert len(spill) == 0
    assert write(kv, 3, list(range(120)))[0] == 0
    kv.check_integrity()
    kv.close(3)
    assert kv.free_pages == kv.pages and len(spill) == 0


def test_the_least_recently_used_page_makes_room(tmp_path: Path) -> None:
    kv = cache()
    spill = spilling(tmp_path, kv, 2)
    a, b, c = (Key("root", bytes([n])) for n in range(3))
    spill.store(a, 0)
    spill.store(b, 1)
    spill.store(a, 0)
    spill.store(c, 2)
    assert (a in spill, b in spill, c in spill, spill.stored) == (True, False, True, 3)
    assert not spill.restore(b, 3)


def test_what_cannot_be_spilled(tmp_path: Path) -> None:
    kv = cache(BlockStorage)
    with pytest.raises(ValueError, match="^kv_spill needs keys and values in the memory of the CPU, of"):
        PageFile(kv.storage, kv.page_size, 1 << 20, tmp_path)
    kv = cache()
    with pytest.raises(ValueError, match=r"^kv_spill is 100 B, and a page has 4\.0 KiB$"):
        PageFile(kv.storage, PAGE, 100, tmp_path)
    with pytest.raises(ValueError, match=r"^kv_spill is .* EiB, and .* has .* free$"):
        PageFile(kv.storage, PAGE, 1 << 60, tmp_path)
