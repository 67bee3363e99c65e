"""Pages where attention is data parallel: a request's are all of one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schedule_tools import small_cache

from fastslow.engine.kv.budget import page_budget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.storage import KVStorage


class TwoRanks(KVStorage):
    dp_ranks = 2


def cache(pages: int = 8) -> KVCache:
    return small_cache(pages, storage=TwoRanks)


def test_requests_go_where_there_is_most_room_and_stay() -> None:
    kv = cache()
    for request in range(4):
        assert kv.open(request, [request] * 8, None, 7) == 0
        assert kv.reserve(request, 8)
    assert [kv.dp_rank(r) for r in range(4)] == [0, 1, 0, 1]
    assert kv.free_pages == 0 and kv.requests == 4
    for request in range(4):
        slots = kv.slots(request, 0, 8)
        assert set(slots // 16) == {kv.dp_rank(request)}
    kv.close(1)
    assert kv.free_for(0) == 0 and kv.free_for(3) == 2
    assert not kv.reserve(0, 9) and kv.reserve(3, 9), "a page of another rank is of no use"
    kv.check_integrity()


def test_a_beginning_is_found_on_its_rank_unless_that_is_full() -> None:
    kv = cache()
    text = list(range(12))
    kv.open(0, text, None, 0)
    kv.reserve(0, 12)
    kv.advance(0, 12, text)
    kv.open(1, text, None, 11)
    assert kv.dp_rank(1) == kv.dp_rank(0) == 0 and kv.valid(1) == 8
    assert kv.reserve(1, 12) and kv.free_for(0) == 0
    assert kv.open(2, [*text, 20, 21, 22, 23], None, 15) == 0, "no room where three pages are known"
    assert kv.dp_rank(2) == 1
    kv.close(2)
    assert kv.open(3, text, "another mode", 11) == 0 and kv.dp_rank(3) == 1
    for request in (0, 1, 3):
        kv.close(request)
    assert kv.free_pages - kv.empty_pages == 3
    kv.clear_prefix()
    assert kv.free_pages == 8 == kv.pages
    kv.check_integrity()


def test_what_fits_is_what_one_rank_holds() -> None:
    kv = cache(9)
    assert kv.pages == 8 and kv.fits(16) and not kv.fits(17)
    with pytest.raises(ValueError, match="is already open"):
        kv.open(0, [1], None, 0)
        kv.open(0, [1], None, 0)
    sizes: dict[str, Any] = {"page_bytes": 10, "page_size": 4, "context": 16, "max_requests": 4}
    sizes["device"] = "cpu"
    assert page_budget(80, **sizes, dp_ranks=2) == 8
    with pytest.raises(ValueError, match="16 tokens on each of 2 data-parallel ranks needs 80 B"):
        page_budget(79, **sizes, dp_ranks=2)


def test_accepted_rows_move_on_their_rank() -> None:
    kv = cache()
    for request in (0, 1):
        kv.open(request, [7, 8], None, 0)
        kv.reserve(request, 8)
        kv.advance(request, 2, [7, 8])
    slots = kv.slots(1, 0, 8)
    rows = torch.arange(2 * 8 * 2.0).view(2, 8, 1, 2)
    kv.storage.write(slots, rows, -rows)
    kv.commit(1, 2, [1, 3], [7, 8, 9, 10, 11])
    keys, values = kv.storage.read(slots[:4])
    assert torch.equal(keys, rows[:, [0, 1, 3, 5]]) and torch.equal(values, -keys)
    assert kv.valid(1) == 4 and kv.valid(0) == 2
