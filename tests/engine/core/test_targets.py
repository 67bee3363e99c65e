"""Latency targets: who runs when, how much of a step others get, and that nobody starves."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schedule_tools import added, request, run, scheduler

from fastslow import LLM, Escalation, Mode, SamplingParams
from fastslow.engine.core.latency_budget import LATER, LEAST, PATIENCE, SHARE, WIDEST, LatencyBudget, RunEverything
from fastslow.engine.core.request import EscalationState
from fastslow.engine.core.request_parts import KVHistory
from fastslow.engine.sampling.confidence import Confidence


class Linear(RunEverything):
    """A step takes `fixed` and as much for each row, times more with more groups."""

    def __init__(self, fixed: float = 0.0, draft: float | None = None) -> None:
        self.fixed, self.draft = fixed, draft

    def seconds(self, groups: int | None, rows: int) -> float:
        return self.fixed + rows * (1.0 if groups is None else 0.5)

    def draft_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        return self.draft


def test_a_prompt_with_a_target_is_read_first_and_whole_and_others_bring_what_is_left() -> None:
    step = scheduler(rows=60, budget=LatencyBudget(Linear()))
    step.add(request(0, prompt=200))
    assert run(step) == {0: 60}
    step.add(request(1, prompt=50, latency_target=40.0))
    found = run(step)
    assert found[1] == 50 and found.get(0, 0) == 0
    assert run(step) == {0: 29, 1: 1}, "29 + 1 rows take 30, three quarters of 40"
    step = scheduler(budget=LatencyBudget(Linear()))
    step.add(request(0, prompt=1, latency_target=40.0))
    step.add(request(1, prompt=1, latency_target=16.0))
    step.add(request(2, prompt=90))
    assert run(step) == {0: 1, 1: 1, 2: int(16 * SHARE) - 2}


@pytest.mark.parametrize(("target", "chunks"), [(136.0, (LEAST, 30 - LEAST)), (134.0, (30, 1))])
def test_a_target_of_one_share_skips_no_other(target: float, chunks: Sequence[int]) -> None:
    """And one that no step keeps does not even cut what others read: a step of one row takes 101 of 100.5."""
    step = scheduler(budget=LatencyBudget(Linear(fixed=100.0)))
    step.add(request(0, prompt=1, room=99, share="greedy", latency_target=target))
    step.add(request(1, prompt=30, share="modest"))
    assert [run(step) for _ in range(3)] == [{0: 1, 1: n} for n in (*chunks, 1)]


def test_rows_of_few_groups_cost_less() -> None:
    budget = LatencyBudget(Linear())
    budget.begin([request(0, latency_target=40.0, groups=1)])
    assert budget.rows(request(1, groups=1)) == 60 and budget.rows(request(1, groups=None)) == 30
    budget.take(request(2, groups=None), 10)
    assert budget.rows(request(1, groups=1)) == 20, "the step runs all groups now"
    state = EscalationState(Confidence(Escalation(below=0.5)), kept=KVHistory(1, 4))
    assert budget.share(request(3, groups=None, escalation=state), 50) == 20


def test_steps_stay_short_for_a_while() -> None:
    now = [100.0]
    budget = LatencyBudget(Linear(), lambda: now[0])
    budget.begin([request(0, latency_target=40.0)])
    now[0] += LATER - 1
    budget.begin([request(1)])
    assert budget.rows(request(1)) == 30
    now[0] += 2
    budget.begin([request(1)])
    assert budget.rows(request(1)) == WIDEST and not budget.limited


def test_whoever_was_passed_over_long_enough_is_served_first() -> None:
    """The target is tighter than any step: nothing else ever fits."""
    step = scheduler(rows=64, budget=LatencyBudget(Linear(fixed=100.0)))
    step.add(request(0, prompt=40))
    run(step)
    assert step.running[0].computed == 40
    step.add(request(1, prompt=64, room=200, latency_target=1.0))
    late, slow = request(2, prompt=40), step.running[0]
    step.add(late)
    gaps: dict[int, list[int]] = {0: [], 2: []}
    last = {0: 0, 2: 0}
    for turn in range(1, 60):
        for number in run(step).keys() & last.keys():
            gaps[number].append(turn - last[number])
            last[number] = turn
    assert max(gaps[0] + gaps[2]) <= PATIENCE + 3
    assert slow.done or len(slow.tokens) > slow.max_len, "it ends"
    assert late.computed >= 40


def test_only_one_turn_a_step() -> None:
    budget = LatencyBudget(Linear(fixed=100.0))
    budget.begin([request(0, latency_target=1.0)])
    assert budget.share(request(1, skipped_steps=PATIENCE), 500) == LEAST
    assert budget.share(request(2, skipped_steps=PATIENCE + 3), 500) == 0


def test_a_remembered_target_stops_nobody() -> None:
    step = scheduler(budget=LatencyBudget(Linear(fixed=100.0), lambda: 100.0))
    step.add(request(0, prompt=1, room=1, latency_target=1.0))
    run(step)
    assert not step.running
    step.add(request(1, prompt=30))
    assert any(1 in found for found in [run(step) for _ in range(3 * (PATIENCE + 1))])


targets, groups_of = st.sampled_from([None, None, 2.0, 30.0]), st.sampled_from([None, 1])


@given(
    prompts=st.lists(st.tuples(st.integers(1, 60), targets, groups_of), min_size=1, max_size=12),
    every=st.integers(1, 6), running=st.sampled_from([2, 4, 16]), fixed=st.sampled_from([0.0, 50.0]),
)  # fmt: skip
def test_everybody_ends(
    prompts: list[tuple[int, float | None, int | None]], every: int, running: int, fixed: float
) -> None:
    step = scheduler(32, running, budget=LatencyBudget(Linear(fixed=fixed)))
    left = [
        request(n, prompt=size, latency_target=target, groups=groups)
        for n, (size, target, groups) in enumerate(prompts)
    ]
    for turn in range(3000):
        if left and turn % every == 0:
            step.add(left.pop(0))
        run(step)
        bound = PATIENCE + len(step.running) + 2
        assert all(one.scheduling.skipped_steps <= bound for one in step.running)
        if not left and not step.running and not step.waiting:
            break
    assert not step.running and not step.waiting


def test_drafts_are_cut_to_what_fits() -> None:
    budget = LatencyBudget(Linear())
    budget.begin([request(0, latency_target=40.0)])
    budget.take(request(0), 10)
    assert budget.nodes(request(1), 24, among=2) == 10 and budget.nodes(request(1), 24, among=1) == 20
    assert budget.nodes(request(0, latency_target=40.0, may_cut_draft=False), 24, among=2) == 24
    assert budget.nodes(request(0, latency_target=40.0, may_cut_draft=True), 24, among=2) == 10
    slow = LatencyBudget(Linear(draft=5.0))
    slow.begin([request(0, latency_target=40.0)])
    slow.take(request(0), 10)
    assert slow.nodes(request(1), 24, among=1) == 4, "30 - 10 seconds are left, at 5 a node"


def test_prompts_of_one_token_overtake_nobody() -> None:
    step = scheduler(running=1)
    for number, size in enumerate((1, 30)):
        step.add(request(number, size))
    started = []
    for number in range(2, 6):
        [(running, _)] = step.next()
        started.append(running.id)
        step.remove(running)
        step.add(request(number, 1))
    assert started == [0, 1, 2, 3], "in the order in which they came"


def test_a_preempted_request_keeps_its_age() -> None:
    step = scheduler(running=2)
    old, young, new = request(0, 4), request(1, 4), request(2, 1)
    for one in (old, young, new):
        step.add(one)
    for one, chunk in step.next():
        one.tokens.append(5)
        one.computed += chunk
    step.restart(old, 0)
    assert {work.request for work in step.next()} == {old, young}
    assert step.running == [old, young], "were pages short, the young one would give its own"
    assert list(step.waiting) == [new]


@pytest.fixture(scope="module")
def llm(tiny_chat: Path) -> Iterator[LLM]:
    with LLM(tiny_chat, kv_memory="4MiB", progress=False) as llm:
        yield llm


def test_it_is_told_whether_a_target_was_kept_and_how(llm: LLM) -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    kept = llm.chat("one", params, mode=Mode(latency_ms=60000)).metrics
    assert (kept.target_ms, kept.target_kept) == (60000, True)
    missed = llm.chat("one", params, mode=Mode(latency_ms=0.001)).metrics
    assert missed.target_ms == pytest.approx(0.001) and missed.target_kept is False
    none = llm.chat("one", params, mode="deep").metrics
    assert (none.target_ms, none.target_kept) == (None, None)
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    out = llm.chat("one", params, mode=Mode(latency_ms=0.001, may_shorten=("groups",)))
    assert "0 of 4 groups to keep 0.001 ms (lossy)" in out.metrics.decision
    assert out.token_ids == llm.chat("one", params, mode=Mode(groups=0)).token_ids
    assert "lossy" not in llm.chat("one", params, mode=Mode(latency_ms=0.001)).metrics.decision


def test_who_is_skipped_for_a_target_takes_nothing_from_another_share() -> None:
    """The target's share has gone, and its other requests wait for steps that are long enough."""
    step = scheduler(budget=LatencyBudget(Linear(fixed=100.0)))
    aiming = added(step, [0], share="greedy", latency_target=1.0)[0]
    run(step)
    step.remove(aiming)
    added(step, range(1, 5), share="greedy")
    added(step, [5], share="modest")
    assert 5 in run(step)
    step = scheduler(budget=LatencyBudget(Linear(fixed=100.0)))
    added(step, [0], share="greedy", prompt=1, room=50, latency_target=136.0)
    added(step, range(1, 7), share="greedy", prompt=1, room=50)
    for _ in range(4 * PATIENCE):
        run(step)
    added(step, range(7, 9), share="modest", prompt=40)
    assert [run(step).get(7) for _ in range(3)] == [LEAST, LEAST, 40 - 2 * LEAST]
