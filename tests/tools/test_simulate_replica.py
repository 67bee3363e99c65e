"""Simulated replicas: hand-computed times, queues in closed form, prefixes, pages, and the real router."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.tools.simulate.cluster import SimulatedCluster, prompt_text
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.replica import AnswerState, SimulatedReplica
from fastslow.tools.simulate.trace import TracedRequest

STEP, ROW = 0.010, 0.0005  # seconds of a step, and of each row in it


def line(first: float = STEP, row: float = ROW) -> ModeSteps:
    return ModeSteps(rows=(1, 1024), seconds=(first + row, first + 1024 * row))


def costs(**more: Any) -> ReplicaCosts:
    given: dict[str, Any] = {"modes": {"fast": line(), "deep": line(2 * STEP, 2 * ROW)}, "pages": 4096} | more
    return ReplicaCosts(**given)


def one(arrival: float, prompt: int, answer: int, **more: Any) -> TracedRequest:
    given: dict[str, Any] = {"mode": "fast", "id": f"{arrival}/{prompt}"} | more
    return TracedRequest(arrival=arrival, prompt_tokens=prompt, answer_tokens=answer, **given)


def run(trace: Sequence[TracedRequest], machine: ReplicaCosts, *more: int) -> list[AnswerState]:
    return SimulatedCluster(trace, machine, *(more or (1,))).run()


def times(answers: list[AnswerState]) -> dict[str, tuple[float, float]]:
    return {a.request.id: (a.first, a.end) for a in answers}


def test_one_request_takes_what_its_steps_take() -> None:
    request = one(5.0, 700, 11, tokens_per_step=2.0, rows_per_step=3.0)
    machine = costs(context_seconds=1e-6, attention_seconds=1e-8, first_seconds=0.25)
    ((first, end),) = times(run([request], machine)).values()
    # two chunks of its prompt, of which the second gives a token; then five steps of two tokens
    reading = 2 * STEP + 700 * ROW + 1e-8 * (512 * 256 + 188 * (512 + 94))
    steps = [STEP + 3 * ROW + 1e-6 * (701 + 2 * n) for n in range(5)]
    assert first == pytest.approx(5.25 + reading, rel=1e-12)
    assert end == pytest.approx(5.25 + reading + sum(steps), rel=1e-12)


def test_a_cached_prefix_is_not_read_again_until_old_texts_go() -> None:
    prefix = (("system", 330),)
    trace = [one(9.0 * n, 400 + n, 1, prefix=prefix) for n in range(2)]
    trace.append(one(18, 402, 1, prefix=prefix, mode="deep"))
    result = run(trace, costs())
    assert [a.cached for a in result] == [0, 320, 0]  # whole pages
    first, _ = times(result)["9.0/401"]
    assert first == pytest.approx(9 + STEP + 81 * ROW)
    asked = one(0, 100, 60, id="turn-1")
    assert run([asked, one(9, 200, 1, id="turn-2", prefix=(("turn-1", 160),))], costs())[1].cached == 160
    machine = costs(pages=48)  # two of the prompts, and some
    trace = [one(float(n), 320, 1, id=str(n), prefix=((f"p{n}", 304),)) for n in range(3)]
    for at, old in ((10.0, trace[2]), (11.0, trace[1]), (20.0, trace[0])):
        trace.append(old.model_copy(update={"arrival": at, "id": f"{old.id}'"}))
    found = {a.request.id: a.cached for a in run(trace, machine)}
    assert found["2'"] == found["1'"] == 304 and found["0'"] < 304


def test_the_queue_is_that_of_one_server_in_closed_form_until_the_last_arrival() -> None:
    """Equal lengths, one at a time, with Poisson arrivals: M/D/1, whose mean wait is rho D / 2 (1 - rho)."""
    random, now, trace = Random(1), 0.0, []
    service, busy = 4 * (STEP + ROW), 0.6
    for n in range(3_000):
        now += random.expovariate(busy / service)
        trace.append(one(now, 1, 4, id=str(n)))
    answers = run(trace, costs(max_running=1, prompt_rows=1))
    waits = [a.first_after - STEP - ROW for a in answers]
    assert sum(waits) / len(waits) == pytest.approx(busy * service / 2 / (1 - busy), rel=0.15)
    cluster = SimulatedCluster([one(0, 10, 3), one(10, 100, 21)], costs(), 2)
    cluster.run()
    last = STEP + 100 * ROW + 20 * (STEP + ROW)
    assert cluster.replica_seconds == pytest.approx(2 * 10 + last)


def test_a_target_keeps_steps_short() -> None:
    quick = one(0.0, 20, 40, id="quick", latency_ms=60)
    long = [one(0.1, 4000, 5, id="long"), one(0.2, 4000, 5, id="long too")]
    beside = times(run([quick, *long], costs()))
    without = times(run([quick.model_copy(update={"latency_ms": None}), *long], costs()))
    each = [(found["quick"][1] - found["quick"][0]) / 39 for found in (beside, without)]
    assert each[0] <= 0.060 and each[1] > 1.5 * each[0] and beside["long"][0] > without["long"][0]


def mixed(seed: int) -> list[TracedRequest]:
    random, now, trace = Random(seed), 0.0, []
    for n in range(100):
        now += random.expovariate(20)
        prompt = random.randrange(1, 1500)
        more: dict[str, Any] = {
            "mode": random.choice(("fast", "deep")),
            "tokens_per_step": random.choice((1.0, 1.5, 2.25)),
            "latency_ms": random.choice((None, 80.0)),
            "prefix": random.choice(((), (("a", 40), ("b", 100)))) if prompt > 140 else (),
        }
        trace.append(one(now, prompt, random.randrange(1, 80), id=str(n), **more))
    return trace


def test_a_prompt_waits_until_there_is_room_for_it() -> None:
    found = times(run([one(0, 320, 50, id="a"), one(0.001, 600, 1, id="b")], costs(pages=48)))
    assert found["b"][0] > found["a"][1]


def test_a_report_says_who_waits_and_for_how_long() -> None:
    def state(age: int, request: TracedRequest) -> AnswerState:
        return AnswerState(request, age, 1.0, 1.0)

    replica = SimulatedReplica(costs(max_running=1))
    replica.add(state(0, one(0, 10, 500)), 0.0)
    replica.add(state(1, one(1, 10, 5, mode="deep", deep=True)), 1.0)
    replica.add(state(2, one(2, 10, 50, latency_ms=5000.0)), 2.0)
    said = replica.report(4.0, 1e9)
    assert said.running == {"fast": 1} and said.waiting == {"deep": 1, "fast": 1}
    assert (said.deep, said.urgent, said.places, said.at) == (1, 1, 1, 1e9)
    assert (said.deep_queue_seconds, said.quick_queue_seconds) == (3.0, 2.0) and said.queue_seconds == 3.0
    while said.waiting:
        now = replica.wakes
        replica.wake(now)
        said = replica.report(now, 1e9)
    assert said.running == {"deep": 1}, "the one with a target went first"
    assert (said.deep_queue_seconds, said.quick_queue_seconds) == (0.0, 0.0)
    assert said.queue_seconds == pytest.approx(now - 1.0), "how long the latest waited"


@pytest.mark.parametrize(("pages", "replicas"), [(130, 1), (4096, 1), (4096, 4)])
def test_every_request_ends_once_and_the_same_each_time(pages: int, replicas: int) -> None:
    trace, machine = mixed(0), costs(first_seconds=0.01, pages=pages, max_running=16)
    answers, again = (run(trace, machine, replicas) for _ in range(2))
    assert Counter(a.request.id for a in answers) == Counter(r.id for r in trace)
    for answer in answers:
        assert answer.made == answer.request.answer_tokens
        assert answer.request.arrival < answer.first <= answer.end
    assert [(a.request.id, a.end) for a in answers] == [(a.request.id, a.end) for a in again]


def test_the_real_router_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go where the chooser ranks first, and it hears of all that happens."""
    seen: Counter[str] = Counter()

    class Watched(ReplicaChooser):
        def rank(self, request: RoutedRequest) -> list[str]:
            return sorted(super().rank(request), reverse=True)  # always the same one

        def routed(self, request: RoutedRequest, id: str) -> None:
            seen[id] += 1
            super().routed(request, id)

        def report(self, id: str, report: Any) -> None:
            seen["report"] += 1
            super().report(id, report)

        def ended(self, request_id: str) -> None:
            seen["ended"] += 1
            super().ended(request_id)

    monkeypatch.setattr("fastslow.tools.simulate.cluster.ReplicaChooser", Watched)
    answers = run(mixed(0), costs(), 3)
    assert seen["replica-2"] == len(answers) == 100 and seen["ended"] >= 100 and "replica-1" not in seen
    assert seen["report"] >= 2.5 * max(a.end for a in answers)


def test_text_for_the_router_is_shared_as_far_as_the_pieces_are() -> None:
    def asked(id: str, *pieces: tuple[str, int], tokens: int = 400) -> str:
        return prompt_text(one(0, tokens, 1, id=id, prefix=pieces))

    first, second = asked("1", ("system", 100), ("a", 50)), asked("2", ("system", 100), ("b", 50))
    shared = next(n for n, (a, b) in enumerate(zip(first, second)) if a != b)
    assert 400 <= shared < 410 and len(first) == 1600 and len(asked("3", tokens=100_000)) == 65_536
