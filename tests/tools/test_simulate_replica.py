"""A simulated replica: hand-computed times, queues in closed form, prefixes, targets and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.cluster import ClusterResult, ClusterSettings, SimulatedCluster
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.replica import SimulatedReplica
from fastslow.tools.simulate.trace import TracedRequest

STEP, ROW = 0.010, 0.0005  # seconds of a step, and of each row in it


def line(first: float = STEP, row: float = ROW) -> ModeSteps:
    return ModeSteps(rows=(1, 1024), seconds=(first + row, first + 1024 * row))


def costs(**more: Any) -> ReplicaCosts:
    given: dict[str, Any] = {
        "modes": {"fast": line(), "deep": line(2 * STEP, 2 * ROW)},
        "pages": 4096,
    } | more
    return ReplicaCosts(**given)


def one(arrival: float, prompt: int, answer: int, **more: Any) -> TracedRequest:
    given: dict[str, Any] = {"mode": "fast", "id": f"{arrival}/{prompt}"} | more
    return TracedRequest(arrival=arrival, prompt_tokens=prompt, answer_tokens=answer, **given)


def run(
    trace: Sequence[TracedRequest], machine: ReplicaCosts, replicas: int = 1, **more: object
) -> ClusterResult:
    return SimulatedCluster(trace, machine, ClusterSettings(replicas, **more)).run()  # type: ignore[arg-type]


def times(result: ClusterResult) -> dict[str, tuple[float, float]]:
    return {a.request.id: (a.first or 0.0, a.end or 0.0) for a in result.answers}


def test_one_request_takes_what_its_steps_take() -> None:
    request = one(5.0, 700, 11, tokens_per_step=2.0, rows_per_step=3.0)
    machine = costs(context_seconds=1e-6, attention_seconds=1e-8)
    ((first, end),) = times(run([request], machine)).values()
    # two chunks of its prompt, of which the second gives a token; then five steps of two tokens
    reading = 2 * STEP + 700 * ROW + 1e-8 * (512 * 256 + 188 * (512 + 94))
    steps = [STEP + 3 * ROW + 1e-6 * (701 + 2 * n) for n in range(5)]
    assert first == pytest.approx(5.0 + reading, rel=1e-12)
    assert end == pytest.approx(5.0 + reading + sum(steps), rel=1e-12)


def test_what_is_no_step_counts_too() -> None:
    ((first, _),) = times(run([one(0, 10, 2)], costs(first_seconds=0.25))).values()
    assert first == pytest.approx(0.25 + STEP + 10 * ROW)


def test_replicas_of_a_machine_slow_each_other() -> None:
    """Each request has a replica of its own; the one that comes second finds the first at work, and so on."""
    machine = costs(slowdown=(1.5, 2.0))
    trace = [one(0, 100, 1), one(0.001, 200, 1), one(0.002, 300, 1), one(0.003, 400, 1)]
    alone = [STEP + tokens * ROW for tokens in (100, 200, 300, 400)]
    for together, factors in {4: (1.0, 1.5, 2.0, 2.0), 1: (1.0, 1.0, 1.0, 1.0)}.items():
        found = times(run(trace, machine, 4, router="pow2", machine_replicas=together))
        for request, step, factor in zip(trace, alone, factors, strict=True):
            first, _ = found[request.id]
            assert first - request.arrival == pytest.approx(factor * step, rel=1e-9)


def test_a_step_is_slowed_by_those_that_run_when_it_begins() -> None:
    """Two answers of three tokens: the second begins within the first one's prompt, and ends after it."""
    machine = costs(slowdown=(1.5,))
    trace = [one(0, 100, 3), one(0.001, 400, 3)]
    read = [STEP + 100 * ROW, 1.5 * (STEP + 400 * ROW)]
    step = STEP + ROW
    found = times(run(trace, machine, 2, router="pow2", machine_replicas=2))
    assert found["0/100"][1] == pytest.approx(read[0] + 2 * 1.5 * step)
    assert found["0.001/400"][1] == pytest.approx(0.001 + read[1] + 2 * step)


def test_a_cached_prefix_is_not_read_again() -> None:
    prefix = (("system", 320),)
    trace = [one(0, 400, 1, prefix=prefix), one(9, 401, 1, prefix=prefix)]
    trace.append(one(18, 402, 1, prefix=prefix, mode="deep"))
    trace.append(one(27, 403, 1, prefix=prefix, memory_key="other"))
    result = run(trace, costs())
    assert [a.cached for a in result.answers] == [0, 320, 0, 0]
    first, _ = times(result)["9/401"]
    assert first == pytest.approx(9 + STEP + 81 * ROW)


def test_a_chat_finds_its_own_earlier_turns() -> None:
    asked = one(0, 100, 60, id="turn-1")
    follow = one(9, 200, 1, id="turn-2", prefix=(("turn-1", 160),))
    result = run([asked, follow], costs())
    assert result.answers[1].cached == 160


def test_pages_of_old_texts_go_first() -> None:
    machine = costs(pages=48)  # two of the prompts, and some
    trace = [one(float(n), 320, 1, id=str(n), prefix=((f"p{n}", 304),)) for n in range(3)]
    for at, old in ((10.0, trace[2]), (11.0, trace[1]), (20.0, trace[0])):
        trace.append(old.model_copy(update={"arrival": at, "id": f"{old.id}'"}))
    result = run(trace, machine)
    found = {a.request.id: a.cached for a in result.answers}
    assert found["2'"] == found["1'"] == 304
    assert found["0'"] is not None and found["0'"] < 304


