"""A thought that its caller closes: what follows is what a budget of as many tokens gives."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gate import SOON, Gate, StopThinking, settled

from fastslow import LLM, AsyncLLM, Escalation, Mode, SamplingParams, Speculation

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>"
OPTIONS = {"thinking_tags": ("<think>", "</think>")}
PHRASE = " so"
LONG = SamplingParams(max_tokens=80, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=80, ignore_eos=True, temperature=0.9, seed=5)
CHAT = [{"role": "user", "content": "The quick"}]
WISHES: list[Any] = ["off", Speculation(drafter="self", nodes=5), "suffix|self"]


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("params", [LONG, SEEDED], ids=["greedy", "seeded"])
def test_it_is_a_budget_that_is_used_up(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, wish: Any, params: SamplingParams
) -> None:
    with monkeypatch.context() as patch:
        stop = StopThinking(llm, patch, 4)
        out = llm.generate(CHAT, params, mode=Mode(closing=PHRASE), speculation=wish)
    metrics = out.metrics
    assert stop.closed == [True]
    assert metrics.thinking_ended == "caller" and 4 <= metrics.thinking_tokens < 40
    budget = Mode(closing=PHRASE, thinking_budget=metrics.thinking_tokens)
    plain = llm.generate(CHAT, params, mode=budget, speculation="off")
    assert out.token_ids == plain.token_ids and len(out.token_ids) == 80
    assert out.reasoning == plain.reasoning and out.reasoning.endswith(PHRASE) and out.text


def test_beside_a_budget(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = Mode(thinking_budget=50, thinking_soft=10, early_exit=True)
    StopThinking(llm, monkeypatch, 3)
    out = llm.generate(CHAT, LONG, mode=mode, speculation="off")
    assert (out.metrics.thinking_ended, out.metrics.thinking_tokens) == ("caller", 3)


def test_asking_twice_and_while_the_phrase_is_forced(llm: LLM, gate: Gate) -> None:
    handle = llm.submit(CHAT, LONG, mode=Mode(closing=PHRASE), speculation="off")
    with ThreadPoolExecutor(2) as pool:
        assert gate.reached.acquire(timeout=SOON)
        gate.steps(2)
        both = [pool.submit(handle.stop_thinking) for _ in range(2)]
        while not all(closed.done() for closed in both):
            gate.steps()
        assert all(closed.result() for closed in both)
    gate.open()
    out = handle.result(SOON)
    assert out.metrics.thinking_ended == "caller" and out.reasoning.count(PHRASE) == 1
    assert settled(llm)


def test_a_thought_that_ended_or_never_began(llm: LLM) -> None:
    done = llm.submit(CHAT, LONG)
    done.result(SOON)
    assert not done.stop_thinking()
    fast = llm.stream(CHAT, LONG, mode={"thinking_budget": 2}, speculation="off")
    for _, piece in zip(range(8), fast):
        assert piece.token_ids
    assert not fast.stop_thinking()
    fast.close()
    unstarted = llm.stream(CHAT, LONG)
    assert not unstarted.stop_thinking()
    unstarted.close()


@pytest.mark.parametrize("how", ["keep", "recompute"])
def test_a_request_that_continues_in_another_mode(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    doubt = Mode(groups=0, escalate=Escalation(below=1.0, window=6, how=how))
    StopThinking(llm, monkeypatch, 4)
    out = llm.generate(CHAT, LONG, mode=doubt, speculation="off")
    assert out.metrics.escalated_at is not None
    assert (out.metrics.thinking_ended, out.metrics.thinking_tokens) == ("caller", 4)


def test_several_answers_and_an_event_loop(llm: LLM) -> None:
    async def main() -> None:
        served = AsyncLLM.around(llm)
        handle = served.submit(CHAT, LONG.model_copy(update={"n": 2, "max_tokens": 300}))
        async for piece in handle:
            assert piece.output is None and not piece.text, "it thinks"
            assert await served.stop_thinking(handle)
            break
        out = await handle  # leaving the loop cancelled it
        assert {c.metrics.thinking_ended for c in out.choices} <= {"caller", None}
        assert not await served.stop_thinking(handle)
        stream = served.stream(CHAT, LONG, speculation="off")
        closed = False
        async for _ in stream:
            closed = closed or await served.stop_thinking(stream)
        streamed = stream.output
        assert closed and streamed is not None
        assert streamed.metrics.thinking_ended == "caller" and streamed.text

    asyncio.run(main())
    assert settled(llm)
