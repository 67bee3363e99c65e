"""Work that a share may add to a step: answers, drafted rows, passes of drafters, probes. No token depends on it."""

import time
from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from engine_tools import Ask, Bench, answer, finish
from exact_tools import PROMPTS, params
from schedule_tools import added, request, run, scheduler
from thoughts import Bound

from fastslow.engine.core import step_budget
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.latency_budget import LATER, PATIENCE, RunEverything
from fastslow.engine.core.request import Request
from fastslow.engine.core.step_budget import AGAIN, ALONE, UNKNOWN, StepBudget
from fastslow.engine.params import Speculation


class Costs(RunEverything):
    """A step takes `fixed` seconds and as much as `row` for each row; a pass of a drafter `draft`."""

    def __init__(self, fixed: float = 0.0, draft: float | None = 0.0, row: float = 1.0) -> None:
        self.fixed, self.draft, self.row = fixed, draft, row

    def seconds(self, groups: int | None, rows: int) -> float:
        return self.fixed + self.row * rows

    def draft_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        return self.draft


SHIPPED = step_budget.LONGER


def test_the_guide_says_what_holds() -> None:
    assert (SHIPPED, ALONE, step_budget.SOON) == (1.4, 0.1, 0.05)
    assert step_budget.SAVED == 0.125, "else shares that read without end hold others up"


@pytest.fixture(autouse=True)
def twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_budget, "LONGER", 2.0)


def test_a_share_alone_makes_no_step_much_longer() -> None:
    """The share runs as many answers as all others where rows are dear, else more of them."""
    for fixed, answers in ((0.0, 2), (3.0, 5), (1e9, 16)):
        step = scheduler(running=32, costs=Costs(fixed))
        added(step, range(30), share="greedy", prompt=1, room=50)
        assert len(run(step)) == 30, "alone it has what there is"
        added(step, [30, 31], share="modest", prompt=1, room=50)
        assert sum(number < 30 for number in run(step)) == answers
        for number in (30, 31):
            step.remove(next(one for one in step.running if one.id == number))
        assert len(run(step)) == (1 if fixed == 0 else 4 if fixed == 3 else 30), "they may come again"
        step.budget._timer = lambda: time.monotonic() + LATER
        assert len(run(step)) == 30


def test_masks_of_grammars_count() -> None:
    """A share with slow masks has fewer answers beside another, and the same alone."""
    step = scheduler(running=32, costs=Costs(fixed=3.0))
    for one in added(step, range(30), share="greedy", prompt=1, room=50):
        one.grammar = cast(Any, SimpleNamespace(seconds=1.5))
    assert len(run(step)) == 30
    added(step, [30, 31], share="modest", prompt=1, room=50)
    assert sum(number < 30 for number in run(step)) == 2  # of 5: each takes 2.5 of 5 seconds


def test_beside_very_many_answers_a_share_may_have_many() -> None:
    """This holds where rows cost nothing."""
    budget = StepBudget(Costs(fixed=1.0, row=0.0))
    assert min(budget.beside(others) for others in (1, 1000, 3000)) >= 1000


def dealt(costs: Costs, wishes: dict[str, list[int]], drafter: str = "self") -> dict[str, list[int]]:
    """Nodes that requests of shares are given, of what they wish."""
    budget, ready = StepBudget(costs), list[Request]()
    for share, some in wishes.items():
        fields: dict[str, Any] = {"share": share, "speculation": Speculation(drafter=drafter)}
        ready += [request(len(ready) + n, prompt=1, **fields) for n in range(len(some))]
    budget.begin(ready)
    rows: dict[str | None, int] = {share: len(some) for share, some in wishes.items()}
    found = budget.nodes(ready, [n for some in wishes.values() for n in some], rows)
    by_share = defaultdict[str, list[int]](list)
    for one, nodes in zip(ready, found, strict=True):
        by_share[str(one.share)].append(nodes)
    return by_share


