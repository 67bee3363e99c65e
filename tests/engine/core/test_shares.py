"""Fair shares: a caller with many requests holds up nobody, and no token depends on it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from schedule_tools import request, run, small_cache

from fastslow import LLM, SamplingParams
from fastslow.engine.core.latency_budget import LatencyBudget, RunEverything
from fastslow.engine.core.request import Request
from fastslow.engine.core.scheduler import Scheduler


def scheduler(running: int = 8, rows: int = 512, pages: int = 400) -> Scheduler:
    return Scheduler(small_cache(pages), rows, running, LatencyBudget(RunEverything()))


def added(step: Scheduler, numbers: range, share: str | None, **fields: Any) -> list[Request]:
    made = [request(number, share=share, **fields) for number in numbers]
    for one in made:
        step.add(one)
    return made


def test_a_full_step_makes_room_for_who_has_nothing() -> None:
    step = scheduler()
    greedy = added(step, range(30), "greedy", room=50)
    run(step)
    assert len(step.running) == 8
    added(step, range(30, 31), "modest", room=2)
    rows = run(step)
    assert list(rows) == [0, 1, 2, 3, 30], "each share has its half of the places"
    assert greedy[7] in step.waiting and greedy[7].spec_stats.preemptions == 1
    assert greedy[4:7] == step.running[4:7], "the others keep their pages meanwhile"
    run(step)
    assert list(run(step)) == [0, 1, 2, 3, 4, 5, 6, 7], "alone again it has all places"


def test_none_has_more_than_all_others_together_or_its_equal_part() -> None:
    step = scheduler(running=20)
    added(step, range(100), "greedy", room=50)
    for number in range(100, 108):
        added(step, range(number, number + 1), f"modest {number}", room=50)
    rows = run(step)
    assert sum(number < 100 for number in rows) == 8 and len(rows) == 16
    added(step, range(200, 300), "as greedy", room=50)
    rows = run(step)
    assert sum(number < 100 for number in rows) == 6
    assert sum(number >= 200 for number in rows) == 6 and len(rows) == 20


@pytest.mark.parametrize("share", [None, "only"])
def test_one_share_runs_as_without_any(share: str | None) -> None:
    step = scheduler()
    added(step, range(12), share)
    assert list(run(step)) == list(range(8))
    assert list(run(step)) == list(range(8))


def test_shares_that_have_nothing_start_in_turns() -> None:
    step = scheduler(running=1)
    added(step, range(5), "greedy", room=1)
    started = list(run(step))
    added(step, range(10, 12), "a", room=1)
    added(step, range(20, 22), "b", room=1)
    while step.waiting:
        started += run(step)
    assert started == [0, 1, 10, 20, 2, 11, 21, 3, 4]


def test_prompts_are_read_in_turns() -> None:
    step = scheduler(rows=20)
    added(step, range(3), "greedy", prompt=100)
    assert run(step) == {0: 20}
    added(step, range(3, 5), "modest", prompt=30)
    found = [run(step) for _ in range(6)]
    assert found[:4] == [{0: 20}] * 4, "the first prompt of each share, the oldest first"
    assert found[4:] == [{0: 1, 3: 19}, {0: 1, 3: 11, 1: 8}]


def test_priorities_keep_their_meaning() -> None:
    step = scheduler()
    added(step, range(30), "greedy", room=50, priority=-1)
    run(step)
    added(step, range(30, 31), "modest", priority=0)
    assert list(run(step)) == list(range(8)), "who is less urgent takes nothing from it"
    added(step, range(31, 32), "modest", priority=-1)
    assert list(run(step)) == [0, 1, 2, 3, 31]
    urgent = added(step, range(32, 33), "greedy", priority=-5)
    run(step)
    assert urgent[0] in step.running, "its own urgent request does not wait for its others"


def test_where_pages_run_out_the_largest_share_gives_way() -> None:
    step = scheduler(running=4, pages=6)  # of four tokens each
    greedy = added(step, range(2), "greedy", prompt=7)
    [modest] = added(step, range(2, 3), "modest", prompt=3)
    assert list(run(step)) == [0, 1, 2]
    for _ in range(3):
        run(step)
    assert modest.spec_stats.preemptions == 0 and greedy[1] in step.waiting
    assert greedy[0] in step.running and modest in step.running


def seconds_of_modest(places: int, greedy: bool) -> list[float]:
    """How long each request of 20 clients takes that have one at a time, beside a client with 256 or alone.
    A step takes a second, and a twentieth more for each row."""
    step, clock, took = scheduler(places, pages=2000), 0.0, list[float]()
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
            number = next(numbers)
            missing = range(number * 1000, number * 1000 + 256 - len(greedy_ones))
            greedy_ones += added(step, missing, "greedy", room=60)
        for share in [share for share, at in asks.items() if at <= clock]:
            number = next(numbers)
            [one] = added(step, range(number * 1000, number * 1000 + 1), share)
            asked[share] = one, asks.pop(share)
        clock += 1 + sum(run(step).values()) / 20
    return sorted(took)


@pytest.mark.parametrize("places", [64, 16, 2])
def test_twenty_modest_clients_are_not_held_up_by_a_greedy_one(places: int) -> None:
    alone, beside = (seconds_of_modest(places, greedy) for greedy in (False, True))
    assert beside[int(0.95 * len(beside))] <= 2 * alone[int(0.95 * len(alone))]


@pytest.mark.parametrize("clients", [20, 10**6])
def test_a_greedy_client_is_not_starved_by_endless_modest_ones(clients: int) -> None:
    step = scheduler(running=2)
    greedy = added(step, range(6), "greedy")
    numbers = itertools.count(100)
    for _ in range(2000):
        while len(step.waiting) < 30:
            number = next(numbers)
            added(step, range(number, number + 1), f"modest {number % clients}")
        run(step)
        if not any(one in step.running or one in step.waiting for one in greedy):
            return
    pytest.fail("it waits for ever")


@pytest.mark.parametrize("wish", ["off", "ngram"])
def test_no_token_depends_on_shares(tiny_chat: Path, wish: str) -> None:
    options: dict[str, Any] = {"kv_memory": "256KiB", "max_running": 4, "prompt_rows": 48}
    with LLM(tiny_chat, progress=False, **options) as llm:
        params = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.7, seed=3)
        prompts = [[5 + n] * (3 + 50 * (n % 2)) for n in range(9)]
        shares = ["greedy"] * 6 + ["a", "b", None]
        alone = [llm.generate(p, params, speculation=wish) for p in prompts]
        mixed = [
            llm.submit(prompt, params, speculation=wish, share=share)
            for prompt, share in zip(prompts, shares)
        ]
        assert [one.result().token_ids for one in mixed] == [o.token_ids for o in alone]
        with pytest.raises(ValueError, match="^share='' must be text of 1 to 256 characters"):
            llm.generate("one", share="")
