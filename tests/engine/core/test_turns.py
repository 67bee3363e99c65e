"""Whose turn it is: priorities and fair shares. Nobody waits for ever, and no token depends on it."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from schedule_tools import added, request, run, scheduler

from fastslow import LLM, SamplingParams
from fastslow.engine.core.latency_budget import PATIENCE
from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import OVERTAKEN


def test_the_most_urgent_starts_first_behind_targets_and_decoding() -> None:
    step = scheduler(running=1)
    for number, priority in enumerate((5, 0, -3, 0, -3)):
        step.add(request(number, 1, priority=priority))
    started = []
    for _ in range(5):
        [(one, _)] = step.next()
        started.append(one.id)
        step.remove(one)
    assert started == [2, 4, 1, 3, 0]
    step = scheduler(rows=20)
    step.add(request(0, prompt=100))
    step.add(request(1, prompt=1))
    assert run(step) == {0: 20}
    step.add(request(2, prompt=30, priority=-1))
    assert run(step) == {2: 20} and run(step) == {2: 10, 0: 10}
    assert run(step) == {2: 1, 0: 19}, "it decodes"
    step = scheduler(rows=20)
    step.add(request(0, prompt=2, priority=9))
    assert run(step) == {0: 2}
    step.add(request(1, prompt=100, priority=-9))
    assert run(step) == {0: 1, 1: 19}
    step = scheduler(running=1)
    step.add(request(0, 1, priority=-1000))
    step.add(request(1, 30, priority=1000, latency_target=1.0))
    assert [item.request.id for item in step.next()] == [1]


def test_the_least_urgent_gives_its_pages_and_of_equals_the_youngest() -> None:
    step = scheduler(pages=4)  # of four tokens each
    urgent, low, young = every = [request(n, 4, priority=p) for n, p in enumerate((0, 3, 0))]
    for one in every:
        step.add(one)
    assert set(run(step)) == {0, 1, 2}
    run(step)  # the fifth token of each wants a page, and one is left
    assert low in step.waiting and step.running == [urgent, young]
    for _ in range(4):
        run(step)
    assert young in step.waiting and step.running == [urgent]
    assert [one.spec_stats.preemptions for one in every] == [0, 1, 1]


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


def test_a_request_that_is_let_in_again_in_the_same_step_takes_its_rows_once() -> None:
    step = scheduler(rows=40, pages=40)  # of four tokens each
    added(step, [11], prompt=38, room=1, priority=-1)
    [oldest] = added(step, [0], prompt=12, priority=9)
    assert run(step) == {11: 38, 0: 2}
    [less] = added(step, [1], prompt=100, priority=8)
    assert run(step) == {1: 40}
    added(step, [2], prompt=92)
    assert run(step) == run(step) == {2: 40}
    step._kv.open(99, [1] * 40, 0, 0)
    assert step._kv.reserve(99, 4 * (step._kv.free_pages - 1))
    step._overtakes = OVERTAKEN  # so that the oldest of those that wait is the most urgent
    assert run(step) == {2: 12, 0: 12} and step._left == 40 - 24
    assert [one.spec_stats.preemptions for one in (oldest, less)] == [1, 1]


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


@pytest.mark.parametrize(("first", "others"), [
    ({"priority": 10}, lambda number: {"priority": -10}),
    ({"share": "greedy"}, lambda number: {"share": f"modest {number % 20}"}),
    ({"share": "greedy"}, lambda number: {"share": f"modest {number}"}),
])  # fmt: skip
def test_nobody_waits_for_ever_beside_an_endless_stream(
    first: dict[str, Any], others: Callable[[int], dict[str, Any]]
) -> None:
    step = scheduler(rows=16, running=2, pages=16)
    waits = added(step, range(6), prompt=20, **first)
    numbers = itertools.count(100)
    for _ in range(2000):
        while len(step.waiting) < 30:
            number = next(numbers)
            added(step, [number], prompt=20, room=4, **others(number))
        run(step)
        if not any(one in step.running or one in step.waiting for one in waits):
            return
    pytest.fail("they wait for ever")


def test_a_full_step_makes_room_for_who_has_nothing() -> None:
    step = scheduler()
    greedy = added(step, range(30), share="greedy", room=50)
    run(step)
    assert len(step.running) == 8
    added(step, [30], share="modest", room=2)
    assert list(run(step)) == [0, 1, 2, 3, 30], "each share has its half of the places"
    assert greedy[7] in step.waiting and greedy[7].spec_stats.preemptions == 1
    assert greedy[4:7] == step.running[4:7], "the others keep their pages meanwhile"
    run(step)
    assert list(run(step)) == [0, 1, 2, 3, 4, 5, 6, 7], "alone again it has all places"


def test_none_has_more_than_all_others_together_or_its_equal_part() -> None:
    step = scheduler(running=20)
    added(step, range(100), share="greedy", room=50)
    for number in range(100, 108):
        added(step, [number], share=f"modest {number}", room=50)
    rows = run(step)
    assert sum(number < 100 for number in rows) == 8 and len(rows) == 16
    added(step, range(200, 300), share="as greedy", room=50)
    rows = run(step)
    assert sum(number < 100 for number in rows) == 6
    assert sum(number >= 200 for number in rows) == 6 and len(rows) == 20


@pytest.mark.parametrize("share", [None, "only"])
def test_one_share_runs_as_without_any(share: str | None) -> None:
    step = scheduler()
    added(step, range(12), share=share)
    assert list(run(step)) == list(run(step)) == list(range(8))


def test_shares_that_have_nothing_start_and_read_in_turns() -> None:
    step = scheduler(running=1)
    added(step, range(5), share="greedy", room=1)
    started = list(run(step))
    added(step, range(10, 12), share="a", room=1)
    added(step, range(20, 22), share="b", room=1)
    while step.waiting:
        started += run(step)
    assert started == [0, 1, 10, 20, 2, 11, 21, 3, 4]
    step = scheduler(rows=40)
    added(step, range(3), share="greedy", prompt=100)
    assert run(step) == {0: 40}
    added(step, range(3, 5), share="modest", prompt=30)
    found = [run(step) for _ in range(3)]
    assert found[0] == {0: 20, 3: 20}, "an equal part for each share"
    assert found[1:] == [{0: 20, 1: 10, 3: 10}, {0: 19, 1: 16, 3: 1, 4: 4}], "and what is left"


@pytest.mark.parametrize("wish", [{"priority": -1000}, {"latency_target": 0.001}])
def test_shares_go_first_and_urgency_counts_within_a_share(wish: dict[str, Any]) -> None:
    step = scheduler()
    added(step, range(30), share="greedy", room=50, **wish)
    run(step)
    added(step, [30], share="modest", priority=9)
    assert list(run(step)) == [0, 1, 2, 3, 30], "each share has its half of the places"
    added(step, [31, 32], share="modest", priority=-1)
    assert list(run(step)) == [0, 1, 2, 3, 30, 31, 32]
    [late] = added(step, [33], share="modest")
    [urgent] = added(step, [34], share="modest", priority=-5)
    run(step)
    assert urgent in step.running and late in step.waiting


def test_a_step_after_the_last_request_of_several_shares_is_empty() -> None:
    """As where a step begins by ending one whose time is over."""
    step = scheduler()
    for number, share in enumerate(("one", "other")):
        added(step, [number], share=share, room=1)
    assert list(run(step)) == [0, 1] and run(step) == {}


def test_prompts_of_an_urgent_share_are_read_in_turns() -> None:
    step = scheduler(rows=40)
    added(step, range(3), share="greedy", prompt=60, priority=-1000)
    assert run(step) == {0: 40}
    added(step, [3], share="modest", prompt=20)
    assert [run(step) for _ in range(2)] == [{0: 20, 3: 20}, {0: 1, 1: 38, 3: 1}]


def test_where_pages_run_out_the_largest_share_gives_way() -> None:
    step = scheduler(running=4, pages=6)  # of four tokens each
    greedy = added(step, range(2), share="greedy", prompt=7)
    [modest] = added(step, [2], share="modest", prompt=3)
    assert list(run(step)) == [0, 1, 2]
    for _ in range(3):
        run(step)
    assert modest.spec_stats.preemptions == 0 and greedy[1] in step.waiting
    assert greedy[0] in step.running and modest in step.running


def seconds_of_modest(places: int, greedy: bool) -> list[float]:
    """Seconds that each request takes of 20 clients with one at a time, beside a client with 256 or alone; sorted.
    A step takes a second, and a twentieth more for each row."""
    step, clock, took = scheduler(running=places, pages=2000), 0.0, list[float]()
    numbers, greedy_ones = itertools.count(), list[Request]()
    asks = {f"modest {n}": 0.7 * n for n in range(20)}  # when each asks next
    asked: dict[str, tuple[Request, float]] = {}
    while len(took) < 80:
        alive = {*step.running, *step.waiting}
        greedy_ones = [one for one in greedy_ones if one in alive]
        for share in [share for share, (one, _) in asked.items() if one not in alive]:
            took.append(clock - asked.pop(share)[1])
            asks[share] = clock + 2
        if greedy:
            greedy_ones += added(step, itertools.islice(numbers, 256 - len(greedy_ones)), share="greedy", room=60)
        for share in [share for share, at in asks.items() if at <= clock]:
            [one] = added(step, [next(numbers)], share=share)
            asked[share] = one, asks.pop(share)
        clock += 1 + sum(run(step).values()) / 20
    return sorted(took)


@pytest.mark.parametrize("places", [64, 16, 2])
def test_twenty_modest_clients_are_not_held_up_by_a_greedy_one(places: int) -> None:
    alone, beside = (seconds_of_modest(places, greedy) for greedy in (False, True))
    assert beside[int(0.95 * len(beside))] <= 2 * alone[int(0.95 * len(alone))]


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, kv_memory="256KiB", max_running=4, prompt_rows=48, progress=False) as llm:
        yield llm


@pytest.mark.drafts(20, 3, nodes=2)
@pytest.mark.parametrize("wish", ["off", "ngram", "self"])
def test_no_token_depends_on_priorities_and_shares(llm: LLM, wish: str) -> None:
    params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.7, seed=3)
    prompts = [[5 + n] * (3 + 50 * (n % 2)) for n in range(9)]
    priorities = [3, -1, 0, 7, -1000, 1000, 0, 0, 2]
    shares = [*["greedy"] * 6, "a", "b", None]
    alone = [llm.generate(p, params, speculation=wish) for p in prompts]
    mixed = [
        llm.submit(prompt, params, speculation=wish, priority=priority, share=share)
        for prompt, priority, share in zip(prompts, priorities, shares)
    ]
    assert [one.result().token_ids for one in mixed] == [o.token_ids for o in alone]


@pytest.mark.parametrize("wrong", [1001, -1001, 1.0, True, "high", None])
def test_a_priority_is_a_number_in_a_range(llm: LLM, wrong: Any) -> None:
    for ask in (llm.generate, llm.stream, llm.submit):
        refused(
            "^priority=.* must be (a valid integer|greater than or equal to -1000|less than or equal to 1000)$",
            ask,
            "one",
            priority=wrong,
        )


def test_a_share_is_a_short_text(llm: LLM) -> None:
    refused("^share='' must have at least 1 character", llm.generate, "one", share="")