def test_drafted_rows_and_passes_of_drafters_are_dealt_out_by_share() -> None:
    """A step of six rows takes 18 seconds, so five of them 17, and 34 is the most."""
    found = dealt(Costs(fixed=12.0), {"greedy": [64], "modest": [0] * 5})
    assert found["greedy"] == [16]
    found = dealt(Costs(fixed=12.0), {"greedy": [64], "modest": [1] * 5})
    assert found == {"greedy": [13], "modest": [1] * 5}, "all together add 18 at most"
    found = dealt(Costs(fixed=12.0), {"greedy": [64] * 3, "as greedy": [64] * 3})
    assert found == {"greedy": [3] * 3, "as greedy": [3] * 3}
    found = dealt(Costs(fixed=12.0, draft=5.0), {"greedy": [64], "modest": [0] * 5})
    assert found["greedy"] == [2], "each node takes a pass and a row: 6 of 16 seconds"
    found = dealt(Costs(fixed=12.0, draft=20.0), {"greedy": [64], "modest": [0] * 5})
    assert found["greedy"] == [0]
    found = dealt(Costs(fixed=12.0, draft=None), {"greedy": [64], "modest": [0] * 5})
    assert found["greedy"] == [UNKNOWN], "nobody knows what a pass takes: it may try"


def test_a_drafter_that_took_too_long_once_is_tried_again() -> None:
    """Else it never shows that this was chance: a call that read a long prompt first, a machine that slept."""
    budget = StepBudget(Costs(draft=1e9))
    ready = [request(n, share="only", prompt=1) for n in range(3)]
    found = list[list[int]]()
    for _ in range(2 * AGAIN):
        budget.begin(ready)
        found.append(budget.nodes(ready, [0, 8, 8], {"only": 3}))
    tried = [step for step, nodes in enumerate(found) if any(nodes)]
    assert tried == [AGAIN - 1, 2 * AGAIN - 1] and found[tried[0]] == [0, 1, 0]


def test_one_share_alone_has_a_bound_too() -> None:
    """A request that comes in the middle of a step waits for its end."""
    fast = Costs(draft=ALONE / 20, row=ALONE / 1000)
    assert dealt(fast, {"only": [64] * 16})["only"] == [15] * 16
    assert dealt(fast, {"only": [15] * 16})["only"] == [15] * 16


def test_prompts_have_a_bound_by_share() -> None:
    """A row takes a fiftieth of ALONE, so who reads at once has the others wait for four times as long."""
    step, now = scheduler(costs=Costs(row=ALONE / 50)), [LATER]
    step.budget = step._shares._budget = StepBudget(Costs(row=ALONE / 50), lambda: now[0])
    nobody = added(step, [0], prompt=200)[0]
    assert run(step) == {0: 200}, "where nobody names shares, that is the same caller"
    step.remove(nobody)
    now[0] += LATER
    greedy, _ = added(step, [1, 2], share="greedy", prompt=200, room=50)
    assert run(step) == {1: 51}, "who comes in the middle of a step waits for its end"
    modest = added(step, [10], share="modest", prompt=50, room=50)[0]
    assert [run(step) for _ in range(2)] == [{1: 26, 10: 25}] * 2, "an equal part for each"
    assert modest.computed == 50 and [run(step) for _ in range(3)] == [{1: 1, 10: 1}] * 3
    now[0] += ALONE / step_budget.SAVED
    assert [run(step) for _ in range(3)] == [{1: 50, 10: 1}, {1: 1, 10: 1}, {1: 1, 10: 1}]
    assert greedy.scheduling.skipped_steps == 0


def engine(bench: Bench, costs: Costs) -> tuple[EngineCore, list[int]]:
    """An engine, and the rows of the forwards of its target."""
    made, ran = bench.core(), list[int]()
    core = EngineCore(made.model, made.kv, made.drafter, cost_model=costs)

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(bench.model, name)

        def forward(self, rows: Any, *more: Any) -> Any:
            ran.append(len(rows.tokens))
            return bench.model.forward(rows, *more)

    core.model = Watched()
    return core, ran


