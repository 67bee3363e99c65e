"""The choice of the replica that answers a request."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routing_tools import chooser_of, deep, quick, report, request
from serve_tools import Clock

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest


def send(chooser: ReplicaChooser, asked: RoutedRequest) -> str:
    """Route a request as a router would."""
    id = chooser.rank(asked)[0]
    chooser.routed(asked, id)
    return id


def test_a_prefix_goes_where_it_is_known_unless_that_replica_is_too_busy() -> None:
    clock = Clock()
    chooser = chooser_of(["a", "b", "c"], clock)
    first = send(chooser, request("x" * 4000))
    clock.now += 5
    assert {send(chooser, request("x" * 4000 + "y")) for _ in range(3)} == {first}
    busy = report(clock.now, running={"fast": 40}, waiting={"fast": 20}, queue_seconds=5.0)
    for id in "abc":
        chooser.report(id, busy if id == first else report(clock.now))
    assert chooser.rank(request("x" * 4000))[0] != first


@pytest.mark.parametrize("count", [1, 2, 3, 9, 100])
def test_deep_requests_go_everywhere_but_to_reserved_replicas(count: int) -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(count)]
    chooser = chooser_of(ids, clock)

    def taken() -> set[str]:
        return {send(chooser, deep(f"{n} think")) for n in range(20 * count)}

    assert taken() == set(ids)
    asked = quick("hello")
    send(chooser, asked)
    chooser.ended(asked.id)
    reserved = chooser.reserved
    assert len(reserved) == min(count - 1, max(1, count // 4))
    clock.now += 60
    assert taken() == set(ids) - reserved
    clock.now += 70
    chooser.rank(deep("think"))
    assert not chooser.reserved, "no quick request came for two minutes"
    assert taken() & reserved == reserved


def test_quick_requests_begin_while_all_are_full_of_deep_ones() -> None:
    chooser = chooser_of(["a", "b"], Clock())
    asked = [deep(f"{n} think") for n in range(100)]
    places = {one.id: send(chooser, one) for one in asked}
    send(chooser, quick("hello"))
    [reserved] = chooser.reserved
    for one in asked:
        if places[one.id] == reserved:
            chooser.ended(one.id)
    assert {send(chooser, quick(f"{n} hello")) for n in range(20)} == {reserved}
    chooser.set_replicas([reserved])
    assert chooser.rank(deep("think")) == [reserved] and not chooser.reserved


def test_routers_reserve_the_same_replicas_whoever_sends_the_quick_requests() -> None:
    ids, found = [f"r{n}" for n in range(50)], []
    for order in (ids, ids[::-1]):
        chooser = chooser_of(order, Clock())
        chooser.report("r7", report(1000.0, running={"fast": 1}, urgent=1))
        chooser.rank(deep("think"))
        found.append(chooser.reserved)
    assert found[0] == found[1] != set()


@pytest.mark.parametrize(("at", "first"), [(-60.0, {"b"}), (0.0, {"a", "b"})])
def test_a_replica_that_says_nothing_more_is_asked_later(at: float, first: set[str]) -> None:
    """A replica whose own clock is late says something."""
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)
    clock.now += at
    chooser.report("a", report(1000.0 - 600))
    clock.now -= at
    chooser.report("b", report(clock.now))
    assert {chooser.rank(request("x"))[0] for _ in range(50)} == first


def test_requests_between_two_reports_spread_and_what_failed_comes_last() -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(10)]
    chooser = chooser_of(ids, clock)
    for id in ids:
        chooser.report(id, report(clock.now))
    clock.now += 0.5
    sent = Counter(send(chooser, request("a new prompt")) for _ in range(100))
    assert len(sent) == 10 and max(sent.values()) <= 20
    chooser = chooser_of(["a", "b", "c"], Clock())
    for id in "abc":
        assert chooser.rank(request("x", avoid=(id, "gone")))[-1] == id
    assert len(chooser.rank(request("x", avoid=("a", "b", "c")))) == 3


REQUESTS = st.builds(
    request, st.text("ab", max_size=300), mode=st.sampled_from(["fast", "deep"]), deep=st.booleans(),
    latency_ms=st.sampled_from([None, 100.0]),
    avoid=st.lists(st.sampled_from(["r0", "r1", "r2", "gone"]), max_size=4).map(tuple),
)  # fmt: skip


@given(st.integers(1, 30), st.lists(st.tuples(st.sampled_from("srreg"), REQUESTS), max_size=40))
def test_all_replicas_are_ranked_once_whatever_happens(count: int, steps: list[tuple[str, RoutedRequest]]) -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(count)]
    chooser = chooser_of(ids, clock)
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
        assert sorted(chooser.rank(asked)) == sorted(ids) and len(chooser.reserved) < len(ids)
        assert sum(len(load._mine) for load in chooser._loads.values()) <= len(chooser._sent)


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_is_set_changes_nothing_for_long(jump: float) -> None:
    """Prefixes still decide, deep ones still stay away, and replicas are not reserved for ever."""
    clock = Clock()
    chooser = chooser_of(["a", "b"], clock)

    def pass_time(seconds: float) -> None:
        clock.now += seconds
        for id in ("a", "b"):
            chooser.report(id, report(clock.now))

    pass_time(1.0)
    first = send(chooser, request("x" * 4000))
    for seconds in (1.0, jump, 1.0):
        chooser.rank(quick())
        pass_time(seconds)
    clock.now += 2.0  # in which the prompt is read
    chooser.rank(quick())
    assert {chooser.rank(request("x" * 4000))[0] for _ in range(20)} == {first}
    assert chooser.reserved and chooser.rank(deep())[0] not in chooser.reserved
    pass_time(200)
    chooser.rank(deep())
    assert not chooser.reserved