def test_the_queue_is_that_of_one_server_in_closed_form() -> None:
    """One at a time with equal lengths and Poisson arrivals: M/D/1, whose mean wait is rho D / 2 (1 - rho)."""
    random, now, trace = Random(1), 0.0, []
    service, busy = 4 * (STEP + ROW), 0.6
    for n in range(3_000):
        now += random.expovariate(busy / service)
        trace.append(one(now, 1, 4, id=str(n)))
    result = run(trace, costs(max_running=1, prompt_rows=1))
    waits = [a.first - a.request.arrival - STEP - ROW for a in result.answers if a.first]
    assert sum(waits) / len(waits) == pytest.approx(busy * service / 2 / (1 - busy), rel=0.15)
    assert result.busy_seconds == pytest.approx(service * len(trace), rel=1e-9)


def test_after_the_last_arrival_only_steps_count() -> None:
    """Two replicas; the last request comes in the middle of the one before, and both go on."""
    trace = [one(0, 10, 3), one(10, 100, 21), one(10.1, 100, 5)]
    steps = [STEP + 100 * ROW + n * (STEP + ROW) for n in (20, 4)]
    result = run(trace, costs(), 2, router="pow2")
    left = steps[0] - 0.1 + steps[1]
    assert result.replica_seconds == pytest.approx(2 * 10.1 + left)


def mixed(seed: int, count: int = 60, spread: float = 0.4) -> list[TracedRequest]:
    random, now, trace = Random(seed), 0.0, []
    for n in range(count):
        now += random.expovariate(1 / spread)
        prompt = random.randrange(1, 1500)
        more: dict[str, Any] = {
            "mode": random.choice(("fast", "deep")),
            "tokens_per_step": random.choice((1.0, 1.5, 2.25)),
            "rows_per_step": random.choice((1.0, 3.0)),
            "latency_ms": random.choice((None, 30.0, 80.0)),
            "priority": random.choice((0, 0, 1)),
            "prefix": random.choice(((), (("a", 40), ("b", 100)))) if prompt > 140 else (),
        }
        trace.append(one(now, prompt, random.randrange(1, 80), id=str(n), **more))
    return trace


@pytest.mark.parametrize("seed", range(4))
def test_requests_that_lose_their_pages_end_all_the_same(seed: int) -> None:
    trace = mixed(seed, spread=0.05)
    few, many = (run(trace, costs(pages=n, max_running=16)) for n in (130, 4096))
    assert few.preempted > 0 == many.preempted
    for result in (few, many):
        assert {a.request.id for a in result.answers} == {r.id for r in trace}
        assert all(a.made == a.request.answer_tokens for a in result.answers)
    ends = [sum(end for _, end in times(result).values()) for result in (few, many)]
    assert ends[0] > ends[1]


def test_what_was_answered_before_pages_were_lost_counts() -> None:
    """The second one loses its pages after some 25 of 50 tokens, and writes only the others later."""
    result = run([one(0, 16, 50, id="first"), one(0, 16, 50, id="second")], costs(pages=7))
    assert result.preempted > 0
    assert 75 * STEP < result.busy_seconds < 90 * STEP


def test_a_target_keeps_steps_short() -> None:
    quick = one(0.0, 20, 40, id="quick", latency_ms=60)
    long = [one(0.1, 4000, 5, id="long"), one(0.2, 4000, 5, id="long too")]
    beside = times(run([quick, *long], costs()))
    without = times(run([quick.model_copy(update={"latency_ms": None}), *long], costs()))
    each = [(found["quick"][1] - found["quick"][0]) / 39 for found in (beside, without)]
    assert each[0] <= 0.060 and each[1] > 1.5 * each[0]
    assert beside["long"][0] > without["long"][0]


def test_deep_rows_give_way_to_a_target_and_still_go_on() -> None:
    deep = [one(0.0, 10, 300, id=f"d{n}", mode="deep") for n in range(60)]
    quick = one(2.0, 20, 200, id="quick", latency_ms=40)
    beside = times(run([*deep, quick], costs()))
    first, end = beside["quick"]
    assert (end - first) / 199 < 0.040 < 2 * STEP + 60 * 2 * ROW
    assert len(beside) == 61 and all(end < math.inf for _, end in beside.values())


def test_more_replicas_never_take_longer_together() -> None:
    trace = mixed(3, 200, spread=0.05)
    ends = [sum(end for _, end in times(run(trace, costs(), n)).values()) for n in (1, 3, 8)]
    assert ends == sorted(ends, reverse=True) and ends[0] > 1.5 * ends[-1]


def test_a_report_tells_who_waits_and_for_how_long() -> None:
    def state(age: int, request: TracedRequest) -> AnswerState:
        return AnswerState(request, age, 1.0, 1.0)

    replica = SimulatedReplica(costs(max_running=1))
    replica.add(state(0, one(0, 10, 500)), 0.0)
    replica.add(state(1, one(1, 10, 5, mode="deep", deep=True)), 1.0)
    replica.add(state(2, one(2, 10, 50, latency_ms=5000.0)), 2.0)
    told = replica.report(4.0, 1e9)
    assert told.running == {"fast": 1} and told.waiting == {"deep": 1, "fast": 1}
    assert (told.deep, told.urgent, told.places, told.at) == (1, 1, 1, 1e9)
    assert (told.deep_queue_seconds, told.quick_queue_seconds) == (3.0, 2.0)
    assert told.queue_seconds == 3.0
    while told.waiting:
        now = replica.wakes
        replica.wake(now)
        told = replica.report(now, 1e9)
    assert told.running == {"deep": 1}, "the one with a target went first"
    assert (told.deep_queue_seconds, told.quick_queue_seconds) == (0.0, 0.0)
    assert told.queue_seconds == pytest.approx(now - 1.0), "how long the latest waited"
