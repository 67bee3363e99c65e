"""A simulated replica: hand-computed times, queues in closed form, and jumps beside a plain step-by-step loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from fastslow.tools.simulate.answer import AnswerState
from fastslow.tools.simulate.cluster import ClusterResult, SimulatedCluster
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts
from fastslow.tools.simulate.replica import SimulatedReplica
from fastslow.tools.simulate.settings import ClusterSettings
from fastslow.tools.simulate.trace import TracedRequest

STEP, ROW = 0.010, 0.0005  # seconds of a step, and of each row in it


def line(first: float = STEP, row: float = ROW) -> ModeSteps:
    return ModeSteps((1, 1024), (first + row, first + 1024 * row))


def costs(**more: object) -> ReplicaCosts:
    given = {"modes": {"fast": line(), "deep": line(2 * STEP, 2 * ROW)}, "pages": 4096} | more
    return ReplicaCosts(**given)  # type: ignore[arg-type]


def one(arrival: float, prompt: int, answer: int, **more: object) -> TracedRequest:
    given = {"mode": "fast", "id": f"{arrival}/{prompt}"} | more
    return TracedRequest(arrival, prompt_tokens=prompt, answer_tokens=answer, **given)  # type: ignore[arg-type]


def run(
    trace: Sequence[TracedRequest], machine: ReplicaCosts, replicas: int = 1, **more: object
) -> ClusterResult:
    most = more.pop("most_steps", 10**9)
    settings = ClusterSettings(replicas, **more)  # type: ignore[arg-type]
    return SimulatedCluster(trace, machine, settings, most_steps=most).run()  # type: ignore[arg-type]


def times(result: ClusterResult) -> dict[str, tuple[float, float]]:
    return {
        a.request.id: (a.first or 0.0, end)
        for a, end in zip(result.answers, result.ends, strict=True)
    }


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


def test_steps_are_slowed_one_by_one_also_within_a_long_answer() -> None:
    """Alone its steps are one jump; a prompt of another replica is read in the middle of it."""
    long, other = one(0, 1, 200), one(0.5, 400, 1)
    alone = times(run([long], costs()))["0/1"][1]
    found = times(run([long, other], costs(slowdown=(1.5,)), 2, router="pow2", machine_replicas=2))
    reading = 1.5 * (STEP + 400 * ROW)
    assert found["0.5/400"][1] == pytest.approx(0.5 + reading)
    assert found["0/1"][1] == pytest.approx(alone + reading / 3, abs=STEP)


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


def test_pages_of_old_texts_go_first_from_their_ends() -> None:
    machine = costs(pages=48)  # two of the prompts, and some
    trace = [one(float(n), 320, 1, id=str(n), prefix=((f"p{n}", 304),)) for n in range(3)]
    again = [replace(r, arrival=r.arrival + 10, id=f"{r.id}'") for r in (trace[2], trace[1])]
    late = [replace(trace[0], arrival=20.0, id="0'")]
    result = run([*trace, *again, *late], machine)
    found = {a.request.id: a.cached for a in result.answers}
    assert found["2'"] == found["1'"] == 304
    assert found["0'"] is not None and found["0'"] < 304


@pytest.mark.parametrize("seed", range(2))
def test_the_queue_is_that_of_one_server_in_closed_form(seed: int) -> None:
    """One at a time with equal lengths and Poisson arrivals: M/D/1, whose mean wait is rho D / 2 (1 - rho)."""
    random, now, trace = Random(seed), 0.0, []
    service, busy = STEP + ROW + 9 * (STEP + ROW), 0.7
    for n in range(12_000):
        now += random.expovariate(busy / service)
        trace.append(one(now, 1, 10, id=str(n)))
    result = run(trace, costs(max_running=1, prompt_rows=1))
    waits = [(a.started or 0.0) - a.request.arrival for a in result.answers]
    assert sum(waits) / len(waits) == pytest.approx(busy * service / 2 / (1 - busy), rel=0.1)
    # Little's law: those in the system are the arrivals a second times the seconds each is there
    there = [end - a.request.arrival for a, end in zip(result.answers, result.ends)]
    events = sorted([(r.arrival, 1) for r in trace] + [(end, -1) for end in result.ends])
    area, level, last = 0.0, 0, 0.0
    for time, change in events:
        area, level, last = area + level * (time - last), level + change, time
    assert area == pytest.approx(sum(there), rel=1e-9)
    assert result.busy_seconds == pytest.approx(service * len(trace), rel=1e-9)


def test_behind_the_last_arrival_only_steps_count() -> None:
    """Two replicas; the last request comes in the middle of the one before, and both go on."""
    trace = [one(0, 10, 3), one(10, 100, 21), one(10.1, 100, 5)]
    steps = [STEP + 100 * ROW + n * (STEP + ROW) for n in (20, 4)]
    result = run(trace, costs(), 2, router="pow2")
    assert result.seconds > 10.1 + 0.1
    left = steps[0] - 0.1 + steps[1]
    assert result.replica_seconds == pytest.approx(2 * 10.1 + left)


# Jumps


def plain_loop(
    trace: Sequence[TracedRequest], machine: ReplicaCosts
) -> dict[str, tuple[float, float]]:
    """One replica without targets, priorities and shared text, one step after the other over plain lists."""
    waiting = sorted(trace, key=lambda r: r.arrival)
    running: list[list[object]] = []  # request, tokens to read, tokens made, steps decoded
    now, found, firsts = 0.0, {}, {}
    while waiting or running:
        if not running and waiting[0].arrival > now:
            now = waiting[0].arrival
        while waiting and waiting[0].arrival <= now and len(running) < machine.max_running:
            left = machine.prompt_rows - sum(1 for r in running if not r[1])
            left -= sum(int(r[1]) for r in running)  # type: ignore[call-overload]
            if left <= 0:
                break
            running.append([waiting[0], waiting.pop(0).prompt_tokens, 0, 0])
        left = machine.prompt_rows - sum(1 for r in running if not r[1])
        decode: dict[str, float] = {}
        prompt: dict[str, float] = {}
        extra, chunks = 0.0, []
        for entry in running:
            request, unread, made, _ = entry
            assert isinstance(request, TracedRequest) and isinstance(unread, int)
            if not unread:
                rows = request.rows_per_step or 1.0
                decode[request.mode] = decode.get(request.mode, 0.0) + rows
                extra += machine.context_seconds * (request.prompt_tokens + float(made))  # type: ignore[arg-type]
                continue
            chunk = min(unread, left)
            left -= chunk
            chunks.append(chunk)
            if chunk:
                read = request.prompt_tokens - unread
                prompt[request.mode] = prompt.get(request.mode, 0.0) + chunk
                extra += machine.attention_seconds * chunk * (read + chunk / 2)
        now += machine.step(decode, prompt) + extra
        going, place = [], 0
        for entry in running:
            request, unread, made, steps = entry
            assert isinstance(request, TracedRequest) and isinstance(steps, int)
            rate = request.tokens_per_step or 1.0
            if unread:
                entry[1] = int(unread) - chunks[place]  # type: ignore[call-overload]
                place += 1
                if entry[1]:
                    going.append(entry)
                    continue
                firsts[request.id], entry[2] = now, 1.0
            else:
                entry[2], entry[3] = 1 + rate * (steps + 1), steps + 1
            if entry[2] < request.answer_tokens - 1e-9:  # type: ignore[operator]
                going.append(entry)
            else:
                found[request.id] = firsts[request.id], now
        running = going
    return found


def mixed(seed: int, count: int = 60, spread: float = 0.4, **more: object) -> list[TracedRequest]:
    random, now, trace = Random(seed), 0.0, []
    for n in range(count):
        now += random.expovariate(1 / spread)
        trace.append(
            one(
                now,
                random.randrange(1, 1500),
                random.randrange(1, 80),
                id=str(n),
                mode=random.choice(("fast", "deep")),
                tokens_per_step=random.choice((1.0, 1.5, 2.25)),
                rows_per_step=random.choice((1.0, 3.0)),
                **more,
            )
        )
    return trace


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spread", [0.02, 0.2, 1.5])
def test_jumps_are_what_single_steps_give(seed: int, spread: float) -> None:
    machine = costs(
        pages=10**6, max_running=6, context_seconds=2e-6, attention_seconds=1e-8, prompt_rows=512
    )
    trace = mixed(seed, spread=spread)
    jumped, single = times(run(trace, machine)), times(run(trace, machine, most_steps=1))
    plain = plain_loop(trace, machine)
    assert jumped.keys() == single.keys() == plain.keys() == {r.id for r in trace}
    for id, (first, end) in plain.items():
        assert jumped[id] == pytest.approx((first, end), rel=1e-9)
        assert single[id] == pytest.approx((first, end), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_jumps_are_single_steps_with_targets_and_few_pages(seed: int) -> None:
    """Here the batch has two kinds of requests, short steps and requests that lose their pages."""
    machine = costs(pages=200, max_running=16, context_seconds=2e-6)
    random = Random(seed + 10)
    trace = [
        replace(
            r,
            latency_ms=random.choice((None, 30.0, 80.0)),
            priority=random.choice((0, 0, 1)),
            prefix=random.choice(((), (("a", 40), ("b", 100)))) if r.prompt_tokens > 140 else (),
        )
        for r in mixed(seed + 10, spread=0.05)
    ]
    jumps, single = run(trace, machine), run(trace, machine, most_steps=1)
    assert jumps.preempted == single.preempted
    assert len(jumps.answers) == len(trace) == len({a.request.id for a in jumps.answers})
    ours, theirs = times(jumps), times(single)
    for id, found in ours.items():
        assert found == pytest.approx(theirs[id], rel=1e-9)


def test_a_target_keeps_steps_short() -> None:
    quick = one(0.0, 20, 40, id="quick", latency_ms=60)
    long = [one(0.1, 4000, 5, id="long"), one(0.2, 4000, 5, id="long too")]
    beside = times(run([quick, *long], costs()))
    without = times(run([replace(quick, latency_ms=None), *long], costs()))
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


def test_an_overtaken_request_is_not_left_for_ever() -> None:
    machine = costs(max_running=1)
    low = one(0.01, 10, 20, id="low", priority=5)
    trace = [one(0.0, 10, 20, id="x"), low]
    trace += [one(0.02 + n / 100, 10, 20, id=str(n)) for n in range(40)]
    order = [a.request.id for a in run(trace, machine).answers]
    assert order.index("low") == 9  # the one that ran, then eight that overtook it


def test_more_replicas_never_take_longer_together() -> None:
    trace = mixed(3, 400, spread=0.05)
    ends = [sum(end for _, end in times(run(trace, costs(), n)).values()) for n in (1, 2, 4, 8)]
    assert ends == sorted(ends, reverse=True) and ends[0] > 1.5 * ends[-1]


def test_a_report_tells_who_waits_and_for_how_long() -> None:
    def state(age: int, request: TracedRequest) -> AnswerState:
        return AnswerState(request, age, 1.0, 1.0)

    replica = SimulatedReplica("r", costs(max_running=1))
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
