"""`prediction`: what the caller expects as an answer is drafted from, and changes no token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastslow import LLM, SamplingParams, Speculation
from fastslow.draft.prediction import TRIES, PredictionDraft
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
def test_the_answer_begins_behind_the_thought(llm: LLM, wish: str) -> None:
    mode = {"thinking_budget": 9}
    fixed = Speculation(drafter=wish, nodes=7)
    plain = llm.generate("<think>", GREEDY, mode=mode, speculation="off", allow_special=True)
    thought = plain.metrics.thinking_tokens
    assert thought == 9
    behind = plain.token_ids[9:]
    out = llm.generate(
        "<think>",
        GREEDY,
        mode=mode,
        speculation=fixed,
        allow_special=True,
        prediction=behind[-39:],
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


# The drafter alone


def request(tokens: list[int], predicted: list[int], prompt: int = 2) -> Any:
    return SimpleNamespace(
        id=1, tokens=tokens, prompt_length=prompt, prediction=predicted, thinking=None
    )


def test_it_finds_its_place_again() -> None:
    draft, predicted = PredictionDraft(), list(range(10, 40))
    tokens = [1, 2]

    def ahead(*more: int, nodes: int = 3) -> list[int]:
        tokens.extend(more)
        return list(draft.propose([request(tokens, predicted)], [nodes])[0].tokens)

    assert ahead() == [10, 11, 12]
    assert ahead(10, 11) == [12, 13, 14]
    assert ahead(99) == [], "it goes another way"
    assert ahead(98, 20) == []
    assert ahead(21) == [22, 23, 24], "two tokens tell the place"
    assert ahead(*range(22, 40)) == [], "it is over"
    assert ahead(10, 11) == [12, 13, 14], "and begins again"
    assert ahead(nodes=0) == [] and not draft.propose([request([1], [])], [3])[0].tokens
    draft.release([1, 7])
    assert not draft._places


def test_the_beginning_is_expected_for_a_few_tokens() -> None:
    draft, tokens = PredictionDraft(), [1, 2]
    for token in range(80, 80 + TRIES):
        assert draft.propose([request(tokens, [10, 11])], [3])[0].tokens
        tokens.append(token)
    assert not draft.propose([request(tokens, [10, 11])], [3])[0].tokens


def test_the_nearest_place_ahead_is_taken() -> None:
    draft = PredictionDraft()
    predicted = [5, 6, 7, 20, 5, 6, 8, 21, 5, 6, 9]
    tokens = [1, 2, 5, 6, 7, 20, 99, 5, 6]
    draft.propose([request(tokens[:2], predicted)], [3])
    assert list(draft.propose([request(tokens, predicted)], [1])[0].tokens) == [8]
