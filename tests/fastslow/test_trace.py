"""Facts told of answers: each step, where tokens came from, counts of the engine, by drafter and by mode."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from gate import SOON, Gate, open_llm, settled
from refusals import refused

from fastslow.engine.core import stats, step_trace
from fastslow.engine.params import Escalation, GrammarSpec, Mode, SamplingParams, Speculation
from fastslow.llm import LLM

TEN = SamplingParams(max_tokens=10, ignore_eos=True)
SIXTY = SamplingParams(max_tokens=60, ignore_eos=True)
LONG = SamplingParams(max_tokens=40, ignore_eos=True)
PROMPT = [5, 6, 7, 8] * 6
SELF = Speculation(drafter="self", groups=3, nodes=5)
BOTH = [SELF.model_copy(update={"drafter": name}) for name in ("suffix|self", "ngram+self")]


def traced(llm: LLM, prompt: Any, params: SamplingParams, **options: Any) -> tuple[Any, list[Any]]:
    handle = llm.submit(prompt, params, trace=True, **options)
    out = handle.result()
    trace = json.loads(json.dumps(handle.trace()))
    assert trace["left_out"] == 0
    return out, trace["steps"]


@pytest.mark.drafts(30, 20, nodes=None)
@pytest.mark.parametrize("wish", ["off", SELF, *BOTH])
def test_every_step_is_noted(llm: LLM, wish: Any) -> None:
    out, steps = traced(llm, PROMPT, LONG, speculation=wish)
    choice, metrics = out.choices[0], out.metrics
    assert len(steps) == metrics.steps and steps[0]["read"] == 24 - metrics.cached_tokens
    assert [t for step in steps for t in step["tokens"]] == out.token_ids
    assert [s for step in steps for s in step["sources"]] == choice.sources
    assert [len(step["accepted"]) for step in steps] == metrics.runs
    assert sum(len(step["drafted"]) for step in steps) == metrics.drafted
    assert sum(step["cut"].get("cost_model", 0) for step in steps) == metrics.cut
    for step in steps:
        size = len(step["drafted"])
        assert size == len(step["parents"]) == len(step["by"])
        assert step["rows"] == step["read"] + size <= step["step_rows"] and step["running"] >= 1
        assert step["groups"] == metrics.groups and step["draft_ms"] >= 0 and step["verify_ms"] > 0
        leaf = step["accepted"][-1] if step["accepted"] else -1
        after = [t for t, p in zip(step["drafted"], step["parents"]) if p == leaf]
        if step["ended"] == "refused":
            assert step["refused"] == after and step["tokens"][-1] not in after
        else:
            assert step["refused"] == [] and step["ended"] in {"length", "draft_ended", "no_draft"}
            assert step["ended"] != "no_draft" or not size
            assert step["ended"] != "draft_ended" or (size and not after)
    assert steps[-1]["ended"] == "length"


def test_what_was_cut_and_why(llm: LLM) -> None:
    _, steps = traced(llm, PROMPT, LONG, speculation=SELF)
    assert all(step["planned"] == 5 for step in steps)
    left = 40  # a step gives a token more than it drafts
    for step in steps:
        assert step["cut"] == ({"max_len": 6 - left} if left < 6 else {})
        assert len(step["drafted"]) == min(5, left - 1) or (left == 40 and not step["drafted"])
        left -= len(step["tokens"])
    assert left == 0
    own = llm.generate(PROMPT, LONG).token_ids
    stop = next(n for n in range(5, 40) if own[n] not in own[:n])
    _, steps = traced(llm, PROMPT, LONG.model_copy(update={"stop_token_ids": [own[stop]]}), speculation=SELF)
    assert steps[-1]["ended"] == "stop" and steps[-1]["tokens"][-1] == own[stop]


def test_prompts_that_take_several_steps_and_tight_pages(folder: Path) -> None:
    with open_llm(folder, prompt_rows=16, max_model_len=96, kv_memory=6 * 16 * 512 * 4) as llm:
        llm._core.scheduler.latency_budget.nodes = lambda request, nodes, among: nodes // 2  # type: ignore[method-assign]
        prompt = list(range(10, 60))
        other = llm.submit(prompt[::-1], LONG, speculation=SELF)
        out, steps = traced(llm, prompt, LONG, speculation=SELF)
        other.result()
    reads = [step for step in steps if "tokens" not in step]
    assert sum(step["read"] for step in steps if step["read"] > 1) >= 50 and len(reads) >= 3
    assert all(step["rows"] == step["read"] <= 16 for step in reads)
    made = [step for step in steps if "tokens" in step]
    assert [t for step in made for t in step["tokens"]] == out.token_ids
    assert all(step["cut"]["latency_target"] == 3 for step in made)


def test_a_long_answer_keeps_its_first_and_last_steps(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_trace, "FIRST", 3)
    monkeypatch.setattr(step_trace, "LAST", 4)
    handle = llm.submit(PROMPT, LONG, speculation="off", trace=True)
    ids = handle.result().token_ids
    trace = handle.trace()
    assert trace is not None and trace["left_out"] == 33
    assert [step["tokens"] for step in trace["steps"]] == [[t] for t in ids[:3] + ids[-4:]]


def test_it_is_there_while_the_answer_comes_and_not_unless_asked(llm: LLM) -> None:
    stream = llm.stream(PROMPT, LONG, trace=True)
    piece = next(stream)
    trace = stream.trace()
    assert trace is not None
    assert [t for step in trace["steps"] for t in step["tokens"]][: len(piece.token_ids)] == piece.token_ids
    stream.close()
    handle = llm.submit(PROMPT, LONG)
    handle.result()
    assert handle.trace() is None
    several = llm.submit(PROMPT, LONG.model_copy(update={"n": 2}), trace=True)
    for n, choice in enumerate(several.result().choices):
        one = several.trace(n)
        assert one is not None and [t for step in one["steps"] for t in step["tokens"]] == choice.token_ids
    refused(r"^index=2 is outside 0\.\.1$", several.trace, 2)
    refused("^trace=1 must be a valid boolean$", llm.submit, PROMPT, LONG, trace=1)


@pytest.mark.parametrize("how", ["restart", "recompute", "keep"])
def test_an_answer_that_changes_its_mode_has_the_steps_of_both(llm: LLM, how: Any) -> None:
    mode = Mode(name="quick", groups=1, escalate=Escalation(to="deep", below=1.0, window=4, how=how))
    out, steps = traced(llm, PROMPT, LONG, mode=mode, speculation=SELF)
    assert out.metrics.escalated_at is not None
    tokens = [t for step in steps for t in step.get("tokens", [])]
    assert tokens[-len(out.token_ids) :] == out.token_ids and (len(tokens) > 40) == (how == "restart")
    assert any(step.get("ended") in ("unsure", "escalated") for step in steps) or how == "restart"
    assert {step["groups"] for step in steps} == {1, out.metrics.groups}


@pytest.mark.drafts(30, 20)
@pytest.mark.parametrize("wish", ["off", "auto", SELF, *BOTH])
def test_sources_and_counts_by_drafter(llm: LLM, wish: Any) -> None:
    drafters = str({"off": "", "auto": "suffix"}.get(wish, getattr(wish, "drafter", "")))
    names = set(re.findall(r"\w+", drafters))
    out = llm.generate(PROMPT, SIXTY, mode=Mode(name="deep"), speculation=wish)
    choice, metrics = out.choices[0], out.metrics
    counted = Counter(choice.sources)
    assert counted.total() == 60 and counted["target"] == metrics.steps
    assert set(counted) - {"target"} <= names and set(metrics.by_drafter) <= names
    if wish == SELF:
        assert set(metrics.by_drafter) == names and metrics.by_drafter[drafters].accepted == metrics.accepted
    assert {n: c.accepted for n, c in metrics.by_drafter.items() if c.accepted} == {
        n: c for n, c in counted.items() if n != "target"
    }
    assert sum(c.drafted for c in metrics.by_drafter.values()) == metrics.drafted
    assert 0 <= metrics.queue_seconds <= metrics.ttft
    record = json.loads(json.dumps(out.to_dict()))["choices"][0]
    assert record["sources"] == choice.sources
    assert set(record["metrics"]["by_drafter"]) == set(metrics.by_drafter)


def test_stats_by_mode_and_drafter(folder: Path) -> None:
    with open_llm(folder) as llm:
        fast, deep = Mode(name="fast", groups=1), Mode(name="deep")
        asked: list[tuple[Mode, Any]] = [(fast, SELF), (deep, "ngram"), (fast, "off"), (fast, SELF)]
        outs = [llm.generate(PROMPT, SIXTY, mode=m, speculation=s).metrics for m, s in asked]
        llm.generate(PROMPT, SIXTY, mode=Mode(name="brief"), timeout=1e-9)
        assert settled(llm)
        seen = llm.stats()
    assert set(seen.modes) == {"fast", "deep", "brief"}
    brief = seen.modes["brief"]
    assert (brief.requests, brief.tokens, brief.queued.count, brief.whole.count) == (1, 0, 0, 0)
    mine = [metrics for metrics in outs if metrics.mode == "fast"]
    mode = seen.modes["fast"]
    assert (mode.requests, mode.tokens, mode.prefix_hits) == (3, 180, 2)
    for field in ("steps", "drafted", "accepted", "prompt_tokens", "cached_tokens"):
        assert getattr(mode, field) == sum(getattr(metrics, field) for metrics in mine), field
    assert mode.accepted_at[0] <= mode.offered_at[0] == mode.drafts <= mode.steps
    assert sum(mode.accepted_at) == mode.accepted
    assert mode.queued.seconds == pytest.approx(sum(m.queue_seconds for m in mine))
    assert mode.each_token.mean == pytest.approx(sum(m.tpot for m in mine) / 3)
    assert (mode.first_token.count, mode.each_token.count, mode.whole.count) == (3, 3 * 59, 3)
    assert seen.drafters["self"].offered_at[0] == sum(m.by_drafter["self"].offered_at[0] for m in mine[::2])
    record = json.loads(json.dumps(seen.to_dict()))
    assert record["modes"]["fast"]["queued"] == {"count": 3, "seconds": mode.queued.seconds}


@pytest.mark.drafts(18, 18)
@pytest.mark.parametrize("wish", ["off", "ngram", "self"])
def test_what_a_grammar_forces_is_forced(llm: LLM, wish: str) -> None:
    only = SamplingParams(max_tokens=40, grammar=GrammarSpec(choice=["yes, of course, why not"]))
    out = llm.generate("hello", only, speculation=wish)
    assert out.text == "yes, of course, why not" and out.finish_reason == "stop"
    assert out.choices[0].sources.count("forced") >= len(out.token_ids) - 1
    free = SamplingParams(max_tokens=40, grammar=GrammarSpec(regex="[a-z]{10,20}"))
    assert "forced" not in llm.generate("hello", free, speculation=wish).choices[0].sources[:9]


def test_stats_before_and_while_requests_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_llm(folder, max_running=1) as llm:
        fresh = llm.stats()
        assert (fresh.running, fresh.waiting, fresh.steps, fresh.ended) == (0, 0, 0, {})
        assert fresh.pages_free == fresh.pages > 0 and fresh.prefix_hit_rate == 0.0
        prompt = list(range(10, 60))
        outs = [llm.generate(prompt, TEN, speculation=wish) for wish in ("off", SELF, SELF)]
        assert settled(llm)
        seen = llm.stats()
        assert seen.ended == {"length": 3} and seen.tokens == 30
        assert seen.steps == sum(out.metrics.steps for out in outs)
        assert (seen.prompt_tokens, seen.cached_tokens) == (150, 96)
        assert seen.prefix_hit_rate == pytest.approx(96 / 150)
        (drafts,) = seen.drafters.values()
        assert drafts.offered == sum(out.metrics.drafted for out in outs[1:]) > 0
        assert seen.pages_used == 0 and seen.pages_cached == 3
        assert seen.pages_free + seen.pages_cached == seen.pages
        gate = Gate(llm, monkeypatch)
        handles = [llm.submit([5, 6], LONG, speculation="off") for _ in range(3)]
        assert gate.reached.acquire(timeout=SOON)
        while llm.stats().waiting < 2:
            gate.steps()
        before = llm.stats().tokens
        gate.steps(4)
        now = llm.stats()
        assert (now.running, now.waiting) == (1, 2) and now.pages_used > 0
        assert now.tokens == before + 4, "those of an answer that runs count"
        for handle in handles:
            handle.cancel()
        gate.open()
        assert settled(llm) and llm.stats().ended == {"length": 3, "cancelled": 3}
        assert llm.stats().to_dict()["drafters"]["self"]["offered"] == drafts.offered


def test_names_are_counted_up_to_a_limit(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "MOST_NAMES", 1)
    monkeypatch.setattr(llm._core, "_totals", stats.EngineTotals())
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    for name in ("ngram", "self", "ngram+self"):
        llm.generate(prompt, LONG, speculation=Speculation(drafter=name, nodes=3), mode=Mode(name=name))
    now = llm.stats()  # a request of another test may have ended meanwhile
    for names in (set(now.drafters), set(now.modes)):
        assert "other" in names and len(names) == 2
