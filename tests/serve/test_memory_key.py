"""A cache salt divides what an API key's requests share, and joins nothing."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from fastslow.call import as_key
from fastslow.serve.memory_key import joined_key


def test_a_salt_divides_a_key_and_joins_nothing() -> None:
    pairs = [(None, None), (None, "a"), ("a", None), ("a", "b"), ("ab", None), ("b", "a")]
    pairs += [("a", "bc"), ("ab", "c"), ('a", "b', "c"), ("a", 'b", "c'), ("null", "a")]
    keys = [joined_key(own, salt) for own, salt in pairs]
    assert all(a != b for a, b in combinations(keys, 2))
    assert keys[0] is None and keys[2] == "a" and joined_key("a", "b") == keys[3]
    assert all(as_key(key) == key for key in (*keys, joined_key("k" * 256, "s" * 256)))


@pytest.mark.parametrize("salt", ["", "s" * 257, 5, ["a"]], ids=repr)
def test_a_salt_is_a_short_text(salt: Any) -> None:
    with pytest.raises(ValueError, match="^cache_salt=.* must be text of 1 to 256 characters$"):
        joined_key("me", salt)
