"""Failures at a drafted row that no answer comes to: nobody notices. Where one does, it ends as without drafts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_tools import Ask, Bench, OracleDraft, answer, outcome
from exact_tools import CHAINS, ORACLES, PROMPTS, TREES, VOCAB, check, params, tell, watch

from fastslow.engine.params import GrammarSpec
from fastslow.engine.rows import Rows
from fastslow.engine.sampling.grammars.grammar import GrammarError

DRAFTERS = (*CHAINS, *TREES, *ORACLES)


def without_numbers(bench: Bench, bad: frozenset[int], patch: pytest.MonkeyPatch) -> None:
    """The model's logits are no numbers after these tokens, as where an embedding is damaged."""
    forward = bench.model.forward

    def damaged(rows: Rows, *more: Any) -> Any:
        out = forward(rows, *more)
        failed = [i for i, token in enumerate(rows.tokens[rows.outputs]) if int(token) in bad]
        out.best[failed] = -1
        logits = [i for i in failed if i < len(out.logits)]
        out.logits[torch.tensor(logits, dtype=torch.long)] = torch.nan
        return out

    patch.setattr(bench.model, "forward", damaged)


def asks_for(drafter: str) -> list[Ask]:
    hot = params(temperature=0.8, max_tokens=20)
    return [
        Ask(PROMPTS[0], params(), drafter),
        Ask(PROMPTS[1], params(logprobs=2, repetition_penalty=1.2), drafter, groups=1),
        Ask(PROMPTS[2], hot, drafter, seed=3, rule="reproducible"),
        Ask(PROMPTS[3], params(), drafter, groups=2),
    ]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_drafts_into_damaged_rows_change_nothing(moge: Bench, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = asks_for(drafter)
    said = {token for ask in asks for token in [ask.tokens[-1], *answer(moge.alone(ask))]}
    tell(moge, asks)
    without_numbers(moge, frozenset(range(VOCAB)) - said, monkeypatch)
    check(moge, asks)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_an_answer_that_comes_to_a_damaged_row_ends_there(
    moge: Bench, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = asks_for(drafter)[:2]
    tell(moge, asks)
    bad = {answer(moge.alone(ask))[7] for ask in asks} - {ask.tokens[-1] for ask in asks}
    without_numbers(moge, frozenset(bad), monkeypatch)
    plain, drafted = moge.run([ask.plain for ask in asks]), moge.run(asks)
    for one, other in zip(plain, drafted, strict=True):
        assert outcome(one) == outcome(other)
        assert str(one.error) == str(other.error) == "the model's logits are not finite numbers"


@pytest.mark.parametrize("drafter", ["random", "sampled", "erring", "forked", "model"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_over_a_grammars_edge(
    moge: Bench, drafter: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grammar cannot continue where a text leaves the known answer."""
    ask = Ask(
        PROMPTS[1], params(temperature=temperature, ignore_eos=False), drafter, seed=5,
        rule="reproducible" if temperature else "token",
        grammar=GrammarSpec(regex="[a-f]{20,24}"),
    )  # fmt: skip
    known = moge.alone(ask).tokens

    def before(tokens: list[int], drafted: list[int]) -> None:
        if known[: len(tokens) + len(drafted)] != tokens + drafted:
            raise GrammarError("the grammar cannot continue")

    watch(moge, monkeypatch, before)
    check(moge, [ask])


def test_min_tokens_may_forbid_all_that_a_grammar_allows_after_a_draft(moge: Bench) -> None:
    assert moge.tokenizer is not None
    n, b, c, y = (moge.tokenizer.encode(text, add_special=False)[0] for text in "nbcy")
    ask = Ask(
        PROMPTS[0], params(min_tokens=9, stop_token_ids=[b, c], logit_bias={y: 100.0}, ignore_eos=False), "wrong",
        grammar=GrammarSpec(regex="ya|n[bc]"),
    )  # fmt: skip
    moge.drafters["wrong"] = lambda kv: OracleDraft({0: [*ask.tokens, n, b]})
    (request,) = moge.run([ask])
    assert request.error is None and request.stopper.text == "ya"
    assert outcome(request) == outcome(moge.alone(ask))
    (lost,) = moge.run([replace(ask, params=ask.params.model_copy(update={"logit_bias": {n: 100.0}}))])
    assert "no token is left" in str(lost.error), "the answer itself comes there"
