"""The replicas that have read a prefix."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from routing_tools import request

from fastslow.serve.engines.routing.routed_prefixes import RoutedPrefixes
from fastslow.serve.engines.routing.settings import RoutingSettings


def index(**fields: Any) -> RoutedPrefixes:
    return RoutedPrefixes(RoutingSettings(**fields), Random(1))


def test_the_replica_that_read_most_of_a_mode_and_key_comes_first() -> None:
    made = index()
    made.add(request("a" * 640), "short")
    made.add(request("a" * 1280 + "b" * 1000), "long")
    found = made.match(request("a" * 1280 + "c" * 1000), 5)
    assert list(found) == ["long", "short"] and 640 >= found["short"] >= 0.85 * 640
    assert 1280 >= found["long"] >= 0.85 * 1280
    assert not made.match(request("c" + "a" * 1000), 5) and not made.match(request(""), 5)
    made = index()
    made.add(request("a" * 640, mode="fast", memory_key="x"), "one")
    for mode, key, there in (("fast", "x", True), ("deep", "x", False), ("fast", "y", False)):
        assert bool(made.match(request("a" * 640, mode=mode, memory_key=key), 5)) is there


def test_a_smaller_cache_has_dropped_the_oldest_and_equals_are_drawn() -> None:
    made = index()
    made.resize("one", 2000)
    a, b, c = (request(letter * 900) for letter in "abc")
    for one in (a, b, a, c):
        made.add(one, "one")
    assert made.read_by(c, "one") >= 0.85 * 900 and made.read_by(a, "one") > 600
    assert made.read_by(b, "one") <= 300, "the end of it went first"
    made.resize("one", 1000)
    assert made.read_by(a, "one") <= 200
    made.resize("one", 0)
    assert len(made) == 0
    made = index()
    for number in range(100):
        made.add(request("a" * 640), f"r{number}")
    found = {id for _ in range(50) for id in made.match(request("a" * 640), 4)}
    assert len(made.match(request("a" * 640), 4)) == 4 and len(found) > 20


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 3000)), max_size=60))
def test_memory_is_bounded(steps: list[tuple[int, int, int]]) -> None:
    made = index(most_blocks=100)
    for replica, text, length in steps:
        if length < 20:
            made.forget(f"r{replica}")
        else:
            made.add(request(f"{text:03d}" * (length // 3)), f"r{replica}")
        assert len(made) <= 100
        assert {block for one in made._replicas.values() for block in one.blocks} == set(made._readers)
        assert all(one.size == sum(one.blocks.values()) for one in made._replicas.values())
