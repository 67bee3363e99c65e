"""Files of the simulator: traces, step costs, and what is made for those who have none."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from published_figures import PUBLISHED
from refusals import refused

from fastslow.tools.plan.device import DEVICES
from fastslow.tools.plan.published import config_of
from fastslow.tools.plan.replica_costs import planned_costs
from fastslow.tools.plan.step import CARDS, ForwardWork, Precision, Setting
from fastslow.tools.simulate.costs import ModeSteps, ReplicaCosts, read_costs, write_costs
from fastslow.tools.simulate.synthetic import TraceRecipe, make_trace
from fastslow.tools.simulate.trace import TracedRequest, read_trace, write_trace

LINE: dict[str, Any] = {"arrival": 0, "mode": "fast", "prompt_tokens": 10, "answer_tokens": 5}
SHORT = LINE | {"arrival": 0.5, "id": "b"}
WHOLE = SHORT | {"arrival": 1.5, "mode": "deep", "id": "a", "deep": True, "prompt_tokens": 300}
WHOLE |= {"prefix": (("s", 100), ("t", 50)), "latency_ms": 150.0, "cached_tokens": 96}
WHOLE |= {"first_seconds": 0.1, "end_seconds": 0.9, "tokens_per_step": 1.5, "rows_per_step": 3.0}


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    short, whole = TracedRequest(**SHORT), TracedRequest(**WHOLE)
    write_trace(path, [whole, short])
    assert read_trace(path) == [short, whole] and json.loads(path.read_text().splitlines()[1]) == SHORT


@pytest.mark.parametrize(("line", "words"), [
    ("{", "line 2: no JSON"),
    ("[]", "line 2: a JSON object is needed, not list"),
    ({"mod": "fast"}, "line 2: field 'mod' is unknown.*mode"),
    ({"arrival": -1}, "line 2: arrival=-1 must be greater than or equal to 0"),
    ({"mode": "all"}, "line 2: mode='all' names the figures of all modes"),
    ({"id": "x"}, "id='x' names two requests"),
    ({"prefix": [["a", 11]]}, "line 2: prefix has 11 tokens, more than prompt_tokens=10"),
])  # fmt: skip
def test_a_wrong_line_is_named(line: str | dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    text = line if isinstance(line, str) else json.dumps(LINE | line)
    path.write_text(f"{json.dumps(LINE | {'id': 'x'})}\n{text}\n")
    refused(words, read_trace, path)
    path.write_text("\n")
    refused("t.jsonl has no request", read_trace, path)


def test_a_made_trace_is_as_it_was_asked_for() -> None:
    recipe = TraceRecipe(requests=5_000, rate=10, deep=0.3, answer_tokens=100, latency_ms=90, seed=3)
    trace = make_trace(recipe)
    assert trace == make_trace(recipe) != make_trace(TraceRecipe(requests=5_000, rate=10))
    assert len(trace) == 5_000 == len({r.id for r in trace})
    assert [r.arrival for r in trace] == sorted(r.arrival for r in trace)
    assert 5_000 / trace[-1].arrival == pytest.approx(10, rel=0.1)
    half = trace[: len(trace) // 2]
    assert half[-1].arrival == pytest.approx(trace[-1].arrival / 2, rel=0.1)  # no slow beginning
    deep = [r for r in trace if r.deep]
    assert len(deep) / len(trace) == pytest.approx(0.3, abs=0.03)
    assert {r.latency_ms for r in deep} == {None} and {r.mode for r in deep} == {"deep"}
    chats = [r for r in trace if not r.deep]
    assert statistics.median(r.answer_tokens for r in chats) == pytest.approx(100, rel=0.05)
    assert {r.latency_ms for r in chats} == {90}
    bots = {r.prefix[0] for r in chats}
    assert 5 < len(bots) <= 20 and all(tokens == 1000 for _, tokens in bots)
    by_id = {r.id: r for r in trace}
    later = [r for r in chats if len(r.prefix) > 1 and r.prefix[-1][0] in by_id]
    before = by_id[later[0].prefix[-1][0]]
    own = before.prompt_tokens - sum(tokens for _, tokens in before.prefix)
    assert later[0].prefix[:-1] == before.prefix
    assert later[0].prefix[-1] == (before.id, own + before.answer_tokens)


# Costs


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    steps = ModeSteps(rows=(1, 8), seconds=(0.1, 0.2), prompt_seconds=(0.1, 0.15), rows_per_step=3)
    made = ReplicaCosts(modes={"fast": steps}, pages=100, context_seconds=1e-6)
    write_costs(tmp_path / "c.json", made)
    assert read_costs(tmp_path / "c.json") == made


def test_a_step_of_one_kind_is_its_curve_and_of_several_lies_between() -> None:
    fast = ModeSteps(rows=(1, 10), seconds=(0.10, 0.19))
    deep = ModeSteps(rows=(1, 10), seconds=(0.2, 0.38), prompt_seconds=(0.2, 0.29))
    costs = ReplicaCosts(modes={"fast": fast, "deep": deep}, pages=100, max_running=8)
    assert costs.step({"fast": 4}, {}) == pytest.approx(0.13)
    assert costs.step({"deep": 4}, {}) == pytest.approx(0.26)
    assert costs.step({}, {"deep": 4}) == pytest.approx(0.23)
    assert costs.step({"deep": 2.5}, {}) == pytest.approx(0.23)
    both = costs.step({"deep": 2, "fast": 2}, {})
    assert both == pytest.approx(0.22 + 0.02) and 0.13 < both < 0.26
    assert costs.step({"fast": 2, "deep": 2}, {}) == both
    assert costs.step({"deep": 20}, {}) == pytest.approx(0.38 + 10 * 0.02)
    assert costs.most_rows({"fast", "deep"}, 0.27) == 4 and costs.most_rows({"deep"}, 0.1) == 0


@pytest.mark.parametrize(("change", "words"), [
    ("[]", "must hold a JSON object"),
    ({"modes": {"fast": {"rows": [2], "seconds": [1]}}}, "rows must ascend from 1"),
    ({"modes": {"fast": {"rows": [1, 2], "seconds": [1]}}}, "seconds has 1 numbers for 2 rows"),
    ({"prompt_rows": 2}, "prompt_rows=2 must be at least max_running=64"),
    ({"page": 1}, "field 'page' is unknown.*pages"),
])  # fmt: skip
def test_costs_that_do_not_fit(change: str | dict[str, Any], words: str, tmp_path: Path) -> None:
    good = {"modes": {"fast": {"rows": [1], "seconds": [0.1]}}, "pages": 10}
    (tmp_path / "c.json").write_text(json.dumps(good))
    assert read_costs(tmp_path / "c.json").pages == 10
    text = change if isinstance(change, str) else json.dumps(good | change)
    (tmp_path / "c.json").write_text(text)
    refused(words, read_costs, tmp_path / "c.json")


def on_a2(cards: int) -> Setting:
    work, precision = ForwardWork.of(config_of("openpangu-pro-moe-72b")), Precision("w8a8", "bf16")
    return Setting(work, DEVICES["800i-a2"], cards, precision, CARDS)


def test_planned_costs_are_the_planners() -> None:
    costs = planned_costs(on_a2(4), "planned")
    small, large, prefill = PUBLISHED[0], PUBLISHED[1], PUBLISHED[2]
    for row in (small, large):
        step = costs.step({"deep": row.batch}, {}) + costs.context_seconds * row.batch * 2048
        assert 1000 * step == pytest.approx(row.milliseconds, rel=0.01)
    one = costs.step({}, {"deep": 2048}) + costs.attention_seconds * 2048 * 1024
    assert 4000 * one == pytest.approx(prefill.milliseconds, rel=0.25)
    assert costs.step({"fast": 64}, {}) < costs.step({"deep": 64}, {})
    assert 900_000 < costs.pages * costs.page_tokens < 1_000_000
    refused("cards=1: the weights do not fit into 1 x 800i-a2", planned_costs, on_a2(1))
