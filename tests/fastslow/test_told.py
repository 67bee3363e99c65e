"""What callers are told of an answer: where its tokens came from, counts by drafter, by mode."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from gate import open_llm

from fastslow.engine.params import GrammarSpec, Mode, SamplingParams
from fastslow.llm import LLM

VOCAB = 320
LONG = SamplingParams(max_tokens=60, ignore_eos=True)
PROMPT = [5, 6, 7, 8] * 6


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ("off", set()),
        ("auto", {"suffix"}),
        ("self", {"self"}),
        ("suffix|self", {"suffix", "self"}),
        ("ngram+self", {"ngram", "self"}),
    ],
)
def test_sources_and_counts_by_drafter(llm: LLM, wish: str, names: set[str]) -> None:
    out = llm.generate(PROMPT, LONG, speculation=wish)
    choice, metrics = out.choices[0], out.metrics
    counted = Counter(choice.sources)
    assert counted.total() == 60 and counted["target"] == metrics.steps
    assert set(counted) - {"target"} <= names and set(metrics.by_drafter) <= names
    if wish in ("auto", "self"):
        assert set(metrics.by_drafter) == names
        assert metrics.by_drafter[names.copy().pop()].accepted == metrics.accepted
    assert {n: c.accepted for n, c in metrics.by_drafter.items() if c.accepted} == {
        n: c for n, c in counted.items() if n != "target"
    }
    assert sum(c.drafted for c in metrics.by_drafter.values()) == metrics.drafted
    assert 0 <= metrics.queue_seconds <= metrics.ttft
    record = json.loads(json.dumps(out.to_dict()))["choices"][0]
    assert record["sources"] == choice.sources
    for name, counts in metrics.by_drafter.items():
        told = record["metrics"]["by_drafter"][name]
        assert told["accepted_at"] == counts.accepted_at and told["drafted"] == counts.drafted


def test_pieces_say_where_their_tokens_came_from(llm: LLM) -> None:
    *pieces, last = llm.stream(PROMPT, LONG, speculation="self")
    assert last.output is not None and last.sources == []
    assert all(len(piece.sources) == len(piece.token_ids) for piece in pieces)
    assert [x for piece in pieces for x in piece.sources] == last.output.choices[0].sources


def test_stats_by_mode_and_drafter(folder: Path) -> None:
    with open_llm(folder) as llm:
        fast, deep = Mode(name="fast", groups=1), Mode(name="deep")
        asked = [(fast, "self"), (deep, "ngram"), (fast, "off"), (fast, "self")]
        outs = [llm.generate(PROMPT, LONG, mode=m, speculation=s).metrics for m, s in asked]
        llm.generate(PROMPT, LONG, mode=Mode(name="brief"), timeout=1e-9)
        while not llm._core.idle:
            time.sleep(0.01)
        stats = llm.stats()
    assert set(stats.modes) == {"fast", "deep", "brief"}
    brief = stats.modes["brief"]
    assert (brief.requests, brief.tokens, brief.queued.count, brief.whole.count) == (1, 0, 0, 0)
    mine = [metrics for metrics in outs if metrics.mode == "fast"]
    mode = stats.modes["fast"]
    assert (mode.requests, mode.tokens, mode.prefix_hits) == (3, 180, 2)
    for field in ("steps", "drafted", "accepted", "prompt_tokens", "cached_tokens"):
        assert getattr(mode, field) == sum(getattr(metrics, field) for metrics in mine), field
    assert mode.accepted_at[0] <= mode.offered_at[0] == mode.drafts <= mode.steps
    assert sum(mode.accepted_at) == mode.accepted
    assert mode.queued.seconds == pytest.approx(sum(m.queue_seconds for m in mine))
    assert mode.first_token.seconds == pytest.approx(sum(m.ttft for m in mine))
    assert mode.each_token.mean == pytest.approx(sum(m.tpot for m in mine) / 3)
    assert (mode.first_token.count, mode.each_token.count, mode.whole.count) == (3, 3 * 59, 3)
    assert mode.whole.seconds >= mode.first_token.seconds + mode.each_token.seconds - 1e-6
    drafts = stats.drafters["self"]
    assert drafts.offered_at[0] == sum(m.by_drafter["self"].offered_at[0] for m in mine[::2])
    assert sum(drafts.accepted_at) == drafts.accepted
    record = json.loads(json.dumps(stats.to_dict()))
    assert record["modes"]["fast"]["queued"] == {"count": 3, "seconds": mode.queued.seconds}


@pytest.mark.parametrize("wish", ["off", "ngram", "self"])
def test_what_a_grammar_forces_is_forced(llm: LLM, wish: str) -> None:
    only = SamplingParams(max_tokens=40, grammar=GrammarSpec(choice=["yes, of course, why not"]))
    out = llm.generate("hello", only, speculation=wish)
    assert out.text == "yes, of course, why not" and out.finish_reason == "stop"
    assert out.choices[0].sources.count("forced") >= len(out.token_ids) - 1
    free = SamplingParams(max_tokens=40, grammar=GrammarSpec(regex="[a-z]{10,20}"))
    assert "forced" not in llm.generate("hello", free, speculation=wish).choices[0].sources[:9]
