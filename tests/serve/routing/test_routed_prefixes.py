"""Who has read which prefix."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from routing_tools import request

from fastslow.serve.engines.routing.routed_prefixes import RoutedPrefixes
from fastslow.serve.engines.routing.settings import RoutingSettings


def index(**fields: Any) -> RoutedPrefixes:
    return RoutedPrefixes(RoutingSettings(**fields), Random(1))


def test_the_replica_that_read_most_comes_first() -> None:
    made = index()
    made.add(request("a" * 640), "short")
    made.add(request("a" * 1280), "long")
    found = made.match(request("a" * 2000), 5)
    assert [match.id for match in found] == ["long", "short"]
    assert found[0].characters > found[1].characters >= 0.85 * 640
    assert found[0].characters >= 0.85 * 1280


def test_only_the_same_mode_and_key_share() -> None:
    made = index()
    made.add(request("a" * 640, mode="fast", memory_key="x"), "one")
    assert made.match(request("a" * 640, mode="fast", memory_key="x"), 5)
    assert not made.match(request("a" * 640, mode="deep", memory_key="x"), 5)
    assert not made.match(request("a" * 640, mode="fast", memory_key="y"), 5)


def test_a_prompt_matches_as_far_as_it_is_the_same() -> None:
    made = index()
    made.add(request("a" * 1000 + "b" * 1000), "one")
    [found] = made.match(request("a" * 1000 + "c" * 1000), 5)
    assert 850 <= found.characters <= 1000
    assert not made.match(request("c" + "a" * 1000), 5)
    assert not made.match(request(""), 5)


def test_a_smaller_cache_has_dropped_the_oldest() -> None:
    made = index()
    made.resize("one", 2000)
    first, second = request("a" * 1500), request("b" * 1500)
    made.add(first, "one")
    made.add(second, "one")
    assert made.read_by(second, "one") >= 0.85 * 1500
    assert made.read_by(first, "one") <= 600  # the end of it went first
    made.resize("one", 1600)
    assert made.read_by(first, "one") <= 200
    made.resize("one", 0)
    assert len(made) == 0


def test_what_is_used_again_stays() -> None:
    made = index()
    made.resize("one", 2000)
    made.add(request("a" * 900), "one")
    made.add(request("b" * 900), "one")
    made.add(request("a" * 900), "one")
    made.add(request("c" * 900), "one")
    assert made.read_by(request("a" * 900), "one") > 600
    assert made.read_by(request("b" * 900), "one") <= 300


def test_a_replica_that_is_gone_is_forgotten() -> None:
    made = index()
    made.add(request("a" * 640), "one")
    made.add(request("a" * 640), "two")
    made.forget("one")
    assert [match.id for match in made.match(request("a" * 640), 5)] == ["two"]
    made.add(request("b" * 640), "three")  # takes the place of the first one
    assert [match.id for match in made.match(request("b" * 640), 5)] == ["three"]
    made.forget("two")
    made.forget("three")
    made.forget("unknown")
    assert len(made) == 0
    assert not made._masks


def test_many_that_read_the_same_are_drawn_by_chance() -> None:
    made = index()
    for number in range(100):
        made.add(request("a" * 640), f"r{number}")
    found = {match.id for _ in range(50) for match in made.match(request("a" * 640), 4)}
    assert len(made.match(request("a" * 640), 4)) == 4
    assert len(found) > 20


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 3000)), max_size=60)
)
def test_memory_is_bounded(steps: list[tuple[int, int, int]]) -> None:
    made = index(most_blocks=100)
    for replica, text, length in steps:
        if length < 20:
            made.forget(f"r{replica}")
        else:
            made.add(request(f"{text:03d}" * (length // 3)), f"r{replica}")
        assert len(made) <= 100
        assert len(made._recent) <= made._settings.recent
        held = {block for one in made._replicas.values() for block in one.blocks}
        assert held == set(made._masks)
        assert all(one.size == sum(one.blocks.values()) for one in made._replicas.values())


def test_blocks_are_bounded_however_much_is_sent() -> None:
    """Also where no replica has told how much its cache holds."""
    made = RoutedPrefixes(RoutingSettings(most_blocks=60), Random(0))
    for n in range(200):
        made.add(request(f"{n:04}" * 200), "a")
        assert len(made) <= 60
    for n in range(200):
        made.add(request(f"{n:04}" * 200), "b")
    assert len(made) <= 60
    assert made.match(request("0199" * 200), 2), "the latest are known"
    assert not made.match(request("0000" * 200), 2)


def test_replicas_that_come_and_go_take_no_more_room() -> None:
    made = RoutedPrefixes(RoutingSettings(), Random(0))
    for n in range(20):
        made.add(request("a" * 640), f"replica {n}")
        assert [match.id for match in made.match(request("a" * 640), 9)] == [f"replica {n}"]
        made.forget(f"replica {n}")
    assert len(made._ids) == 1 and not made._masks
