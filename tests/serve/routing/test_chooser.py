"""Which replica answers a request."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_tools import Clock, chooser_of, deep, quick, report, request

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest


def send(chooser: ReplicaChooser, asked: RoutedRequest) -> str:
    """Route a request as a router would."""
    id = chooser.rank(asked)[0]
    chooser.routed(asked, id)
    return id


def test_a_prefix_goes_where_it_is_known() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b", "c"], clock)
    first = send(chooser, request("x" * 4000))
    clock.now += 5
    assert {send(chooser, request("x" * 4000 + "y")) for _ in range(3)} == {first}


def test_a_replica_that_is_too_busy_loses_its_prefixes() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    first = send(chooser, request("x" * 4000))
    second = ({"a", "b"} - {first}).pop()
    busy = report(clock.now, running={"fast": 40}, waiting={"fast": 20}, queue_seconds=5.0)
    chooser.report(first, busy)
    chooser.report(second, report(clock.now))
    assert chooser.rank(request("x" * 4000))[0] == second


def test_requests_between_two_reports_spread() -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(10)]
    chooser = chooser_of(ids, clock)
    for id in ids:
        chooser.report(id, report(clock.now))
    clock.now += 0.5
    sent = Counter(send(chooser, request("a prompt of its own")) for _ in range(100))
    assert len(sent) == 10
    assert max(sent.values()) <= 20


def test_a_flood_of_deep_ones_stays_on_one_of_two() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    send(chooser, quick("hello"))
    assert len({send(chooser, deep(f"{n} think")) for n in range(100)}) == 1


def test_without_quick_ones_deep_ones_go_everywhere() -> None:
    chooser = chooser_of(["a", "b"], Clock())
    sent = Counter(send(chooser, deep(f"{n} think")) for n in range(100))
    assert min(sent.values()) >= 40


def test_the_guard_ends_some_time_after_the_last_quick_one() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    asked = quick("hello")
    send(chooser, asked)
    chooser.ended(asked.id)
    clock.now += 60
    assert len({send(chooser, deep(f"{n} think")) for n in range(10)}) == 1
    clock.now += 70
    assert len({send(chooser, deep(f"{n} think")) for n in range(100)}) == 2


def test_quick_ones_begin_while_all_are_full_of_deep_ones() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    asked = [deep(f"{n} think") for n in range(100)]
    places = {one.id: send(chooser, one) for one in asked}
    send(chooser, quick("hello"))
    [reserved] = chooser.reserved
    assert {send(chooser, deep(f"{n} more")) for n in range(50)} == {"a", "b"} - {reserved}
    for one in asked:
        if places[one.id] == reserved:
            chooser.ended(one.id)
    assert {send(chooser, quick(f"{n} hello")) for n in range(20)} == {reserved}


def test_deep_ones_go_to_a_kept_replica_rather_than_nowhere() -> None:
    chooser = chooser_of(["a", "b"], Clock())
    send(chooser, quick("hello"))
    assert len(chooser.rank(deep("think"))) == 2
    chooser.set_replicas(list(chooser.reserved))
    assert chooser.rank(deep("think"))
    assert not chooser.reserved


def test_other_routers_send_quick_ones_too() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    chooser.report("a", report(clock.now, running={"fast": 1}, urgent=1))
    chooser.rank(deep("think"))
    assert len(chooser.reserved) == 1


def test_routers_keep_the_same_replicas() -> None:
    ids = [f"r{n}" for n in range(50)]
    kept = []
    for order in (ids, ids[::-1]):
        chooser = chooser_of(order, Clock())
        for n in range(40):
            send(chooser, quick(f"{n}"))
        kept.append(chooser.reserved)
    assert kept[0] == kept[1]


def test_what_failed_on_a_request_comes_last() -> None:
    chooser = chooser_of(["a", "b", "c"], Clock())
    for id in "abc":
        assert chooser.rank(request("x", avoid=(id, "gone")))[-1] == id
    assert len(chooser.rank(request("x", avoid=("a", "b", "c")))) == 3


def test_a_replica_that_says_nothing_more_is_asked_later() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    chooser.report("a", report(clock.now))
    clock.now += 60
    chooser.report("b", report(clock.now, running={"fast": 5}))
    assert chooser.rank(request("x"))[0] == "b"


def test_there_are_no_replicas() -> None:
    chooser = chooser_of([], Clock())
    assert chooser.rank(request("x")) == []
    assert chooser.rank(quick("x")) == []
    assert chooser.rank(deep("x")) == []


@pytest.mark.parametrize("count", [1, 2, 3, 9, 100])
def test_every_replica_is_used(count: int) -> None:
    ids = [f"r{n}" for n in range(count)]
    chooser = chooser_of(ids, Clock())
    assert {send(chooser, request(f"{n} prompt")) for n in range(count * 20)} == set(ids)


REQUESTS = st.builds(
    request,
    st.text("ab", max_size=300),
    mode=st.sampled_from(["fast", "deep"]),
    deep=st.booleans(),
    latency_ms=st.sampled_from([None, 100.0]),
    avoid=st.lists(st.sampled_from(["r0", "r1", "r2", "gone"]), max_size=4).map(tuple),
)


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("srreg"), REQUESTS), max_size=40))
def test_all_replicas_are_ranked_once_whatever_happens(
    count: int, steps: list[tuple[str, RoutedRequest]]
) -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(count)]
    chooser = chooser_of(ids, clock, most_sent=10)
    sent: list[str] = []
    for number, (what, asked) in enumerate(steps):
        clock.now += 0.3
        if what == "s":
            ids = [f"r{n}" for n in range(1 + number % (count + 1))]
            chooser.set_replicas(ids)
        elif what == "r":
            chooser.routed(asked, chooser.rank(asked)[0])
            sent.append(asked.id)
        elif what == "e" and sent:
            chooser.ended(sent.pop())
        else:
            chooser.report("r0", report(clock.now, running={"fast": number}, urgent=number % 2))
        ranked = chooser.rank(asked)
        assert sorted(ranked) == sorted(ids)
        assert len(chooser._sent) <= 10
        assert len(chooser.reserved) < len(ids)
        answers = sum(load._own.answers for load in chooser._loads.values())
        assert answers <= len(chooser._sent)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_nothing_for_long(jump: float) -> None:
    """Prefixes still decide, deep ones still stay away, and the guard still ends."""
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)

    def reports() -> None:  # a second apart, as those of replicas are
        for id in ("a", "b"):
            clock.now += 1.0
            chooser.report(id, report(clock.now))

    reports()
    first = send(chooser, request("x" * 4000))
    chooser.rank(quick())
    clock.now += jump
    reports()
    reports()
    clock.now += 1.0
    chooser.rank(quick())
    for _ in range(20):
        assert chooser.rank(request("x" * 4000))[0] == first
    kept = chooser.reserved
    assert kept and chooser.rank(deep())[0] not in kept
    clock.now += 200
    reports()
    chooser.rank(deep())
    assert not chooser.reserved


def test_a_replica_whose_clock_is_late_is_no_silent_one() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    chooser.report("a", report(clock.now))
    chooser.report("b", report(clock.now - 600))
    assert len({chooser.rank(request("abc"))[0] for _ in range(50)}) == 2


def test_a_request_that_nobody_ends_counts_for_an_hour_only() -> None:
    clock = Clock()
    chooser = chooser_of(["a"], clock)
    send(chooser, request("never ended"))
    clock.now += 3500
    send(chooser, request("later"))
    assert chooser._loads["a"].answers == 2
    clock.now += 200
    send(chooser, request("the last"))
    assert chooser._loads["a"].answers == 2


def test_the_oldest_of_too_many_counts_no_more() -> None:
    chooser = chooser_of(["a"], Clock(), most_sent=3)
    for _ in range(5):
        send(chooser, request("abc"))
    assert chooser._loads["a"].answers == 3


def test_a_clock_that_is_set_back_does_not_keep_the_guard() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    chooser.rank(quick())
    clock.now -= 3600
    chooser.rank(deep())
    assert chooser.reserved
    clock.now += 200
    chooser.rank(deep())
    assert not chooser.reserved
