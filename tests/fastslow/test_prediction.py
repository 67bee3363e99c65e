"""`prediction`: what the caller expects as an answer is drafted from, and changes no token."""

from __future__ import annotations

from typing import Any

import pytest

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.types import PREDICTION

OPTIONS = {"remember": False, "thinking_tags": ("<think>", "</think>")}
GREEDY = SamplingParams(max_tokens=48, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=48, ignore_eos=True, temperature=0.9, seed=11)
WISHES: list[Any] = [
    "auto",
    "ngram",
    "self",
    "suffix+self",
    "ngram|self",
    Speculation(drafter="ngram", nodes=6),
    Speculation(drafter="self", nodes=6, width=2),
]
PROMPT = [5, 6, 7, 8, 9]


def nothing_left(llm: LLM) -> bool:
    return not llm._core.drafter._predictions._places  # type: ignore[attr-defined]


@pytest.mark.parametrize("wish", WISHES, ids=str)
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_no_token_changes(llm: LLM, wish: Any, params: SamplingParams) -> None:
    plain = llm.generate(PROMPT, params, speculation="off").token_ids
    other = [token + 1 if token < 300 else 9 for token in plain]
    for predicted in (
        plain,
        other,
        [*plain[:10], 33, 34, 35, *plain[10:]],
        [*plain[:8], *plain[14:]],
        plain[5:],
        [*other[:20], *plain],
        plain[:1],
    ):
        out = llm.generate(PROMPT, params, speculation=wish, prediction=predicted)
        assert out.token_ids == plain
        metrics = out.metrics
        counts = metrics.by_drafter.get(PREDICTION)
        drafted = 0 if counts is None else counts.drafted
        assert metrics.prediction_accepted + metrics.prediction_rejected == drafted
    assert nothing_left(llm)


def test_a_right_prediction_saves_steps_and_costs_no_rejection(llm: LLM) -> None:
    fixed = Speculation(drafter="ngram", nodes=7)
    plain = llm.generate(PROMPT, GREEDY, speculation=fixed)
    out = llm.generate(PROMPT, GREEDY, speculation=fixed, prediction=plain.token_ids)
    assert out.token_ids == plain.token_ids and out.metrics.steps <= 7 < plain.metrics.steps
    assert (out.metrics.prediction_accepted, out.metrics.prediction_rejected) == (
        out.metrics.accepted,
        0,
    )
    own = plain.token_ids  # with a change and a gap: the places after them are found again
    for changed in ([*own[:10], 33, 34, 35, *own[10:]], [*own[:8], *own[14:]]):
        again = llm.generate(PROMPT, GREEDY, speculation=fixed, prediction=changed)
        assert again.token_ids == own and again.metrics.prediction_accepted > 24
    wrong = llm.generate(PROMPT, GREEDY, speculation=fixed, prediction=[44] * 48)
    assert wrong.metrics.prediction_accepted == 0 < wrong.metrics.prediction_rejected
    assert plain.metrics.prediction_accepted == plain.metrics.prediction_rejected == 0


def test_it_is_not_used_without_speculation(llm: LLM) -> None:
    plain = llm.generate(PROMPT, GREEDY, speculation="off")
    out = llm.generate(PROMPT, GREEDY, speculation="off", prediction=plain.token_ids)
    assert out.metrics.steps == plain.metrics.steps and not out.metrics.drafted


def test_text_lists_streams_and_n_answers(llm: LLM) -> None:
    fixed = Speculation(drafter="ngram", nodes=7)
    text = "The quick brown fox jumps over the lazy dog."
    copied = llm.generate(text, GREEDY, speculation=fixed, prediction=text)
    plain = llm.generate(text, GREEDY, speculation="off")
    assert copied.token_ids == plain.token_ids
    outs = llm.generate(
        [PROMPT, text], GREEDY, speculation=fixed, prediction=[None, text], progress=False
    )
    assert outs[1].token_ids == plain.token_ids
    assert outs[0].metrics.prediction_rejected == 0
    assert list(llm.stream(text, GREEDY, prediction=plain.token_ids))[-1].output is not None
    two = SEEDED.model_copy(update={"n": 2})
    first, second = llm.generate(PROMPT, two, speculation="off").choices
    out = llm.submit(PROMPT, two, speculation=fixed, prediction=second.token_ids).result()
    assert [c.token_ids for c in out.choices] == [first.token_ids, second.token_ids]
    assert out.choices[1].metrics.prediction_accepted > 30
    assert nothing_left(llm)


@pytest.mark.parametrize("wish", ["ngram", "self"])
def test_the_answer_begins_after_the_thought(llm: LLM, wish: str) -> None:
    mode = {"thinking_budget": 9}
    fixed = Speculation(drafter=wish, nodes=7)
    plain = llm.generate("<think>", GREEDY, mode=mode, speculation="off", allow_special=True)
    thought = plain.metrics.thinking_tokens
    assert thought == 9
    after_it = plain.token_ids[9:]
    out = llm.generate(
        "<think>",
        GREEDY,
        mode=mode,
        speculation=fixed,
        allow_special=True,
        prediction=after_it[-39:],
    )
    assert out.token_ids == plain.token_ids
    assert out.metrics.prediction_accepted >= 30 and out.metrics.prediction_rejected <= 2 * 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (5, "^prediction=5 must be text, token ids or None$"),
        (b"x", "^prediction=.* must be text, token ids or None$"),
        ([5, 999], "^prediction token 1 is 999, not an id in 0..319$"),
        ([5] * 600, "^prediction has 600 tokens; the context is 512$"),
        ("x" * 10**6, "^prediction has 1000000 characters, which cannot fit the context of 512"),
    ],
    ids=str,
)
def test_what_is_no_prediction(llm: LLM, wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        llm.stream(PROMPT, GREEDY, prediction=wrong)
