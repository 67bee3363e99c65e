"""Pinned pages that requests of every root may share: the books stay right, and nothing else is shared."""

from __future__ import annotations

import random

import pytest
from schedule_tools import small_cache

from fastslow.engine.kv.cache import KVCache

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
    assert cache.pin(0, text, "nobody", 4, ALL) == 12
    for request in (0, 1):
        cache.close(request)
    assert read(cache, 2, [*text, 50, 51, 52, 53], "me") == 12, "two of its own, three of all"
    assert read(cache, 3, [*text, 50, 51, 52, 53], "you") == 12, "and not what follows"
    assert read(cache, 4, [*text, 50, 51, 52, 53], "me") == 16
    cache.check_integrity()
    cache.unpin(0)
    assert read(cache, 5, text, "you") == 0
    assert read(cache, 6, text, "nobody") == 12
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(40))
def test_any_order_of_calls_keeps_the_books(seed: int) -> None:
    chance = random.Random(seed)
    cache = small_cache(24)
    opened: dict[int, str] = {}
    pins: set[int] = set()
    texts = [[0] * n + [chance.randrange(2) for _ in range(6)] for n in (0, 3, 6, 9, 12)]
    for number in range(150):
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
                    cache.pin(number, text, "nobody", 6, chance.choice((ALL, None)))
                except ValueError:
                    continue
                pins.add(number)
            case 4 if pins:
                pin = chance.choice(sorted(pins))
                pins.discard(pin)
                cache.unpin(pin)
            case 5 if chance.random() < 0.1:
                cache.clear_prefix()
                pins.clear()
        cache.check_integrity()