def test_what_a_step_drafts_beside_another_share_is_bounded(moge: Bench, monkeypatch: Any) -> None:
    """Six answers of 20 drafted tokens each: alone they have them, beside another answer none."""
    monkeypatch.setattr(step_budget, "SOON", 0.0)
    core, ran = engine(moge, Costs(fixed=1e-5, draft=1e-5, row=1e-7))
    passes, propose = list[int](), core.drafter.propose

    def watched(batch: Any, nodes: Any) -> Any:
        passes.append(max(nodes))
        return propose(batch, nodes)

    monkeypatch.setattr(core.drafter, "propose", watched)
    ask = Ask(PROMPTS[1], params(max_tokens=40), "random", nodes=20)
    greedy = [moge.request(n, ask, share="greedy") for n in range(6)]
    for one in greedy:
        core.add(one)
    core.step()
    core.step()
    assert passes[-1] == 20 and ran[-1] == 6 * 21
    modest = moge.request(99, Ask(PROMPTS[0], params(max_tokens=4)), share="modest")
    core.add(modest)
    before = len(passes)
    while not modest.done:
        core.step()
    assert max(passes[before:]) == 0 and max(ran[before:]) <= len(PROMPTS[0]) + 6
    core.step()
    assert passes[-1] == 0, "its next request may come in the middle of a step"
    core.scheduler.budget._timer = lambda: time.monotonic() + LATER
    core.step()
    assert passes[-1] == 20
    finish(core, [])
    for one in greedy:
        assert answer(one) == answer(moge.alone(ask))


def test_where_nobody_drafts_nor_shares_no_step_is_timed(moge: Bench) -> None:
    """To know what steps take, a first start measures them before its answer."""

    class Unknown(RunEverything):
        def seconds(self, groups: int | None, rows: int) -> float:
            raise AssertionError("nobody needs to know")

    core, ran = engine(moge, cast(Costs, Unknown()))
    ask = Ask(PROMPTS[1], params(max_tokens=4))
    one = moge.request(0, ask)
    core.add(one)
    finish(core, [])
    assert one.error is None and len(ran) == 4 and answer(one) == answer(moge.alone(ask))


def test_probes_of_answers_wait_for_their_turn(moge: Bench) -> None:
    """Six thoughts that ask after each token, with probes of up to ten rows."""
    bound = Bound(opened=True, every=1, asked=(6, 64), most=6)
    ask = Ask(PROMPTS[1], params(max_tokens=12), bound=bound)
    free, (core, ran) = moge.run([ask])[0], engine(moge, Costs(row=1e-7))
    greedy = [moge.request(n, ask, share="greedy") for n in range(6)]
    for one in greedy:
        core.add(one)
    for _ in range(9):
        core.step()
    assert max(ran[1:]) > 6 * 6, "alone all ask at once"
    modest = moge.request(99, Ask(PROMPTS[0], params(max_tokens=16)), share="modest")
    core.add(modest)
    core.step()
    before = len(ran)
    while not modest.done:
        core.step()
    beside = ran[before:]
    assert sum(rows > 2 for rows in beside) <= 16 / PATIENCE + 1 and max(beside) < 14, beside
    finish(core, [])
    for one in greedy:
        assert answer(one) == answer(free) and one.spec_stats.probe_rows == free.spec_stats.probe_rows


def test_small_probes_of_a_share_keep_no_large_one_waiting() -> None:
    """A probe that fits uses up nothing that was saved for a large one, and one that does not waits behind it."""

    def asking(share: str, rows: int) -> Any:
        fields: dict[str, Any] = {"share": share, "tokens": [1], "pending": 1, "current_groups": None}
        return SimpleNamespace(**fields, rows_after=lambda _: rows)

    large, small, other = asking("one", 20), asking("one", 1), asking("other", 0)
    for fixed, order in ((10.0, (large, small)), (10.0, (small, large)), (0.0, (large, small))):
        budget, asked = StepBudget(Costs(fixed)), list[int]()
        for step in range(60):
            budget.begin([large, small, other])
            asked += [step] * {id(one): budget.may_probe(one, 3) for one in order}[id(large)]
        assert len(asked) >= 2 and min(b - a for a, b in pairwise(asked)) > 5, asked
