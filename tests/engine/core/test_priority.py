"""Priorities: who starts first, whose prompt is read first, who gives way; and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schedule_tools import request, run, small_cache

from fastslow import LLM, SamplingParams
from fastslow.engine.core.latency_budget import PATIENCE, LatencyBudget, RunEverything
from fastslow.engine.core.scheduler import OVERTAKEN, Scheduler


def scheduler(rows: int = 512, running: int = 8, count: int = 200) -> Scheduler:
    return Scheduler(small_cache(count), rows, running, LatencyBudget(RunEverything()))


def test_the_most_urgent_starts_first_and_of_equals_the_oldest() -> None:
    step = scheduler(running=1)
    for number, priority in enumerate((5, 0, -3, 0, -3)):
        step.add(request(number, 1, priority=priority))
    started = []
    for _ in range(5):
        [(one, _)] = step.next()
        started.append(one.id)
        step.remove(one)
    assert started == [2, 4, 1, 3, 0]


def test_an_urgent_prompt_is_read_before_others_that_run() -> None:
    step = scheduler(rows=20)
    step.add(request(0, prompt=100))
    step.add(request(1, prompt=1))
    assert run(step) == {0: 20}
    step.add(request(2, prompt=30, priority=-1))
    assert run(step) == {2: 20}
    assert run(step) == {2: 10, 0: 10}
    assert run(step) == {2: 1, 0: 19}, "it decodes"


def test_decoding_goes_before_reading_whatever_its_priority() -> None:
    step = scheduler(rows=20)
    step.add(request(0, prompt=2, priority=9))
    assert run(step) == {0: 2}
    step.add(request(1, prompt=100, priority=-9))
    assert run(step) == {0: 1, 1: 19}


def test_a_target_goes_before_priorities() -> None:
    step = scheduler(running=1)
    step.add(request(0, 1, priority=-1000))
    step.add(request(1, 30, priority=1000, latency_target=1.0))
    assert [item.request.id for item in step.next()] == [1]


def test_the_least_urgent_gives_its_pages_and_of_equals_the_youngest() -> None:
    step = scheduler(count=4)  # of four tokens each
    urgent, low, young = (request(n, 4, priority=p) for n, p in enumerate((0, 3, 0)))
    for one in (urgent, low, young):
        step.add(one)
    assert set(run(step)) == {0, 1, 2}
    run(step)  # the fifth token of each wants a page, and one is left
    assert low in step.waiting and step.running == [urgent, young]
    for _ in range(4):
        run(step)
    assert young in step.waiting and step.running == [urgent]
    assert (
        low.spec_stats.preemptions,
        young.spec_stats.preemptions,
        urgent.spec_stats.preemptions,
    ) == (1, 1, 0)


def test_the_oldest_starts_after_so_many_that_are_more_urgent() -> None:
    step = scheduler(running=1)
    step.add(request(0, 1, priority=1000))
    started = []
    for number in range(1, 2 * OVERTAKEN):
        step.add(request(number, 1, priority=-1000))
        [(one, _)] = step.next()
        started.append(one.id)
        step.remove(one)
    assert started.index(0) == OVERTAKEN, "and it gives way to nobody from then on"


def test_a_prompt_that_is_read_gets_a_turn_beside_urgent_ones() -> None:
    step = scheduler(rows=80)
    step.add(request(0, prompt=100, priority=5))
    run(step)
    rows = []
    for number in range(1, 3 * (PATIENCE + 1)):
        step.add(request(number, prompt=100, priority=-5, room=1))
        rows.append(run(step).get(0, 0))
    assert sum(rows) >= 20 and max(rows) <= 20, "a quarter of the step, so that others go on"
    assert rows.index(20) <= PATIENCE


def test_low_priority_ends_under_an_endless_stream_of_urgent_requests() -> None:
    step = scheduler(rows=16, running=2, count=16)
    low = [request(n, prompt=20, priority=10) for n in range(3)]
    for one in low:
        step.add(one)
    for number in range(3, 1000):
        if len(step.waiting) < 6:
            step.add(request(number, prompt=20, priority=-10, room=4))
        run(step)
        if not any(one in step.running or one in step.waiting for one in low):
            return
    pytest.fail("they wait for ever")


# In an LLM


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, kv_memory="256KiB", max_running=4, prompt_rows=48, progress=False) as llm:
        yield llm


@pytest.mark.parametrize("wish", ["off", "ngram", "self"])
def test_no_token_depends_on_priorities(llm: LLM, wish: str) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.7, seed=3)
    prompts = [[5 + n] * (3 + 50 * (n % 2)) for n in range(8)]
    alone = [llm.generate(p, params, speculation=wish) for p in prompts]
    mixed = llm.generate(
        prompts, params, speculation=wish, priority=[3, -1, 0, 7, -1000, 1000, 0, 2], progress=False
    )
    assert [o.token_ids for o in mixed] == [o.token_ids for o in alone]


@pytest.mark.parametrize("wrong", [1001, -1001, 1.0, True, "high", None])
def test_a_priority_is_a_number_in_a_range(llm: LLM, wrong: Any) -> None:
    said = "^priority=.* must be a whole number from -1000 to 1000$"
    for ask in (llm.generate, llm.stream, llm.submit):
        with pytest.raises(ValueError, match=said):
            ask("one", priority=wrong)
