"""`prediction`: what the caller expects as an answer is drafted from, and changes no token."""

from typing import Any

import pytest

from fastslow import LLM, SamplingParams, Speculation
from fastslow.engine.types import PREDICTION

OPTIONS = {"remember": False, "thinking_tags": ("<think>", "</think>")}
GREEDY = SamplingParams(max_tokens=48, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=48, ignore_eos=True, temperature=0.9, seed=11)
WISHES: list[Any] = [
    *("auto", "ngram", "self", "suffix+self", "ngram|self"),
    Speculation(drafter="ngram", nodes=6),
    Speculation(drafter="self", nodes=6),
]
FIXED = Speculation(drafter="ngram", nodes=7)
PROMPT = [5, 6, 7, 8, 9]


def nothing_left(llm: LLM) -> bool:
    return not llm._core.drafter._predictions._places  # type: ignore[attr-defined]


@pytest.mark.drafts(200, 150)
@pytest.mark.parametrize(("wish", "params"), [
    *((wish, GREEDY) for wish in WISHES), *((wish, SEEDED) for wish in (WISHES[0], *WISHES[-2:])),
], ids=str)  # fmt: skip
def test_no_token_changes(llm: LLM, wish: Any, params: SamplingParams) -> None:
    plain = llm.generate(PROMPT, params, speculation="off").token_ids
    other = [token + 1 if token < 300 else 9 for token in plain]
    changed = [*plain[:10], 33, 34, 35, *plain[10:]]
    gap = [*plain[:8], *plain[14:]]
    for predicted in (plain, other, changed, gap, plain[5:], [*other[:20], *plain], plain[:1]):
        out = llm.generate(PROMPT, params, speculation=wish, prediction=predicted)
        assert out.token_ids == plain
        metrics = out.metrics
        counts = metrics.by_drafter.get(PREDICTION)
        drafted = 0 if counts is None else counts.drafted
        assert metrics.prediction_accepted + metrics.prediction_rejected == drafted
    assert nothing_left(llm)


def test_a_right_prediction_saves_steps_and_costs_no_rejection(llm: LLM) -> None:
    plain = llm.generate(PROMPT, GREEDY, speculation=FIXED)
    own = plain.token_ids
    out = llm.generate(PROMPT, GREEDY, speculation=FIXED, prediction=own)
    metrics = out.metrics
    assert out.token_ids == own and metrics.steps <= 7 < plain.metrics.steps
    assert metrics.prediction_accepted == metrics.accepted and not metrics.prediction_rejected
    # with a change and a gap: the places after them are found again
    for changed in ([*own[:10], 33, 34, 35, *own[10:]], [*own[:8], *own[14:]]):
        assert llm.generate(PROMPT, GREEDY, speculation=FIXED, prediction=changed).metrics.prediction_accepted > 24
    wrong = llm.generate(PROMPT, GREEDY, speculation=FIXED, prediction=[44] * 48)
    assert wrong.metrics.prediction_accepted == 0 < wrong.metrics.prediction_rejected
    assert plain.metrics.prediction_accepted == plain.metrics.prediction_rejected == 0
    off = llm.generate(PROMPT, GREEDY, speculation="off", prediction=own)
    assert off.metrics.steps == len(own) and not off.metrics.drafted


def test_text_lists_streams_and_n_answers(llm: LLM) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    plain = llm.generate(text, GREEDY, speculation="off")
    outs = llm.generate([PROMPT, text], GREEDY, speculation=FIXED, prediction=[None, text])
    assert outs[1].token_ids == plain.token_ids and outs[1].metrics.prediction_rejected
    assert outs[0].metrics.prediction_rejected == 0
    *_, last = llm.stream(text, GREEDY, prediction=plain.token_ids)
    assert last.output is not None and last.output.token_ids == plain.token_ids
    two = SEEDED.model_copy(update={"n": 2})
    first, second = llm.generate(PROMPT, two, speculation="off").choices
    out = llm.submit(PROMPT, two, speculation=FIXED, prediction=second.token_ids).result()
    assert [c.token_ids for c in out.choices] == [first.token_ids, second.token_ids]
    assert out.choices[1].metrics.prediction_accepted > 30 and nothing_left(llm)


@pytest.mark.parametrize("wish", ["ngram", "self"])
def test_the_answer_begins_after_the_thought(llm: LLM, wish: str) -> None:
    options: dict[str, Any] = {"mode": {"thinking_budget": 9}, "allow_special": True}
    plain = llm.generate("<think>", GREEDY, speculation="off", **options)
    assert plain.metrics.thinking_tokens == 9
    options |= {"speculation": Speculation(drafter=wish, nodes=7)}
    out = llm.generate("<think>", GREEDY, prediction=plain.token_ids[9:], **options)
    assert out.token_ids == plain.token_ids
    assert out.metrics.prediction_accepted >= 30 and out.metrics.prediction_rejected <= 2 * 7


@pytest.mark.parametrize(("wrong", "said"), [
    (5, "^prediction=5 must be text, token ids or None$"),
    ([5, 999], "^prediction token 1 is 999, not an id in 0..319$"),
    ([5] * 600, "^prediction has 600 tokens; the context is 512$"),
    ("x" * 10**6, "^prediction has 1000000 characters, which cannot fit the context of 512"),
], ids=str)  # fmt: skip
def test_what_is_no_prediction(llm: LLM, wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        llm.stream(PROMPT, GREEDY, prediction=wrong)
