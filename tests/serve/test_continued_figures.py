"""What `ContinuedEngine` tells of an answer that went on, and when it asks again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

import pytest
from breaking_engines import ScriptedReplicas, Token
from requests_made import made_request

from fastslow.output import Output, Piece
from fastslow.serve.api.engine import Busy
from fastslow.serve.engines.continued_engine import ContinuedEngine, Retries, _Broken, _whole
from fastslow.serve.engines.sent_pieces import SentChoice, SentPieces

ANSWER = [Token(5, text="So"), Token(6, text=" it"), Token(7, text=" is.")]
ASK = made_request("one", "a prompt")


async def output_of(engine: ContinuedEngine) -> Output:
    *_, last = [piece async for piece in engine.stream(ASK)]
    assert last.output is not None
    return last.output


@pytest.mark.parametrize(("longest", "pause"), [(2.0, 0.5), (0.3, 0.3)])
def test_a_full_engine_says_when_to_ask_again(longest: float, pause: float) -> None:
    engine = ContinuedEngine(ScriptedReplicas([ANSWER]), Retries(first=0.001, longest=longest))
    own = _Broken(ASK, monotonic(), asked_again=1, since=monotonic())
    assert engine._pause(own, Busy("the queue is full", 0.5)) == pause


@pytest.mark.parametrize(("first", "kept"), [(0.05, True), (9.5, False), (None, False)])
def test_the_figures_of_an_answer_that_went_on(first: float | None, kept: bool) -> None:
    """It began ten seconds ago; the present try began one second ago, and alone it would be in time."""
    plain = asyncio.run(output_of(ContinuedEngine(ScriptedReplicas([ANSWER]))))
    (choice,) = plain.choices
    metrics = replace(choice.metrics, queue_seconds=0.2, target_ms=5000.0, target_kept=not kept)
    output = replace(plain, choices=[replace(choice, metrics=metrics)])
    now = monotonic()
    own = _Broken(ASK, now - 10, continued=1, try_started=now - 1)
    if first is not None:
        own.sent.choices[0] = SentChoice(tokens=[5], first=now - 10 + first)
    made = _whole(own, output).choices[0].metrics
    assert made.queue_seconds == pytest.approx(9.2)
    assert made.ttft == pytest.approx(first or metrics.ttft + 9)
    assert made.target_kept is kept
    untouched = _whole(_Broken(ASK, now - 10), output)
    assert untouched is output


def test_a_thought_that_is_stopped_twice_was_stopped_the_first_time() -> None:
    sent = SentPieces()
    sent.take(Piece(token_ids=[1, 2], sources=["target"] * 2), 0.0)
    sent.thought_stopped(sent.sizes)
    sent.take(Piece(token_ids=[3, 4, 5], sources=["forced", "target", "target"]), 0.0)
    sent.thought_stopped(sent.sizes)
    assert sent.answered.stopped == [2]
