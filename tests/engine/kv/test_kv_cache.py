"""The KV cache: sharing, eviction, moves, pinned pages, ranks, and a check that sees seeded faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from schedule_tools import small_cache

from fastslow.engine.kv.budget import page_budget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.integrity import IntegrityError
from fastslow.engine.kv.page_file import PageFile
from fastslow.engine.kv.pages import PagePool
from fastslow.engine.kv.state.storage import KVStorage

TEXT = list(range(100, 116))


def run(cache: KVCache, request: int, tokens: list[int], root: object = None) -> int:
    """Open a request and run its whole text; how much of it was cached."""
    cached = cache.open(request, tokens, root, len(tokens) - 1)
    assert cache.reserve(request, len(tokens))
    cache.advance(request, len(tokens), tokens)
    cache.check_integrity()
    return cached


def test_full_pages_are_shared_and_the_last_row_is_left_to_run() -> None:
    cache = small_cache(8)
    assert run(cache, 0, TEXT[:10]) == 0
    assert cache.open(1, TEXT[:10], None, 9) == 8
    assert cache.slots(1, 0, 8).tolist() == cache.slots(0, 0, 8).tolist()
    assert cache.open(2, TEXT[:8], None, 7) == 4
    assert cache.open(3, TEXT[:10], None, 0) == 0


def test_two_who_compute_the_same_text_end_up_with_one_copy() -> None:
    cache = small_cache(8)
    for request in (0, 1):
        cache.open(request, TEXT, None, 15)
        assert cache.reserve(request, 16)
    assert cache.free_pages == 0
    for request in (0, 1):
        cache.advance(request, 16, TEXT)
        cache.check_integrity()
    assert cache.free_pages == 4
    assert cache.slots(0, 0, 16).tolist() == cache.slots(1, 0, 16).tolist()


def test_least_recently_used_texts_go_first_and_from_their_end() -> None:
    cache = small_cache(pages=6)
    run(cache, 0, TEXT[:8])
    run(cache, 1, [1] * 8)
    cache.close(0)
    cache.close(1)
    run(cache, 2, TEXT[:4])  # uses the older text's first page again
    cache.close(2)
    cache.open(3, [5], None, 0)
    assert cache.reserve(3, 12)  # 2 free pages, 1 evicted: the end of the older text
    cache.check_integrity()
    assert cache.open(4, TEXT[:8], None, 8) == 4
    assert cache.open(5, [1] * 8, None, 8) == 8


def test_rejected_rows_are_never_published() -> None:
    cache = small_cache(8)
    cache.open(0, TEXT[:3], None, 2)
    assert cache.reserve(0, 8)
    cache.commit(0, 3, [], TEXT[:4])  # five nodes written, none accepted
    assert len(_prefix(cache)) == 0 and cache.valid(0) == 3
    cache.commit(0, 4, [1], TEXT[:6])
    assert len(_prefix(cache)) == 1 and cache.valid(0) == 5


def test_pages_come_in_runs_with_room_to_grow() -> None:
    pool = PagePool(64)
    first = pool.take(4)
    second = pool.take(4)
    assert first == [0, 1, 2, 3]
    assert second == list(range(second[0], second[0] + 4)) and second[0] > 16
    assert pool.take(2, after=3) == [4, 5]
    rest = pool.take(54)
    assert sorted([*first, *second, 4, 5, *rest]) == list(range(64))
    with pytest.raises(ValueError, match="1 pages asked for, 0 are free"):
        pool.take(1)


def test_misuse_is_refused() -> None:
    cache = small_cache(8)
    run(cache, 0, TEXT[:6])
    refused: dict[str, Callable[[], object]] = {
        "request 0 is already open": lambda: cache.open(0, TEXT, None, 0),
        "length 5 is outside 6..8": lambda: cache.advance(0, 5, TEXT),
        "length 9 is outside 6..8": lambda: cache.advance(0, 9, TEXT),
        "length 8 is outside 6..7": lambda: cache.advance(0, 8, TEXT[:7]),
        "base 5 is among the 6 valid": lambda: cache.commit(0, 5, [0], TEXT),
        "do not ascend": lambda: cache.commit(0, 6, [1, 0], TEXT),
        "positions 6:9 are outside the 8 held": lambda: cache.commit(0, 6, [2], TEXT),
    }
    for said, misuse in refused.items():
        with pytest.raises(ValueError, match=said):
            misuse()
    with pytest.raises(KeyError):
        cache.close(7)
    cache.check_integrity()


def _pool(cache: KVCache) -> Any:
    return cache._ranks[0].pool


def _prefix(cache: KVCache) -> Any:
    return cache._ranks[0].prefix


def _share_unsealed(cache: KVCache) -> None:
    page = cache._tables[0].pages[-1]
    cache._tables[2].extend([page])
    _pool(cache).references[page] += 1


def _reverse_idle(cache: KVCache) -> None:
    for page in reversed(list(_pool(cache).idle_pages())):
        _pool(cache)._idle.move_to_end(page)


def _cross_keys(cache: KVCache) -> None:
    (a, page), (b, other) = list(_prefix(cache).items())[:2]
    _prefix(cache)._page_of.update({a: other, b: page})


FAULTS: dict[str, Callable[[KVCache], object]] = {
    "is shared, but not sealed": _share_unsealed,
    "would be evicted before": _reverse_idle,
    "references counted": lambda kv: kv._tables.pop(0),
    "is free and held": lambda kv: _pool(kv)._release(kv._tables[0].pages[0]),
    "1 references counted, 0 tables": lambda kv: _pool(kv).take(1),
    "free pages counted": lambda kv: setattr(_pool(kv), "free", _pool(kv).free + 1),
    "do not nest": lambda kv: setattr(kv._tables[0], "valid", 99),
    "slots are not those of its pages": lambda kv: kv._tables[0].slots(0, 4).__iadd__(4),
    "outside 0:12": lambda kv: kv._tables[0].replace(0, 99),
    "is idle, but not in the prefix index": lambda kv: _prefix(kv).forget(next(_pool(kv).idle_pages())),
    "is not published": lambda kv: _prefix(kv).forget(kv._tables[0].pages[0]),
    "does not lead back": _cross_keys,
    "keys, but": lambda kv: _prefix(kv)._page_of.pop(next(_prefix(kv).items())[0]),
    "is published, 1 are sealed": lambda kv: setattr(kv._tables[1], "sealed", 1),
}


@pytest.mark.parametrize("message", FAULTS)
def test_seeded_faults_are_seen(message: str) -> None:
    cache = small_cache(pages=12)
    run(cache, 0, TEXT[:10])
    run(cache, 1, TEXT[:9])
    cache.open(2, [3], None, 0)
    run(cache, 3, [9] * 12)
    cache.close(3)
    cache.check_integrity()
    FAULTS[message](cache)
    with pytest.raises(IntegrityError, match=message):
        cache.check_integrity()


# Pinned pages that requests of every root may share

ALL = "all"


def read(cache: KVCache, request: int, tokens: list[int], root: str, most: int = 99) -> int:
    """Run a prompt, and leave its request open; gives what was cached of it."""
    found = cache.open(request, tokens, root, most, for_all=ALL)
    if cache.reserve(request, len(tokens)):
        cache.advance(request, len(tokens), tokens)
    return found


def test_the_longer_of_two_ways_counts() -> None:
    cache, text = small_cache(24), list(range(12))
    read(cache, 0, text[:8], "me")  # two pages of its own
    read(cache, 1, text, "nobody")
    assert cache.pins.add(0, text, "nobody", 4, ALL) == 12
    for request in (0, 1):
        cache.close(request)
    assert read(cache, 2, [*text, 50, 51, 52, 53], "me") == 12, "two of its own, three of all"
    assert read(cache, 3, [*text, 50, 51, 52, 53], "you") == 12, "and not what follows"
    assert read(cache, 4, [*text, 50, 51, 52, 53], "me") == 16
    cache.check_integrity()
    cache.pins.remove(0)
    assert read(cache, 5, text, "you") == 0
    assert read(cache, 6, text, "nobody") == 12
    cache.check_integrity()


def test_a_page_after_other_pages_of_its_text_is_not_shared() -> None:
    cache, text = small_cache(24), list(range(9))
    read(cache, 0, text[:5], "nobody")
    cache.pins.add(0, text[:4], "nobody", 4, ALL)
    assert read(cache, 1, text, "me") == 4, "its second page follows the pinned one"
    cache.pins.remove(0)
    assert read(cache, 2, text[:5], "me") == 0
    assert read(cache, 3, text, "me") == 4, "a page of its own, but not what follows another"
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_calls_keeps_the_books(seed: int, tmp_path: Path) -> None:
    """Also where pages go to a file, which may be too small."""
    chance = random.Random(seed)
    cache = small_cache(10 if seed % 2 else 24)
    if seed % 2:
        page = sum(side.nbytes for side in cache.storage.page(0, 4))
        cache.evicted.file = PageFile(cache.storage, 4, chance.choice([3, 100]) * page + 1, tmp_path)
    opened: dict[int, str] = {}
    pins: set[int] = set()
    texts = [[0] * n + [chance.randrange(2) for _ in range(6)] for n in (0, 3, 6, 9, 12)]
    for number in range(300):
        text, root = chance.choice(texts), chance.choice(("nobody", "me", "you"))
        match chance.randrange(6):
            case 0 | 1 if len(opened) < 3:
                read(cache, number, text, root, chance.choice((0, 99)))
                opened[number] = root
            case 2 if opened:
                request = chance.choice(list(opened))
                del opened[request]
                cache.close(request)
            case 3 if len(pins) < 2:
                try:
                    cache.pins.add(number, text, "nobody", 6, chance.choice((ALL, None)))
                except ValueError:
                    continue
                pins.add(number)
            case 4 if pins:
                pin = chance.choice(sorted(pins))
                pins.discard(pin)
                cache.pins.remove(pin)
            case 5 if chance.random() < 0.1:
                cache.clear_prefix()
                pins.clear()
        cache.check_integrity()
    assert cache.evicted.file is None or cache.evicted.file.restored


# Attention that is data parallel: a request's pages are all of one rank


class TwoRanks(KVStorage):
    dp_ranks = 2


def two_ranks(pages: int = 8) -> KVCache:
    return small_cache(pages, storage=TwoRanks)


def test_requests_go_where_there_is_most_room_and_stay() -> None:
    kv = two_ranks()
    for request in range(4):
        assert kv.open(request, [request] * 8, None, 7) == 0
        assert kv.reserve(request, 8)
    assert [kv.dp_rank(r) for r in range(4)] == [0, 1, 0, 1]
    assert kv.free_pages == 0 and len(kv.requests) == 4
    for request in range(4):
        slots = kv.slots(request, 0, 8)
        assert set(slots // 16) == {kv.dp_rank(request)}
    kv.close(1)
    assert kv.free_for(0) == 0 and kv.free_for(3) == 2
    assert not kv.reserve(0, 9) and kv.reserve(3, 9), "a page of another rank is of no use"
    kv.check_integrity()


def test_a_beginning_is_found_on_its_rank_unless_that_is_full() -> None:
    kv = two_ranks()
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
    kv = two_ranks(9)
    assert kv.pages == 8 and kv.fits(16) and not kv.fits(17)
    sizes: dict[str, Any] = {"page_bytes": 10, "page_size": 4, "context": 16, "max_requests": 4}
    sizes["device"] = "cpu"
    assert page_budget(80, **sizes, dp_ranks=2).pages == 8
    with pytest.raises(ValueError, match="16 tokens on each of 2 data-parallel ranks needs 80 B"):
        page_budget(79, **sizes, dp_ranks=2)


def test_accepted_rows_move_on_their_rank() -> None:
    kv = two_ranks()
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
