"""The built-in model as people meet it: fetched, converted, asked. Run with `-m slow`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastslow import LLM, Mode, SamplingParams, Speculation

pytestmark = pytest.mark.slow

QUESTIONS = ("What is the capital of France?", "Count from one to ten.", "Say hello to Anna.")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("smollm2-moge", dtype="float32", kv_memory="2GiB", progress=False) as model:
        yield model


def test_it_knows_the_capital_of_france(llm: LLM) -> None:
    assert llm.has_head
    for mode in ("deep", "fast"):
        assert "Paris" in llm.chat(QUESTIONS[0], SamplingParams(max_tokens=24), mode=mode).text


@pytest.mark.parametrize("mode", ["deep", "fast", Mode(name="shared", groups=0)])
@pytest.mark.parametrize("speculation", [Speculation(drafter="self", nodes=5), "ngram+self"])
def test_drafts_change_no_token(llm: LLM, mode: str | Mode, speculation: str | Speculation) -> None:
    sampling = SamplingParams(max_tokens=24)
    for question in QUESTIONS:
        plain = llm.chat(question, sampling, mode=mode, speculation="off")
        drafted = llm.chat(question, sampling, mode=mode, speculation=speculation)
        assert drafted.token_ids == plain.token_ids


def test_fewer_groups_cost_likelihood_in_order(llm: LLM) -> None:
    text = "The sun rose over the hills, and the farmer went out to feed the animals."
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
    totals = []
    for groups in (None, 4, 0):
        out = llm.generate(text, sampling, mode=Mode(name="some", groups=groups))
        assert out.prompt_logprobs is not None
        pairs = zip(out.prompt_token_ids[1:], out.prompt_logprobs[1:])
        totals.append(sum(table[token] for token, table in pairs if table))
    assert totals == sorted(totals, reverse=True)
